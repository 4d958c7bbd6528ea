"""Checkpoints are written by another thread while the loop goes on, one at a time, and what ends the loop waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data.sources import load
from harness.errors import DiskFullError, NonFiniteError
from harness.runs.claims import SupersededError
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.resources import Recording
from harness.training import checkpoint
from harness.training.hooks import Hooks, Report
from harness.training.loop import Options, train
from harness.training.state import TrainState

DATA = load(Data())
SAVE = checkpoint.save


def cell(**training: Any) -> Cell:
    recipe = {"steps": 6, "batch_size": 8, **training}
    return Cell.model_validate({"model": {"depth": 1, "width": 8, "patch_size": 4}, "training": recipe})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    return run


def go(run: Run, hooks: Hooks | None = None, *, seconds: float | None = 0, **training: Any) -> None:
    options = Options("cpu", [6], Recording(loss_images=8), seconds, look_seconds=0)
    train(cell(**training), DATA, run, options, hooks or Hooks())


def test_the_loop_goes_on_while_a_state_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    later, written = threading.Event(), dict[str, dict[str, torch.Tensor]]()

    def slow(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        if not written:
            assert later.wait(60), "no further step was made meanwhile"
        written[path.name] = {name: tensor.clone() for name, tensor in tensors.items()}
        SAVE(path, tensors, meta)

    monkeypatch.setattr(checkpoint, "save", slow)
    go(run, Hooks(report=lambda value: later.set() if value["done"] >= 3 else None), seconds=1e-9)
    other = Run(run.folder.with_name("other"))
    other.folder.mkdir()
    first = {name: tensors for name, tensors in written.items() if name == "state-00000001.safetensors"}
    written.clear()
    later.set()
    go(other)
    for name, tensor in written["state-00000001.safetensors"].items():
        assert torch.equal(tensor, first["state-00000001.safetensors"][name]), "as it was after its step"
    assert run.weights_file(6).read_bytes() == other.weights_file(6).read_bytes()


def test_one_is_written_at_a_time_and_0_seconds_write_every_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names, at_once = [], threading.Lock()

    def counted(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        assert at_once.acquire(blocking=False)
        assert threading.current_thread() is not threading.main_thread()
        SAVE(path, tensors, meta)
        assert {row["step"] for row in TrainLog(run).rows()} >= set(range(1, meta["step"] + 1)), "the log comes before"
        names.append(path.name)
        at_once.release()

    monkeypatch.setattr(checkpoint, "save", counted)
    go(run)
    assert names == [*(f"state-{step:08d}.safetensors" for step in range(1, 6)), "weights-00000006.safetensors"]


@pytest.mark.parametrize("error", [DiskFullError("f: the disk is full"), SupersededError("another has it")])
@pytest.mark.parametrize("at", [2, 6])
def test_an_error_of_the_writing_ends_the_training(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, at: int
) -> None:
    def failing(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        if meta["step"] == at:
            raise error
        SAVE(path, tensors, meta)

    monkeypatch.setattr(checkpoint, "save", failing)
    with pytest.raises(type(error), match=str(error)):
        go(run)
    assert not run.weights_file(6).exists()
    monkeypatch.undo()
    assert checkpoint.load(run.state_files()[0]).meta["step"] == at - 1
    go(run)
    assert run.weights_file(6).exists()


def test_nothing_is_written_without_the_claim(run: Run) -> None:
    """Every write is inside `Hooks.writing`, which the thread enters for itself."""
    inside: list[str] = []

    @contextmanager
    def writing() -> Iterator[None]:
        if len(inside) > 3 and threading.current_thread() is not threading.main_thread():
            raise SupersededError("another has it")
        inside.append(threading.current_thread().name)
        yield

    with pytest.raises(SupersededError, match="another has it"):
        go(run, Hooks(writing=writing))
    assert any(name.startswith("checkpoint") for name in inside)
    before = sorted(run.folder.rglob("*"))
    assert not [path for path in before if path.name.startswith(".")]


def test_a_failure_of_the_training_waits_for_the_writing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def slow(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        if meta["step"] == 2:
            assert failed.wait(60)
        SAVE(path, tensors, meta)

    def report(value: Report) -> None:
        if value["done"] == 2:
            failed.set()
            raise RuntimeError("broken")

    monkeypatch.setattr(checkpoint, "save", slow)
    with pytest.raises(RuntimeError, match="broken"):
        go(run, Hooks(report=report))
    assert checkpoint.load(run.state_file(2)).meta["step"] == 2
    assert {row["step"] for row in TrainLog(run).rows()} == {1, 2}


def test_a_state_that_is_not_finite_names_its_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    average = TrainState.average

    def spoilt(self: TrainState, decay: float) -> None:
        average(self, decay)
        if self.step == 4:
            next(self.ema.parameters()).view(-1)[0] = torch.nan

    monkeypatch.setattr(TrainState, "average", spoilt)
    at = r"after step 4 \(learning_rate 0.0001, precision fp32\): state-00000004.safetensors is not written: 1 of"
    with pytest.raises(NonFiniteError, match=at):
        go(run)
    assert [checkpoint.load(path).meta["step"] for path in run.state_files()] == [3, 2]


def test_large_finite_values_may_add_up_to_more_than_a_float() -> None:
    checkpoint.require_finite({"model.a": torch.full((4,), 3e38), "optimizer.b": torch.full((1,), torch.inf)})
    with pytest.raises(NonFiniteError, match=r"2 of 4 values are not finite, in model\.a"):
        checkpoint.require_finite({"model.a": torch.tensor([torch.inf, -torch.inf, 1.0, 2.0])})
