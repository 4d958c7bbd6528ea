"""Attempts at a cell, as their files tell: who claimed them, how they ended, and which of them still run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast

from harness.files import file_clock, read_json, write_text
from harness.processes import is_alive, unseen
from harness.runs.layout import TRAINING, RunFolder
from harness.runs.records import Claim, Ended, Progress, Started, Submitted, Ticket
from harness.runs.words import NO_WORDS, LastWords, last_words

#: How often one launch, or one start of a pool, restarts a cell whose process ended without a record.
RESTARTS = 2

#: A job that cannot be seen from here counts as dead when its progress file is older than this.
HEARTBEAT_SECONDS = 300.0


class Seen(NamedTuple):
    """What a scheduler says about a job."""

    alive: bool | None  # waiting or running; None: the scheduler did not answer
    word: str = ""  # the scheduler's word for the state, such as PENDING; empty when it does not know the job
    reason: str = ""  # why the job waits
    job: str | None = None  # its number


class Scheduler(Protocol):
    """What runs the jobs of claims that hold a ticket."""

    @property
    def error(self) -> str | None:
        """Why it did not answer the last time; None when it did."""

    def look(self, ticket: Ticket) -> Seen:
        """The state of the job with this ticket."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a cell, as read from its files."""

    number: int
    claim: Claim
    submitted: Submitted | None
    started: Started | None
    ended: Ended | None
    heartbeat_age: float  # seconds; used only where a process cannot be seen, and else 0
    cancelled: dict[str, Any] | None = None
    seen: Seen | None = None  # by the scheduler; None when it was not asked, since the files say enough
    words: LastWords = NO_WORDS  # of a process that ended before its job began

    @property
    def executor(self) -> str:
        """Name of the executor. Version 0.1.0 wrote none: there a ticket under "slurm" means Slurm, none local."""
        return self.claim.get("executor") or ("slurm" if "slurm" in self.claim else "local")

    @property
    def ticket(self) -> Ticket | None:
        """What the executor finds its job by; None where the recorded processes tell whether it lives."""
        return cast("Ticket | None", self.claim.get(self.executor))

    @property
    def live(self) -> bool:
        """Whether a process works, or is about to work, on this attempt.

        The job's own process decides once it is on record; before that what was submitted, else the launcher.
        """
        if self.ticket is not None:
            return self._live_by_ticket()
        if not self.claim:  # half-written, or damaged
            return self.ended is None and self.heartbeat_age < HEARTBEAT_SECONDS
        return self.ended is None and self._lives((self.started or self.submitted or self.claim).get("process"))

    def _lives(self, process: dict[str, Any] | None) -> bool:
        """Whether a process lives; for one that cannot be seen from here the heartbeat decides."""
        alive = is_alive(process)
        return self.heartbeat_age < HEARTBEAT_SECONDS if alive is None else alive

    def _live_by_ticket(self) -> bool:
        """As `live`, for a scheduler's job. A stopped one lives as long as the scheduler is going to run it again."""
        if self.seen is None:
            return False
        if self.pooled and self.cancelled is not None and (self.started is None or self.ended is not None):
            return False  # its pool goes on without it
        if self.started is None and self.submitted is None and self._lives(self.claim.get("process")):
            return True  # its launcher is about to submit it
        absent = self.seen.alive is False and not self.seen.word
        if self.seen.alive is not None and not (absent and self.started is not None):
            return self.seen.alive
        if self.started is None:  # the scheduler may have the job, and nothing is submitted twice
            return self.ended is None
        # a scheduler that has lost its list, or has not read it yet, does not know a job that works
        return self.ended is None and self._lives(self.started.get("process"))

    @property
    def pooled(self) -> bool:
        """Whether its Slurm job is a pool (see `harness.launch.slurm_pool`), which other cells share."""
        return bool((self.ticket or {}).get("pool"))

    @property
    def job_id(self) -> str | None:
        """The scheduler's number of the job; None while it is not known."""
        found = (self.seen and self.seen.job) or (self.submitted or {}).get("job_id")
        return str(found) if found else (self.ticket or {}).get("job")

    @property
    def process(self) -> dict[str, Any] | None:
        """Identity of the job's process; before it starts, of the process that waits for it."""
        return (self.started or self.submitted or Submitted()).get("process")

    @property
    def host(self) -> str | None:
        """The job's machine; the launcher's while that is not known."""
        return (self.process or self.claim.get("process") or {}).get("host")

    @property
    def unseen(self) -> str:
        """Why its process cannot be seen from here ("of host node7"); empty when it can, or is not known."""
        process = self.process or self.claim.get("process")
        return unseen(process) if process else ""

    @property
    def in_local_slot(self) -> bool:
        """Whether it is a process of this machine, in this allocation if there is one."""
        if self.ticket is not None or self.unseen:
            return False
        return self.claim.get("allocation") == os.environ.get("SLURM_JOB_ID")

    @property
    def loss(self) -> str:
        """Why the attempt counts as lost, for messages."""
        if self.words.lines:
            return f"attempt {self.number} ended before it began: {self.words}"
        if self.started is None and self.seen is not None and not self.seen.word:
            return f"attempt {self.number} never started, and {self.executor.capitalize()} has no job of it"
        if self.unseen:
            return f"attempt {self.number} {self.unseen} has been silent for {self.heartbeat_age / 60:.0f} min"
        return f"attempt {self.number} ended without a word"

    @property
    def was_cancelled(self) -> bool:
        """Whether somebody ended this attempt on purpose."""
        return self.cancelled is not None or (self.seen is not None and self.seen.word == "CANCELLED")

    @property
    def outcome(self) -> str:
        """running, or how it ended: done, failed, cancelled, stopped (by a signal), lost (without a record of its end).

        waited: its pool was stopped before it started the cell.
        """
        found = "running" if self.ended is None and self.live else "lost"
        if found == "lost" and self.pooled and self.started is None and self.seen is None:
            found = "waited"  # an older attempt: a later start of the pool has claimed the cell
        if self.ended is not None:
            found = self.ended.get("outcome", "lost")
        return "cancelled" if found in ("stopped", "lost") and self.was_cancelled else found


