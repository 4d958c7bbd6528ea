"""TensorBoard and Weights & Biases, off by default: copies of what the run's own files say. Imports neither on its own.

A tracker decides nothing and is asked nothing: it is fed from `train.jsonl` and the evaluation records, so the training
knows nothing of it, a resumed run writes no step twice, and one that breaks is let go of with a line in the log.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterable
from numbers import Real
from typing import Any, NamedTuple, Protocol

from harness.errors import InputError
from harness.files import read_json
from harness.runs.cellruns import split_key
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.runs.study import Study
from harness.spec.cell import Cell

_LOG = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of one curve."""

    tag: str
    step: int
    value: float


class Tracker(Protocol):
    """Where points go."""

    def written(self) -> set[tuple[str, int]]:
        """Tag and step of what is there from earlier attempts."""

    def write(self, points: list[Point]) -> None:
        """Add points."""

    def close(self) -> None:
        """End, in order."""


def check_installed(names: Iterable[str], where: str) -> None:
    """Refuse a sweep whose trackers are not there.

    Raises:
        InputError: one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"{where}: recording.trackers: {name} is not installed; allowed: those that are "
                "(pip install 'dit-scaling-harness[trackers]')"
            )


def points(run: Run, cell: Cell) -> list[Point]:
    """All that a run's files hold by now: losses, images/s, and the metrics of each evaluation."""
    found = []
    for row in TrainLog(run).rows():
        step = row["step"]
        for key, tag in (("loss", "loss"), ("loss_train", "loss/train"), ("loss_heldout", "loss/held-out")):
            if row.get(key) is not None:
                found.append(Point(tag, step, row[key]))
        if row.get("seconds"):
            found.append(Point("images per s", step, step * cell.training.batch_size / row["seconds"]))
    for path in run.evaluation_files():
        record = read_json(path)
        if record is not None:
            evaluation, _ = split_key(path.stem)
            found += [
                Point(f"{evaluation}/{key}", record["step"], float(value))
                for key, value in record["metrics"].items()
                if isinstance(value, Real) and not isinstance(value, bool)
            ]
    return found


class TensorBoard:
    """Event files in the run's folder, one an attempt."""

    def __init__(self, run: Run, cell: Cell, attempt: int) -> None:
        from tensorboard.summary import Writer

        self._folder = run.tracker_folder("tensorboard")
        self._before = self._read()
        self._writer = Writer(str(self._folder))

    def _read(self) -> set[tuple[str, int]]:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

        events = (e for path in sorted(self._folder.glob("events.*")) for e in EventFileLoader(str(path)).Load())
        return {(value.tag, event.step) for event in events for value in event.summary.value}

    def written(self) -> set[tuple[str, int]]:
        """From the event files themselves, so that it is true after any kill."""
        return self._before

    def write(self, points: list[Point]) -> None:
        """Add and flush."""
        for point in points:
            self._writer.add_scalar(point.tag, point.value, point.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run for each attempt, grouped by cell; offline unless WANDB_MODE says otherwise (`wandb sync` uploads it).

    W&B loses what it has not yet written when the job is killed, and cannot say what that was. So every attempt tells
    the whole story from step 1, and the newest one's has every step once.
    """

    def __init__(self, run: Run, cell: Cell, attempt: int) -> None:
        import wandb

        folder = run.tracker_folder("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=Study.of(run).name,
            group=run.folder.name,
            name=f"{run.folder.name}, attempt {attempt}",
            id=f"{cell.id}-{attempt}",
            dir=str(folder),
            mode=mode,
            config=cell.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")  # evaluations come after later steps of training

    def written(self) -> set[tuple[str, int]]:
        """Nothing, by this attempt."""
        return set()

    def write(self, points: list[Point]) -> None:
        """Tell W&B, the values of one step together."""
        rows: dict[int, dict[str, Any]] = {}
        for point in points:
            rows.setdefault(point.step, {"step": point.step})[point.tag] = point.value
        for row in rows.values():
            self._run.log(row)

    def close(self) -> None:
        """Let it finish its files."""
        self._run.finish()


_TRACKERS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


class Mirror:
    """Keeps the trackers of one attempt up to date with the run's files. Never raises."""

    def __init__(self, names: Iterable[str], run: Run, cell: Cell, attempt: int) -> None:
        self._run, self._cell = run, cell
        self._open: dict[str, tuple[Tracker, set[tuple[str, int]]]] = {}
        for name in names:
            try:
                tracker = _TRACKERS[name](run, cell, attempt)
                self._open[name] = tracker, tracker.written()
            except Exception as error:
                self._let_go(name, error)

    def update(self) -> None:
        """Pass on what is new."""
        if not self._open:
            return
        try:
            found = points(self._run, self._cell)
        except Exception as error:
            for name in list(self._open):
                self._let_go(name, error)
            return
        for name, (tracker, known) in list(self._open.items()):
            new = [point for point in found if (point.tag, point.step) not in known]
            if not new:
                continue
            try:
                tracker.write(new)
                known.update((point.tag, point.step) for point in new)
            except Exception as error:
                self._let_go(name, error)

    def close(self) -> None:
        """Pass on the last of it, and end."""
        self.update()
        for name, (tracker, _) in list(self._open.items()):
            try:
                tracker.close()
            except Exception as error:
                self._let_go(name, error)

    def _let_go(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        _LOG.warning("note: %s broke, the cell goes on without it: %s: %s", name, type(error).__name__, error)
