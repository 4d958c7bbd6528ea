"""Progress: bars in a terminal, lines in a pipe."""

from __future__ import annotations

import time
from collections import Counter
from typing import Self

from rich import progress
from rich.console import Console

from harness.cli.words import duration, rate, state_line
from harness.runs.cellruns import CellRun
from harness.runs.records import Progress
from harness.runs.state import ACTIVE, STARTABLE, State
from harness.training.hooks import Report

#: In a terminal of fewer columns the bars are short and have no clock, so that all their numbers fit.
_WIDE = 110

#: Least time between two lines in a pipe.
LINE_SECONDS = 15.0


class _Bars(progress.Progress):
    """A bar for each thing in progress: its name, how much is done, a note, and a clock."""

    def __init__(self, console: Console, clock: progress.ProgressColumn) -> None:
        narrow = console.width < _WIDE
        super().__init__(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=6 if narrow else 24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
            *(() if narrow else (clock,)),
            console=console,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self._known: dict[str, progress.TaskID] = {}

    def show(self, key: str, name: str, done: int, total: int | None, note: str) -> None:
        """Draw the bar of this key; the first time, add it."""
        if key not in self._known:
            self._known[key] = self.add_task(name, total=total, note=note)
        self.update(self._known[key], completed=done, total=total, note=note)

    def say(self, text: str) -> None:
        """Print a line, above the bars."""
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def drop(self, key: str) -> None:
        """Remove the bar of this key, if there is one."""
        if key in self._known:
            self.remove_task(self._known.pop(key))


def _note(loss: float | None, images_per_s: float | None, seconds_left: float | None = None) -> str:
    """Loss, speed and time left, as far as they are known."""
    known = (
        f"loss {loss:.4f}" if loss is not None else "",
        f"{rate(images_per_s)} images/s" if images_per_s else "",
        f"{duration(seconds_left)} left" if seconds_left is not None else "",
    )
    return ", ".join(part for part in known if part)


class WorkBar(_Bars):
    """The bar of work other than cells, in stages; in a pipe a line now and then."""

    def __init__(self, console: Console, *, images: bool = True) -> None:
        super().__init__(console, progress.TimeRemainingColumn())
        self._images = images  # whether the work counts images, whose speed is shown
        self._stage, self._begun, self._begun_at, self._printed = "", 0.0, 0, 0.0

    def report(self, value: Report) -> None:
        """Show the progress of a stage."""
        moment, stage, done, total = time.monotonic(), value["stage"], value["done"], value["total"]
        if stage != self._stage:
            self._stage, self._begun, self._begun_at, self._printed = stage, moment, done, moment
        speed = (done - self._begun_at) / max(moment - self._begun, 1e-3) if self._images else None
        speed = value.get("images_per_s") or speed
        note = _note(value.get("loss"), speed)
        self.show(stage, stage, done, total, note)
        if self.disable and (moment - self._printed >= LINE_SECONDS or done == total):
            self._printed = moment
            self.say(f"{stage} {done}/{total}{f', {note}' if note else ''}")


class LaunchView:
    """A line when a cell begins or ends; in a terminal, below the lines, a bar for the sweep and each running cell."""

    def __init__(self, console: Console, items: list[CellRun]) -> None:
        self._bars = _Bars(console, progress.TimeElapsedColumn())
        self._drawn: dict[str, int] = {}  # cells with a bar: the number of the attempt
        self._awaited: set[tuple[str, int]] = set()  # attempts of others that the user knows of
        self._total = len(items)
        self._done = sum(item.now.state is State.DONE for item in items)
        if self._done:
            self.note(f"{self._done} of {self._total} cells are done already")

    def __enter__(self) -> Self:
        """Start drawing."""
        self._bars.start()
        self.tick([])
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._bars.stop()

    def started(self, item: CellRun) -> None:
        """A cell was started."""
        self.note(f"{item.name}: started")

    def finished(self, item: CellRun) -> None:
        """A cell ended."""
        self._done += item.now.state is State.DONE
        self.note(f"{state_line(item)} ({self._done}/{self._total} done)")
        self._drop(item.cell.id)
        self.tick([])

    def tick(self, items: list[CellRun]) -> None:
        """Draw the progress of the sweep and of the running cells, as many as the terminal has lines for."""
        active = [item for item in items if item.now.state in ACTIVE]
        counts = Counter(str(item.now.state) for item in active)
        counts["waiting for a slot"] = sum(item.now.state in STARTABLE for item in items)
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        self._bars.show("", "sweep", self._done, self._total, told)
        lively = sorted(active, key=lambda item: item.now.state is not State.RUNNING)
        shown = {item.cell.id: item for item in lively[: max(1, self._bars.console.height - 2)]}
        for cell in [cell for cell in self._drawn if cell not in shown]:
            self._drop(cell)
        for item in active:
            self._say_whose(item)
        for cell, item in shown.items():
            self._show(cell, item)

    def work(self, value: Report) -> None:
        """Draw the progress of work before the cells; its bar goes when it is done."""
        stage, done, total = value["stage"], value["done"], value["total"]
        self._bars.show(stage, stage, done, total, "")
        if done == total:
            self._bars.drop(stage)

    def _show(self, cell: str, item: CellRun) -> None:
        """Draw the bar of a cell; that of a new attempt starts anew."""
        number = item.now.attempt.number if item.now.attempt else 0
        if self._drawn.get(cell, number) != number:
            self._bars.drop(cell)
        self._drawn[cell] = number
        at = item.now.progress or Progress(stage="starting", done=0)
        known = at["stage"], _note(at.get("loss"), at.get("images_per_s"), at.get("seconds_left"))
        text = item.now.message or " ".join(part for part in known if part)
        name = f"{item.name} (attempt {number})" if number > 1 else item.name
        self._bars.show(cell, name, at["done"], at.get("total") or None, text)

    def _say_whose(self, item: CellRun) -> None:
        """Say that a cell is waited for which this launch did not start, once an attempt."""
        attempt = item.now.attempt
        if item.mine or attempt is None or (item.cell.id, attempt.number) in self._awaited:
            return
        self._awaited.add((item.cell.id, attempt.number))
        whose = f"study {item.other_study}" if item.other_study else "an earlier launch"
        if attempt.job_id is not None and attempt.ticket is not None:
            whose += f", {attempt.executor.capitalize()} job {attempt.job_id} ({item.now.state})"
        where = f" on {attempt.host}" if attempt.host else ""
        self.note(f"{item.name}: waits for attempt {attempt.number}, of {whose}{where}")

    def _drop(self, cell: str) -> None:
        self._drawn.pop(cell, None)
        self._bars.drop(cell)

    def note(self, text: str) -> None:
        """Print one line."""
        self._bars.say(text)
