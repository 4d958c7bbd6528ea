"""The states of a cell, and which of them a launch starts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from harness.runs.attempts import Attempt


class State(StrEnum):
    """Where a cell is. A pure reading of its run folder."""

    MISSING = "missing"
    QUEUED = "queued"
    RUNNING = "running"
    PARTIAL = "partial"  # trained, evaluations owed
    INTERRUPTED = "interrupted"  # begun, stopped or lost, no job alive; the next launch resumes it
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"  # stopped on purpose; runs again when asked to


#: What a launch starts, what somebody works on, and what starts again when asked to.
STARTABLE = (State.MISSING, State.PARTIAL, State.INTERRUPTED)
ACTIVE = (State.QUEUED, State.RUNNING)
RETRIED = (State.FAILED, State.CANCELLED)


@dataclass(frozen=True)
class RunState:
    """The state of a cell and what explains it."""

    state: State
    attempt: Attempt | None
    message: str
    progress: dict[str, Any] | None
