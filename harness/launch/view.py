"""What a launch tells the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from harness.runs.cellruns import CellRun
from harness.training.hooks import Report

#: Takes a line.
Say = Callable[[str], None]


class View(Protocol):
    """What shows a launch to the user."""

    def started(self, item: CellRun) -> None:
        """A cell was started."""

    def finished(self, item: CellRun) -> None:
        """A cell ended, well or not."""

    def tick(self, items: list[CellRun]) -> None:
        """Called at every poll."""

    def work(self, value: Report) -> None:
        """Work that comes before the cells is so far."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""


def note_takeover(item: CellRun, view: View) -> None:
    """Tell the user when a cell that is about to start belonged to another launch, whose job is lost."""
    attempt = item.now.attempt
    if attempt is not None and not item.mine and attempt.outcome == "lost":
        view.note(f"{item.name}: taking over: {attempt.loss}")
