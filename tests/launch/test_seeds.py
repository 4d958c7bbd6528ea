"""A study whose trainings differ in the seed of one cause: tables tell them apart, and they repeat one model."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.table import load_study
from analysis.trainings import training_of
from harness.cli.tables import results_table
from harness.launch.executor import Schedulers
from harness.launch.launch import launch
from harness.runs.collect import collect
from harness.runs.study import Study
from sweeps.grid import load_sweep
from tests.launch.test_losses_only import LOSSES
from tests.launch.test_own_executor import STUB, Quiet, in_process

__all__ = ["in_process"]


@pytest.mark.usefixtures("in_process")
def test_trainings_that_differ_in_their_noise(tmp_path: Path) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    text = LOSSES.replace("seed = [0, 1]", '"seeds.noise" = [0, 1, 2]').replace(
        "steps = 2", "steps = 2\nema_window = 1.0"
    )
    (tmp_path / "noise.toml").write_text(text)
    sweep, study = load_sweep(tmp_path / "noise.toml"), Study(tmp_path / "results", "noise", Schedulers("noise"))
    rows = [row for row in collect(study, launch(sweep, study, Quiet())) if row["step"] == 2]
    assert [(row["seed"], row["seeds"]) for row in rows] == [(0, None), (0, "noise=1"), (0, "noise=2")]
    assert len({row["loss_heldout"] for row in rows}) == 3
    (shown,) = results_table("title", rows).rows
    assert (shown["name"], shown["seeds"]) == ("d1-w8-p4", 3)
    table = load_study(study.folder)
    assert set(training_of(table)) == {"0", "0; noise=1", "0; noise=2"}
    assert set(table["recipe"]) == {"ema_window=1.0"}