class Attempts(RunFolder):
    """The attempts at one cell, on one track.

    Args:
        folder: of the run.
        schedulers: by the name of the executor. Without its scheduler it is not known whether a job lives.
        track: TRAINING or EVALUATING.
    """

    def __init__(self, folder: Path, schedulers: Mapping[str, Scheduler] | None = None, track: str = TRAINING) -> None:
        super().__init__(folder, track)
        self._schedulers = {} if schedulers is None else schedulers

    def on(self, track: str) -> Self:
        """The same run, on this track."""
        return type(self)(self.folder, self._schedulers, track)

    def attempt_numbers(self) -> list[int]:
        """Numbers of all attempts, ascending."""
        try:
            with os.scandir(self.attempts_folder) as entries:
                names = [entry.name for entry in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isdigit())

    def attempt(self, number: int) -> Attempt:
        """One attempt, read from its files."""
        claim = cast(Claim, read_json(self.attempt_file(number)) or {})
        events = (self._event(claim, number, event) for event in ("submitted", "started", "ended", "cancelled"))
        submitted, started, ended, cancelled = events
        superseded, age = self.attempt_file(number + 1).exists(), 0.0
        if not claim or _is_unseen(claim, submitted, started):  # the progress file belongs to the newest attempt
            age = math.inf if superseded else self.heartbeat_age()
        found = Attempt(number, claim, submitted, started, ended, age, cancelled)
        over = found.ended is not None and found.ended.get("outcome") != "stopped"
        if found.ticket is None or over or superseded:
            return self._with_words(found)
        scheduler = self._schedulers.get(found.executor)
        ticket: Ticket = {
            "job": (found.submitted or {}).get("job_id"),
            **found.ticket,
        }  # after a requeue the claim has it
        return self._with_words(replace(found, seen=scheduler.look(ticket) if scheduler else Seen(None)))

    def _with_words(self, attempt: Attempt) -> Attempt:
        """With the last words of its process, when that has ended before the job began; a pool records those itself."""
        submitted = attempt.submitted
        began = attempt.started is not None or attempt.ended is not None or attempt.pooled
        if submitted is None or began or "job_id" not in submitted or attempt.live:
            return attempt
        folder = Path(submitted.get("output") or self.submitit_folder)
        return replace(attempt, words=last_words(folder, submitted["job_id"]))

    def _event(self, claim: Claim, number: int, event: str) -> Any:
        """An event of an attempt; None when there is none, or when it is of another claim with this number."""
        found = read_json(self.attempt_file(number, event))
        return None if found is None or found.get("token", claim.get("token")) != claim.get("token") else found

    def is_cancelled(self, number: int) -> bool:
        """Whether somebody has cancelled attempt `number`; quick enough for a tight loop."""
        return self.attempt_file(number, "cancelled").exists() and self.attempt(number).cancelled is not None

    def newest_attempt(self) -> Attempt | None:
        """The attempt with the highest number; None before the first one."""
        numbers = self.attempt_numbers()
        return self.attempt(numbers[-1]) if numbers else None

    def attempts(self) -> list[Attempt]:
        """All attempts, the oldest first."""
        return [self.attempt(number) for number in self.attempt_numbers()]

    def progress(self) -> Progress | None:
        """Where the newest attempt is, or was; None while it has not said so."""
        found, newest = self.last_progress(), max(self.attempt_numbers(), default=0)
        return None if found is None or found.get("attempt", newest) != newest else found

    def last_progress(self) -> Progress | None:
        """Where the last attempt was that said so: where a cell at rest was left."""
        return cast("Progress | None", read_json(self.progress_file))

    def write_progress(self, value: Progress) -> None:
        """Write where the job is; this is also its heartbeat. Not durable: losing it costs nothing."""
        write_text(self.progress_file, json.dumps(value), durable=False)

    def heartbeat_age(self) -> float:
        """Seconds since the job last wrote its progress or an event of the attempt.

        Measured by the file system's clock: the clocks of two machines may differ, and a live job must not look dead.
        """
        times = [p.stat().st_mtime for p in (self.progress_file, *self.attempts_folder.glob("*.json")) if p.exists()]
        return file_clock(self.folder.parent) - max(times) if times else float("inf")

    def live(self) -> Attempt | None:
        """The newest attempt of this track while somebody works on it."""
        attempt = self.newest_attempt()
        return attempt if attempt is not None and attempt.live else None


def _is_unseen(*records: Mapping[str, Any] | None) -> bool:
    """Whether the launcher or the job cannot be seen from here."""
    processes = [(record or {}).get("process") for record in records]
    return any(unseen(process) for process in processes if process)
