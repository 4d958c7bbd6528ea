"""How a training talks to whoever runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class StoppedError(Exception):
    """The job was asked to stop; everything needed to go on is written."""


@dataclass(frozen=True)
class Hooks:
    """What training and sampling need of the job around them.

    Attributes:
        before_write: raises when this job must not write any more.
        should_stop: true once the job was asked to stop.
        report: told where the work is; called often, so it thins by itself.
    """

    before_write: Callable[[], None] = lambda: None
    should_stop: Callable[[], bool] = lambda: False
    report: Callable[[dict[str, Any]], None] = lambda _: None
