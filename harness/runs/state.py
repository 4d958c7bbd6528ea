"""The state of a cell, read from its run folder, and `Run`, the folder of one cell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from harness.errors import InputError
from harness.files import read_json
from harness.runs.attempts import Attempt, Seen
from harness.runs.claims import Claims
from harness.runs.layout import LOSSES, TRAINING, RunFolder
from harness.runs.records import Ended, Progress
from harness.spec.evaluation import Evaluation


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


class Run(Claims):
    """The folder of one cell on one track: paths (`RunFolder`), attempts (`Attempts`), claims (`Claims`), its state."""

    def measured(self, key: str) -> dict[str, Any] | None:
        """The record of one evaluation at one step; None when there is none of this cell, evaluation, step and weights.

        The record of the losses alone (see `harness.runs.cellruns.losses_key`) has no field `evaluation`.
        Weights that are gone, as in a clone, and records of version 0.1.0, which do not name theirs, are not compared.
        """
        record = read_json(self.evaluation_file(key))
        evaluation, _, step = key.partition("@")
        fields = ("metrics",) if evaluation == LOSSES else ("metrics", "evaluation")
        if record is None or not all(isinstance(record.get(field), dict) for field in fields):
            return None
        weights = self.weights_checksum(int(step))
        is_asked_for = (
            record.get("cell") == self.cell_id
            and str(record.get("step")) == step
            and (evaluation == LOSSES or _evaluation_id(self, json.dumps(record["evaluation"])) == evaluation)
            and (weights is None or record.get("weights", weights) == weights)
        )
        return record if is_asked_for else None

    def all_measured(self) -> dict[str, dict[str, Any]]:
        """All records that are what they should be, by key."""
        found = {path.stem: self.measured(path.stem) for path in self.evaluation_files()}
        return {key: record for key, record in found.items() if record is not None}

    def missing_evaluations(self, owed: list[str]) -> list[str]:
        """The keys of `owed` evaluations that have no valid record.

        Losses are on record where any evaluation of their step is, so that no other study trains for them again.
        """
        return [key for key in owed if self.measured(key) is None and not self._has_losses(key)]

    def _has_losses(self, key: str) -> bool:
        evaluation, _, step = key.partition("@")
        others = (path.stem for path in self.evaluation_files() if path.stem.endswith(f"@{step}"))
        return evaluation == LOSSES and any(self.measured(other) is not None for other in others)

    def state(self, owed: list[str], training_steps: int) -> RunState:
        """The state, read from the files and, for a job that may live, from its scheduler.

        Args:
            owed: keys of the evaluations that the sweep asks for.
            training_steps: number of steps of the whole training.
        """
        attempt = self.newest_attempt()
        if attempt is None and not self.folder.exists():  # as all of a large study before its launch
            return RunState(State.MISSING, None, "", None)
        missing = self.missing_evaluations(owed)
        if attempt is not None and attempt.live:
            seen = attempt.seen or Seen(None)
            waits = attempt.started is None or attempt.ended is not None or seen.word == "PENDING"
            state = State.QUEUED if waits else State.RUNNING
            progress = None if waits else self.progress()
            message = _waits_for(attempt, seen) if waits else (progress or {}).get("waits", "")
            if attempt.cancelled is not None:
                message = "stopping; cancelled"
            if attempt.unseen and attempt.seen is None:
                message = f"attempt {attempt.number} {attempt.unseen} wrote last {attempt.heartbeat_age:.0f} s ago"
            return RunState(state, attempt, message, progress)
        if not missing:
            return RunState(State.DONE, attempt, "", None)
        if attempt is not None and attempt.ended is not None and _has_failed(attempt.ended, missing):
            return RunState(State.FAILED, attempt, attempt.ended.get("message", ""), self.progress())
        if attempt is not None and attempt.outcome == "cancelled":
            again = "--retry runs it again" if self.track == TRAINING else "evaluate goes on with it"
            return RunState(State.CANCELLED, attempt, again, self.last_progress())
        if self.has_weights(training_steps):
            message = f"{len(missing)} of {len(owed)} evaluations owed"
            return RunState(State.PARTIAL, attempt, message, None)
        if attempt is None or attempt.outcome == "done":  # a record or checkpoint was deleted after its end
            return RunState(State.MISSING, attempt, "", None)
        message = attempt.loss
        if attempt.ended is not None:
            message = attempt.ended.get("message", "") if attempt.outcome == "lost" else "stopped by a signal"
        if attempt.seen is not None and attempt.seen.word:
            message += f"; {attempt.executor.capitalize()}: {attempt.seen.word}"
        return RunState(State.INTERRUPTED, attempt, message, self.last_progress())


def _waits_for(attempt: Attempt, seen: Seen) -> str:
    """What a queued attempt waits for."""
    if attempt.ticket is None:
        return "waits for its process to begin"
    if attempt.pooled and seen.word == "RUNNING":
        return "waits for a slot"
    return f"waits in the queue of {attempt.executor.capitalize()}{f': {seen.reason}' if seen.reason else ''}"


def _has_failed(ended: Ended, missing: list[str]) -> bool:
    """Whether an attempt failed, by more than evaluations of another study."""
    return ended.get("outcome") == "failed" and any(key in missing for key in ended.get("evaluations", missing))


def _evaluation_id(run: RunFolder, fields: str) -> str | None:
    """The id of a recorded evaluation; None when it is none, or one of a user's file that the run does not hold."""
    try:
        return _known_id(fields)
    except ValidationError:
        pass
    try:
        run.load_extensions()
        return _known_id(fields)
    except (ValidationError, InputError):
        return None


@lru_cache(maxsize=10_000)
def _known_id(fields: str) -> str:
    return Evaluation.model_validate_json(fields).id
