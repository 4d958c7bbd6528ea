"""What scoring tells of itself while it works, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from harness.data.dataset import Progress
from harness.training.hooks import Report


@dataclass(frozen=True)
class Watch:
    """Takes the progress, and stops what takes long.

    Attributes:
        report: takes the progress; raises an error to stop.
        at_once: a signal ends what is computed in here where it finds it, see `harness.training.hooks.Hooks`.
    """

    report: Callable[[Report], None] = lambda _: None
    at_once: Callable[[], AbstractContextManager[None]] = nullcontext

    def progress(self, stage: str) -> Progress:
        """Takes how much of a stage is done, and of how much."""
        return lambda done, total: self.report({"stage": f"score {stage}", "done": done, "total": total})

    def waits(self, what: str) -> None:
        """Another process has to finish something first."""
        self.report({"stage": "wait", "done": 0, "total": 0, "waits": what})


#: Tells nobody, and cannot be stopped.
UNWATCHED = Watch()
