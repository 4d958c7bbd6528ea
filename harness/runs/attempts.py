"""Attempts at a cell: who claimed them, how they ended, which of them still run, and which may write."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast

from harness.files import file_clock, fsync, read_json, write_atomic, write_json, write_text
from harness.processes import is_alive
from harness.runs.layout import EVALUATING, TRAINING, RunFolder
from harness.runs.records import Claim, Ended, Progress, Started, Submitted, Ticket

#: How often one launch, or one start of a pool, restarts a cell whose process ended without a record.
RESTARTS = 2

#: A job on another machine counts as dead when its progress file is older than this.
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


class SupersededError(RuntimeError):
    """A later attempt has taken this cell over; this job must not write any more."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a cell, as read from its files."""

    number: int
    claim: Claim
    submitted: Submitted | None
    started: Started | None
    ended: Ended | None
    heartbeat_age: float  # seconds; used only for a job on another host, and 0 for one on this host
    cancelled: dict[str, Any] | None = None
    seen: Seen | None = None  # by the scheduler; None when it was not asked, since the files say enough

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
        return self.ended is None and self._lives((self.started or self.submitted or self.claim).get("process"))

    def _lives(self, process: dict[str, Any] | None) -> bool:
        """Whether a process lives; for one on another machine the heartbeat decides."""
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
    def host_is_here(self) -> bool:
        """Whether `host` is this machine, or is not known."""
        return self.host in (None, socket.gethostname())

    @property
    def loss(self) -> str:
        """Why the attempt counts as lost, for messages."""
        if self.started is None and self.seen is not None and not self.seen.word:
            return f"attempt {self.number} never started, and {self.executor.capitalize()} has no job of it"
        if self.host_is_here:
            return f"attempt {self.number} ended without a word"
        return f"attempt {self.number} of host {self.host} has been silent for {self.heartbeat_age / 60:.0f} min"

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
        return sorted(int(p.stem) for p in self.attempts_folder.glob("*.json") if p.stem.isdigit())

    def attempt(self, number: int) -> Attempt:
        """One attempt, read from its files."""
        files = {event: read_json(self.attempt_file(number, event)) for event in ("submitted", "started", "ended")}
        superseded = self.attempt_file(number + 1).exists()
        claim = read_json(self.attempt_file(number)) or {}
        age = 0.0
        if _known_elsewhere(claim, *files.values()):  # the progress file belongs to the newest attempt
            age = float("inf") if superseded else self.heartbeat_age()
        cancelled = read_json(self.attempt_file(number, "cancelled"))
        found = Attempt(number, cast(Claim, claim), **files, heartbeat_age=age, cancelled=cancelled)  # type: ignore[arg-type]
        over = found.ended is not None and found.ended.get("outcome") != "stopped"
        if found.ticket is None or over or superseded:
            return found
        scheduler = self._schedulers.get(found.executor)
        ticket: Ticket = {
            "job": (found.submitted or {}).get("job_id"),
            **found.ticket,
        }  # after a requeue the claim has it
        return replace(found, seen=scheduler.look(ticket) if scheduler else Seen(None))

    def newest_attempt(self) -> Attempt | None:
        """The attempt with the highest number; None before the first one."""
        numbers = self.attempt_numbers()
        return self.attempt(numbers[-1]) if numbers else None

    def attempts(self) -> list[Attempt]:
        """All attempts, the oldest first."""
        return [self.attempt(number) for number in self.attempt_numbers()]

    def claim(self, number: int, claim: Claim, *, durable: bool = True) -> bool:
        """Claim attempt `number`; False when somebody else has it. A hard link is whole and cannot be made twice.

        Many claims are made quicker with `durable` False; each needs a `sync_claim` before its job is submitted.
        """
        text = json.dumps(claim, indent=1)
        try:
            write_atomic(self.attempt_file(number), lambda file: file.write_text(text), durable=durable, put=os.link)
        except FileExistsError:
            return False
        return True

    def sync_claim(self, number: int) -> None:
        """Make the claim of attempt `number` and the file of the cell durable."""
        for path in (self.cell_file, self.attempt_file(number), self.attempts_folder, self.folder):
            fsync(path)

    def record(self, number: int, event: str, value: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write an event of attempt `number`: submitted, started, ended or cancelled."""
        write_json(self.attempt_file(number, event), value, durable=durable)

    def is_cancelled(self, number: int) -> bool:
        """Whether somebody has cancelled attempt `number`; quick enough for a tight loop."""
        return self.attempt_file(number, "cancelled").exists()

    def release(self, number: int) -> None:
        """Remove a claim whose job was not submitted, and the run when it holds nothing else."""
        self.attempt_file(number).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.attempts_folder.rmdir()
            if [path.name for path in self.folder.iterdir()] == [self.cell_file.name]:
                self.cell_file.unlink()
                self.folder.rmdir()

    def assert_owner(self, number: int) -> None:
        """Raise SupersededError when a later attempt exists. A job calls this before every write."""
        if self.attempt_file(number + 1).exists():
            raise SupersededError(f"attempt {number} of {self.folder.name} was taken over by a later one")

    def progress(self) -> Progress | None:
        """Where the running job is."""
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

    def remove_temporary_files(self) -> None:
        """Remove the half-written files of a killed job. Only the owner of the run may call this.

        While a job of the other track works, the folders that it writes are left alone. Launchers too write claims and
        events: `Study.remove_leftovers` cleans those.
        """
        folders = [self.folder]
        if self.on(EVALUATING if self.track == TRAINING else TRAINING).live() is not None:
            folders = [self.folder / "checkpoints"] if self.track == TRAINING else []
        for folder in folders:
            for leftover in folder.rglob(".*.tmp"):
                if leftover.parent.name not in (TRAINING, EVALUATING):
                    leftover.unlink(missing_ok=True)


def _known_elsewhere(*records: Mapping[str, Any] | None) -> bool:
    """Whether the launcher or the job is known to be on another machine."""
    processes = [(record or {}).get("process") or {} for record in records]
    return any(process.get("host", socket.gethostname()) != socket.gethostname() for process in processes)
