"""The state of a cell: a pure reading of its run folder. And `Run`, the folder of one cell with all it can say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from harness.files import read_json
from harness.runs.attempts import Attempt, Attempts, Seen
from harness.runs.layout import TRAINING
from harness.runs.records import Progress


class State(StrEnum):
    """Where a cell is."""

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
    progress: Progress | None


class Run(Attempts):
    """The folder of one cell on one track: paths and cell (`RunFolder`), attempts (`Attempts`), and the state."""

    def missing_evaluations(self, owed: list[str]) -> list[str]:
        """Those of the evaluation keys that have no valid record."""
        return [key for key in owed if read_json(self.evaluation_file(key)) is None]

    def state(self, owed: list[str], training_steps: int) -> RunState:
        """The state, from the files alone.

        Args:
            owed: keys of the evaluations that the sweep asks for.
            training_steps: length of the training.
        """
        attempt = self.newest_attempt()
        missing = self.missing_evaluations(owed)
        if attempt is not None and attempt.live:
            seen = attempt.seen or Seen(None)
            waits = attempt.started is None or attempt.ended is not None or seen.word == "PENDING"
            state = State.QUEUED if waits else State.RUNNING
            reason = "waits for a slot" if attempt.pooled and seen.word == "RUNNING" else seen.reason
            return RunState(state, attempt, reason if waits else "", None if waits else self.progress())
        if not missing:
            return RunState(State.DONE, attempt, "", None)
        if attempt is not None and attempt.ended is not None and attempt.ended.get("outcome") == "failed":
            return RunState(State.FAILED, attempt, attempt.ended.get("message", ""), self.progress())
        if attempt is not None and attempt.outcome == "cancelled":
            again = "--retry runs it again" if self.track == TRAINING else "evaluate goes on with it"
            return RunState(State.CANCELLED, attempt, again, self.progress())
        if self.weights_file(training_steps).exists():
            message = f"{len(missing)} of {len(owed)} evaluations owed"
            return RunState(State.PARTIAL, attempt, message, None)
        if attempt is None or attempt.outcome == "done":  # a record or checkpoint was deleted since
            return RunState(State.MISSING, attempt, "", None)
        message = attempt.loss
        if attempt.ended is not None:
            message = attempt.ended.get("message", "") if attempt.outcome == "lost" else "stopped by a signal"
        if attempt.seen is not None and attempt.seen.word:
            message += f"; {attempt.executor.capitalize()}: {attempt.seen.word}"
        return RunState(State.INTERRUPTED, attempt, message, self.progress())
