"""One bar for work that is no cell: loss and images/s, in a terminal; a line now and then in a pipe."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness.cli.words import duration
from harness.runs.cellruns import CellRun
from harness.runs.state import State

#: Least time between two lines in a pipe.
LINE_SECONDS = 15.0


class WorkBar:
    """Shows what `harness.training.hooks.Hooks.report` is told; a new stage gets a new bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._stage, self._begun, self._begun_at, self._printed = "", 0.0, 0, 0.0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def report(self, value: dict[str, Any]) -> None:
        """How far a stage is: `stage`, `done`, `total`, and `loss` and `images_per_s` where known."""
        moment, done, total = time.monotonic(), value["done"], value["total"]
        if value["stage"] != self._stage:
            self._stage, self._begun, self._begun_at, self._printed = value["stage"], moment, done, moment
            self._task = self._progress.add_task(self._stage, total=total, note="")
        assert self._task is not None
        speed = value.get("images_per_s") or (done - self._begun_at) / max(moment - self._begun, 1e-3)
        loss = f"loss {value['loss']:.4f}, " if value.get("loss") is not None else ""
        note = f"{loss}{speed:.0f} images/s"
        self._progress.update(self._task, completed=done, note=note)
        if not self._console.is_terminal and (moment - self._printed >= LINE_SECONDS or done == total):
            self._printed = moment
            self.say(f"{self._stage} {done}/{total}, {note}")


class PlainView:
    """A line whenever something begins or ends: for logs and pipes."""

    def __init__(self, console: Console, items: list[CellRun]) -> None:
        self._console, self._total = console, len(items)
        self._done = sum(item.now.state is State.DONE for item in items)
        if self._done:
            self.note(f"{self._done} of {self._total} cells are done already")

    def __enter__(self) -> PlainView:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def started(self, item: CellRun) -> None:
        """A cell was started."""
        self.note(f"{item.name}: started")

    def finished(self, item: CellRun) -> None:
        """A cell ended."""
        self._done += item.now.state is State.DONE
        reason = f": {item.now.message}" if item.now.message else ""
        self.note(f"{item.name}: {item.now.state}{reason} ({self._done}/{self._total} done)")

    def tick(self, items: list[CellRun]) -> None:
        """Plain lines show no progress in between."""

    def note(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveView(PlainView):
    """One bar for the sweep and one for each running cell, with loss, images/s and time left."""

    def __init__(self, console: Console, items: list[CellRun]) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._live = Live(self._progress, console=console, refresh_per_second=4)
        self._tasks: dict[str, TaskID] = {}
        super().__init__(console, items)
        self._sweep = self._progress.add_task("[bold]sweep", total=self._total, completed=self._done, detail="")

    def __enter__(self) -> LiveView:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._live.stop()

    def finished(self, item: CellRun) -> None:
        """A cell ended: its bar goes."""
        super().finished(item)
        if (task := self._tasks.pop(item.cell.id, None)) is not None:
            self._progress.remove_task(task)

    def tick(self, items: list[CellRun]) -> None:
        """Draw what the running cells tell."""
        self._progress.update(self._sweep, completed=self._done)
        for item in items:
            told = item.now.progress
            if item.now.state not in (State.RUNNING, State.QUEUED):
                continue
            if item.cell.id not in self._tasks:
                self._tasks[item.cell.id] = self._progress.add_task(item.name, total=None, detail="starting")
            if told:
                loss = f"loss {told['loss']:.4f} " if told.get("loss") is not None else ""
                speed = f"{told['images_per_s']:.0f} images/s " if told.get("images_per_s") else ""
                left = f"{duration(told['seconds_left'])} left" if told.get("seconds_left") is not None else ""
                self._progress.update(
                    self._tasks[item.cell.id],
                    total=told["total"],
                    completed=told["done"],
                    detail=f"{told['stage']} {loss}{speed}{left}",
                )
