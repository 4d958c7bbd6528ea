"""Sampling in parts: resumed where it was, read when asked for, and refused where it does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.sources import load
from harness.errors import CellFailedError
from harness.evaluation.generate import Generator, Samples, generate, load_weights
from harness.evaluation.metrics import score
from harness.model.dit import DiT
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.training import checkpoint
from harness.training.hooks import Hooks, StoppedError
from tests.cells import dit_spec

CELL = Cell.model_validate({"model": {"depth": 1, "width": 16, "patch_size": 4}})
EVALUATION = Evaluation(samples=20, sampling_steps=2)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with made-up weights."""
    generator = torch.Generator().manual_seed(0)
    state = DiT(dit_spec(CELL), CELL.data.shape).state_dict()
    random = {name: 0.1 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    run = Run(tmp_path)
    weights = {f"{part}.{name}": value for part in ("model", "ema") for name, value in random.items()}
    checkpoint.save(run.weights_file(7), {name: value.clone() for name, value in weights.items()}, {})
    return run


def sample(run: Run, key: str, hooks: Hooks | None = None) -> Samples:
    dit = load_weights(run, CELL, 7, ema=True, device="cpu")
    made = generate(Generator(dit, CELL, EVALUATION, "cpu"), run, key, batch=6, hooks=hooks or Hooks())
    assert made is not None
    return made[0]


def test_interrupted_sampling_goes_on_and_the_metrics_are_the_same(run: Run) -> None:
    questions = iter([False, False, True])
    with pytest.raises(StoppedError, match="stopped at sample 12 of 20"):
        sample(run, "stopped", Hooks(should_stop=lambda: next(questions)))
    before = {path: path.stat().st_mtime_ns for path in run.samples_parts("stopped").values()}
    assert list(run.samples_parts("stopped")) == [0, 6]
    stopped, whole = sample(run, "stopped"), sample(run, "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before  # not made again
    assert np.array_equal(stopped[np.arange(20)], whole[np.arange(20)])
    dataset = load(CELL.data)
    assert score(stopped, EVALUATION, CELL.data, dataset) == score(whole, EVALUATION, CELL.data, dataset)


def test_one_part_is_in_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = sample(run, "k")
    whole = samples[np.arange(20)]
    assert samples.shape == whole.shape == (20, 8, 8, 1)
    wanted = np.array([19, 0, 7, 7, 6, 5])
    assert np.array_equal(samples[wanted], whole[wanted])
    assert np.array_equal(samples[np.array([13])], whole[[13]])
    read: list[Path] = []
    original = checkpoint.load

    def load_and_tell(path: Path) -> object:
        read.append(path)
        return original(path)

    monkeypatch.setattr(checkpoint, "load", load_and_tell)
    fresh = Samples(run, "k", 20, 6)
    for start in range(0, 20, 3):
        fresh[np.arange(start, min(start + 3, 20))]
    assert read == [*run.samples_parts("k").values()]  # each once, in order


def test_a_part_that_is_gone_is_said(run: Run) -> None:
    samples = sample(run, "k")
    run.samples_part("k", 6).unlink()
    with pytest.raises(CellFailedError, match=r"part-00000006\.safetensors: missing or damaged .*; launch again"):
        samples[np.arange(20)]


def test_weights_of_another_architecture_are_one_line(run: Run) -> None:
    wider = CELL.model_copy(update={"model": CELL.model.model_copy(update={"width": 32})})
    with pytest.raises(
        CellFailedError, match=r"weights-00000007\.safetensors: weights of another arch.*size"
    ) as caught:
        load_weights(run, wider, 7, ema=True, device="cpu")
    assert "\n" not in str(caught.value)
