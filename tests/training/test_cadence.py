"""How often states are written, and that it changes nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data.sources import load
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.resources import Recording, Resources
from harness.training import cadence, checkpoint
from harness.training.cadence import Cadence
from harness.training.hooks import Hooks
from harness.training.loop import Options, train


@pytest.mark.parametrize(
    ("trained", "took", "pause"),
    [(0, 0.01, 5), (30, 0.01, 5), (300, 0.01, 30), (86400, 0.01, 120), (30, 2.0, 100), (30, 60.0, 120)],
)
def test_the_pause_scales_with_the_run(trained: float, took: float, pause: float) -> None:
    found = Cadence(Resources().checkpoint_seconds)
    found.saved(took)
    assert found.pause(trained) == pytest.approx(pause)


def test_a_given_time_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    given, each = Cadence(60.0), Cadence(0)
    given.saved(30.0)
    assert each.is_due(1e6)
    clock[0] += 59
    assert not given.is_due(1e6)
    clock[0] += 1
    assert given.is_due(0)


def test_weights_do_not_depend_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cadence, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(cadence, "_WRITING", 0)
    recipe = {"steps": 6, "batch_size": 8}
    cell = Cell.model_validate({"model": {"depth": 1, "width": 16, "patch_size": 4}, "training": recipe})
    data, saved, weights = load(cell.data), list[str](), []
    save = checkpoint.save

    def noted(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        saved.append(path.name)
        save(path, tensors, meta)

    monkeypatch.setattr(checkpoint, "save", noted)
    for seconds in (1e9, None):
        run = Run(tmp_path / str(seconds) / cell.id)
        run.folder.mkdir(parents=True)
        train(cell, data, run, Options("cpu", [6], Recording(loss_images=8), seconds), Hooks())
        weights.append(checkpoint.load(run.weights_file(6))[0])
    assert any(name.startswith("state-") for name in saved), "by default some are written here"
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
