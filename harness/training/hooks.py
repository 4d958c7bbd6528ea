"""How a training talks to the job around it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NotRequired, TypedDict


class StoppedError(Exception):
    """The job was asked to stop; all that a resumption needs is written."""


class Report(TypedDict):
    """Where the work is: `done` of `total` steps or images of a stage such as train or sample; or what it waits for."""

    stage: str
    done: int
    total: int
    loss: NotRequired[float]
    images_per_s: NotRequired[float | None]
    tflops: NotRequired[float]
    mfu: NotRequired[float]
    waits: NotRequired[str]


@dataclass(frozen=True)
class Hooks:
    """What training and sampling need of the job around them.

    Attributes:
        writing: what every write happens in; raises, before it, when this job must not write any more. Threads may be
            in it together.
        should_stop: returns True once the job was asked to stop.
        report: records the progress; it is called often, so it skips most calls.
        at_once: what is computed in here ends by a `StoppedError` as soon as the job is asked to stop, wherever it is;
            so it may write nothing.
    """

    writing: Callable[[], AbstractContextManager[None]] = nullcontext
    should_stop: Callable[[], bool] = lambda: False
    report: Callable[[Report], None] = lambda _: None
    at_once: Callable[[], AbstractContextManager[None]] = nullcontext
