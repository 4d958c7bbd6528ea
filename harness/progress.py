"""One bar for work that is no cell: loss and images/s, in a terminal; a line now and then in a pipe."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: Least time between two lines in a pipe.
LINE_SECONDS = 15.0


class WorkBar:
    """Shows what `harness.train.Hooks.report` is told; a new stage gets a new bar."""

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
