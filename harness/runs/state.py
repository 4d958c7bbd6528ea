"""The state of a cell, read from its run folder, and `Run`, the folder of one cell."""

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
    PARTIAL = "partial"  # trained, but evaluations are missing
    INTERRUPTED = "interrupted"  # begun, then stopped or lost; no job is alive, and the next launch resumes it
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"  # stopped on purpose; runs again when asked to


#: States in which a launch starts a cell, in which a job has it, and in which `--retry` starts it again.
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
    """The folder of one cell on one track: its paths and cell (`RunFolder`), its attempts (`Attempts`), its state."""

    def missing_evaluations(self, owed: list[str]) -> list[str]:
        """The keys of `owed` evaluations that have no valid record."""
        return [key for key in owed if read_json(self.evaluation_file(key)) is None]

    def state(self, owed: list[str], training_steps: int) -> RunState:
        """The state, read from the files and, for a job that may live, from its scheduler.

        Args:
            owed: keys of the evaluations that the sweep asks for.
            training_steps: number of steps of the whole training.
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
        if attempt is None or attempt.outcome == "done":  # a record or checkpoint was deleted after its end
            return RunState(State.MISSING, attempt, "", None)
        message = attempt.loss
        if attempt.ended is not None:
            message = attempt.ended.get("message", "") if attempt.outcome == "lost" else "stopped by a signal"
        if attempt.seen is not None and attempt.seen.word:
            message += f"; {attempt.executor.capitalize()}: {attempt.seen.word}"
        return RunState(State.INTERRUPTED, attempt, message, self.progress())
