"""TensorBoard and W&B get what the run's files say, once, and never cost a cell."""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.runs import trackers
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.runs.trackers import Mirror, Point, check_installed, points
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.model import DiTSpec
from harness.spec.resources import Recording
from harness.spec.training import Training
from tests.records import write_record

CELL = Cell(model=DiTSpec(depth=1, width=8, patch_size=4), training=Training(batch_size=8, steps=8))
E1 = Evaluation(samples=40)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    found = Run(tmp_path / "results" / "runs" / CELL.id)
    found.folder.mkdir(parents=True)
    return found


def train(run: Run, *steps: int) -> None:
    """What a training logs at these steps."""
    for step in steps:
        TrainLog(run).append({"step": step, "loss": 1 / step, "seconds": float(step)})


def evaluate(run: Run, step: int) -> None:
    metrics = {"frechet": 10.0 + step, "reference": "digits", "kid": None, "exact": True}
    write_record(run, CELL, E1, step, metrics=metrics)


def test_points_are_losses_speed_and_metrics(run: Run) -> None:
    train(run, 2)
    TrainLog(run).append({"step": 2, "loss_train": 0.5, "loss_heldout": 0.6, "bins_train": [1, 2]})
    evaluate(run, 2)
    assert set(points(run, CELL)) == {
        Point("loss", 2, 0.5),
        Point("images per s", 2, 8.0),
        Point("loss/train", 2, 0.5),
        Point("loss/held-out", 2, 0.6),
        Point(f"{E1.id}/frechet", 2, 12.0),
    }


def events(run: Run) -> list[tuple[str, int, float]]:
    """All that stands in the event files."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader").EventFileLoader
    found = []
    for path in sorted(run.tracker_folder("tensorboard").glob("events.*")):
        for event in loader(str(path)).Load():
            found += [(v.tag, event.step, round(v.tensor.float_val[0], 4)) for v in event.summary.value]
    return found


def lives(run: Run, names: list[str]) -> None:
    """A run that is killed after step 6, goes on from step 4, and is measured in between."""
    if (child := os.fork()) == 0:
        try:
            first = Mirror(names, run, CELL, 1, "s")
            train(run, 2, 4)
            first.update()
            first.update()
            train(run, 6)
            first.update()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    log = TrainLog(run)
    log.rewrite([row for row in log.rows() if row["step"] <= 4])
    second = Mirror(names, run, CELL, 2, "s")
    second.update()
    train(run, 6, 8)
    second.update()
    evaluate(run, 4)
    second.close()


def test_tensorboard_holds_every_step_once(run: Run) -> None:
    pytest.importorskip("tensorboard")
    lives(run, ["tensorboard"])
    found = events(run)
    assert sorted((step, value) for tag, step, value in found if tag == "loss") == [
        (step, round(1 / step, 4)) for step in (2, 4, 6, 8)
    ]
    assert (f"{E1.id}/frechet", 4, 14.0) in found
    assert len(found) == len({(tag, step) for tag, step, _ in found}) == 9


def test_wandb_offline_holds_every_step_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    lives(run, ["wandb"])
    newest = next(run.folder.rglob("*-2.wandb"))
    deadline = time.monotonic() + 60
    while not (rows := history(newest)) and time.monotonic() < deadline:  # W&B's own process writes it
        time.sleep(0.1)
    losses = sorted((row["step"], row["loss"]) for row in rows if "loss" in row)
    assert losses == [(step, pytest.approx(1 / step)) for step in (2, 4, 6, 8)]
    assert [row[f"{E1.id}/frechet"] for row in rows if f"{E1.id}/frechet" in row] == [14.0]


def history(path: Path) -> list[dict[str, Any]]:
    """The logged rows of a W&B offline file."""
    proto: Any = import_module("wandb.proto.wandb_internal_pb2")
    rows = []
    for data in log_records(path.read_bytes()):
        record = proto.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    return rows


def log_records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log behind W&B's header of seven bytes: (crc, length, kind), data; in blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            yield whole
            whole = b""


def test_a_tracker_that_breaks_is_let_go_of(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __init__(self, run: Run, cell: Cell, attempt: int, study: str) -> None:
            self.known: set[tuple[str, int]] = set()

        def write(self, points: list[Point]) -> None:
            raise OSError("no space")

        def close(self) -> None:
            raise AssertionError("it was let go of")

    def unusable(run: Run, cell: Cell, attempt: int, study: str) -> Broken:
        raise ImportError("no such module")

    monkeypatch.setattr(trackers, "_TRACKERS", {"tensorboard": Broken, "wandb": unusable})
    mirror = Mirror(["tensorboard", "wandb"], run, CELL, 1, "s")
    train(run, 2)
    mirror.update()
    mirror.update()
    mirror.close()
    assert caplog.messages == [
        "note: wandb broke, the cell goes on without it: ImportError: no such module",
        "note: tensorboard broke, the cell goes on without it: OSError: no space",
    ]


def test_what_is_not_installed_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed([], "s.toml")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"s\.toml: recording\.trackers: wandb is not installed; .*\[trackers\]"):
        check_installed(["wandb"], "s.toml")


def test_trackers_are_off_and_validated() -> None:
    assert Recording().trackers == ()
    assert Recording.model_validate({"trackers": ["wandb"]}).trackers == ("wandb",)
    with pytest.raises(ValueError, match="'tensorboard' or 'wandb'"):
        Recording.model_validate({"trackers": ["mlflow"]})
