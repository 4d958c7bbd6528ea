"""TensorBoard and Weights & Biases, off by default: copies of what the run's own files say.

A tracker gets its points from `train.jsonl` and the evaluation records, so the training does not depend on it, and a
resumed run writes no step twice. A tracker that raises an error is dropped with a line in the log. Neither package is
imported unless a sweep names it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any, NamedTuple, Protocol

from harness.errors import InputError
from harness.runs.cellruns import split_key
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.spec.cell import Cell

_LOG = logging.getLogger(__name__)


class Point(NamedTuple):
    """One value of one curve."""

    tag: str
    step: int
    value: float


class Tracker(Protocol):
    """Where points go."""

    #: Tag and step of every point that it has: those of earlier attempts at first.
    known: set[tuple[str, int]]

    def write(self, points: list[Point]) -> None:
        """Add points."""

    def close(self) -> None:
        """Finish the tracker's files."""


def check_installed(names: Iterable[str], where: str) -> None:
    """Check that the trackers which a sweep names are installed.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"{where}: recording.trackers: {name} is not installed; allowed: those that are "
                "(pip install 'dit-scaling-harness[trackers]')"
            )


#: What is copied of a row of the log: its key, and its name there.
_LOGGED = {
    "loss": "loss",
    "loss_train": "loss/train",
    "loss_heldout": "loss/held-out",
    "learning_rate": "learning rate",
}


def points(run: Run, cell: Cell) -> list[Point]:
    """All that a run's files hold so far: losses, images/s, and the metrics of each evaluation."""
    found = []
    for row in TrainLog(run).rows():
        step = row["step"]
        for key, tag in _LOGGED.items():
            if row.get(key) is not None:
                found.append(Point(tag, step, row[key]))
        if row.get("seconds"):
            found.append(Point("images per s", step, step * cell.training.batch_size / row["seconds"]))
    for key, record in run.all_measured().items():
        evaluation, step = split_key(key)
        found += [
            Point(f"{evaluation}/{metric}", step, float(value))
            for metric, value in record["metrics"].items()
            if isinstance(value, Real) and not isinstance(value, bool)
        ]
    return found


class TensorBoard:
    """Event files in the run's folder, one for each attempt. What they hold is read from them, so it is true after any
    kill.
    """

    def __init__(self, run: Run, cell: Cell, attempt: int, study: str) -> None:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.summary import Writer

        folder = run.tracker_folder("tensorboard")
        events = (e for path in sorted(folder.glob("events.*")) for e in EventFileLoader(str(path)).Load())
        self.known = {(value.tag, event.step) for event in events for value in event.summary.value}
        self._writer = Writer(str(folder))

    def write(self, points: list[Point]) -> None:
        """Add points, and flush them to the disk."""
        for point in points:
            self._writer.add_scalar(point.tag, point.value, point.step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run for each attempt, grouped by cell; offline unless WANDB_MODE says otherwise (`wandb sync` uploads it).

    When a job is killed, W&B loses what it has not written yet, and cannot say what that was. So every attempt writes
    all points from step 1 on, and the W&B run of the newest attempt has every step once.
    """

    def __init__(self, run: Run, cell: Cell, attempt: int, study: str) -> None:
        import wandb

        self.known: set[tuple[str, int]] = set()
        folder = run.tracker_folder("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=study,
            group=run.label,
            name=f"{run.label}, attempt {attempt}",
            id=f"{cell.id}-{attempt}",
            dir=str(folder),
            mode=mode,
            config=cell.model_dump(mode="json"),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")  # evaluations come after later steps of training

    def write(self, points: list[Point]) -> None:
        """Send points to W&B, those of one step together."""
        rows: dict[int, dict[str, Any]] = {}
        for point in points:
            rows.setdefault(point.step, {"step": point.step})[point.tag] = point.value
        for row in rows.values():
            self._run.log(row)

    def close(self) -> None:
        """Let W&B finish its files."""
        self._run.finish()


_TRACKERS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


class Mirror:
    """Keeps the trackers of one attempt up to date with the run's files. Never raises: it drops a tracker that does."""

    def __init__(self, names: Iterable[str], run: Run, cell: Cell, attempt: int, study: str) -> None:
        self._run, self._cell = run, cell
        self._open: dict[str, Tracker] = {}
        for name in names:
            with self._dropped_on_error(name):
                self._open[name] = _TRACKERS[name](run, cell, attempt, study)

    def update(self) -> None:
        """Pass on what is new."""
        for name, tracker in list(self._open.items()):
            with self._dropped_on_error(name):
                found = points(self._run, self._cell)
                if new := [point for point in found if (point.tag, point.step) not in tracker.known]:
                    tracker.write(new)
                    tracker.known.update((point.tag, point.step) for point in new)

    def close(self) -> None:
        """Pass on the last points, and close the trackers."""
        self.update()
        for name, tracker in list(self._open.items()):
            with self._dropped_on_error(name):
                tracker.close()

    @contextlib.contextmanager
    def _dropped_on_error(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            _LOG.warning("note: %s broke, the cell goes on without it: %s: %s", name, type(error).__name__, error)
