"""Attempts at a cell: claims, what became of them, whether somebody still works on them, and who may write."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, cast

from harness.files import file_clock, fsync, full_disk_named, read_json, write_json
from harness.processes import is_alive
from harness.runs.layout import EVALUATING, TRAINING, RunFolder
from harness.runs.records import Claim, Ended, Progress, Started, Submitted, Ticket

#: How often one launch, or one start of a pool, starts a cell again whose process ended without a word.
RESTARTS = 2

#: A job of another machine counts as dead when its progress file has not changed for so long.
HEARTBEAT_SECONDS = 300.0


class Seen(NamedTuple):
    """What a scheduler says of a job."""

    alive: bool | None  # waiting or running; None: it cannot be asked
    word: str = ""  # its own word for the state, such as PENDING; empty when it does not know the job
    reason: str = ""  # why it waits
    job: str | None = None  # the scheduler's number of it


class Scheduler(Protocol):
    """Who runs the jobs of claims that hold a ticket."""

    @property
    def error(self) -> str | None:
        """Why it could not be asked the last time; None when it answered."""

    def look(self, ticket: Ticket) -> Seen:
        """What became of the job of this ticket."""


class SupersededError(RuntimeError):
    """A later attempt has taken this cell over; this job must not write any more."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a cell, as its files tell it."""

    number: int
    claim: Claim
    submitted: Submitted | None
    started: Started | None
    ended: Ended | None
    heartbeat_age: float  # seconds; decides only for a job of another host, and is 0 on this one
    cancelled: dict[str, Any] | None = None
    seen: Seen | None = None  # by the scheduler; None when it was not asked, for the files say enough

    @property
    def executor(self) -> str:
        """Name of the executor; version 0.1.0 wrote none, and a ticket under "slurm" for Slurm alone."""
        return self.claim.get("executor") or ("slurm" if "slurm" in self.claim else "local")

    @property
    def ticket(self) -> Ticket | None:
        """What the executor looks its job up by; None: the processes say all there is to know."""
        return cast("Ticket | None", self.claim.get(self.executor))

    @property
    def live(self) -> bool:
        """Whether something still works, or is about to work, on this attempt.

        The job itself is asked once it is known, else what was submitted, else the launcher that claimed.
        """
        if self.ticket is not None:
            return self._live_by_ticket()
        return self.ended is None and self._lives((self.started or self.submitted or self.claim).get("process"))

    def _lives(self, process: dict[str, Any] | None) -> bool:
        """Whether a process lives; of one on another machine the heartbeat decides."""
        alive = is_alive(process)
        return self.heartbeat_age < HEARTBEAT_SECONDS if alive is None else alive

    def _live_by_ticket(self) -> bool:
        """As `live`, of a scheduler's job: one that was stopped lives as long as the scheduler will run it again."""
        if self.seen is None:
            return False
        if self.pooled and self.cancelled is not None and (self.started is None or self.ended is not None):
            return False  # its pool lives on without it
        if self.started is None and self.submitted is None:
            launcher = is_alive(self.claim.get("process"))
            if launcher or (launcher is None and self.heartbeat_age < HEARTBEAT_SECONDS and not self.seen.alive):
                return True  # on its way to the scheduler
        if self.seen.alive is not None:
            return self.seen.alive
        if self.ended is not None:
            return False
        if self.started is None:
            return True  # the scheduler may well have it, and nothing is submitted twice
        return self._lives(self.started.get("process"))

    @property
    def pooled(self) -> bool:
        """Whether its Slurm job is a pool (see `harness.launch.slurm_pool`), which other cells share."""
        return bool((self.ticket or {}).get("pool"))

    @property
    def job_id(self) -> str | None:
        """The scheduler's number of the job, as far as it is on record."""
        found = (self.seen and self.seen.job) or (self.submitted or {}).get("job_id")
        return str(found) if found else (self.ticket or {}).get("job")

    @property
    def process(self) -> dict[str, Any] | None:
        """Identity of the job's process; until it has started, of the one that waits for it."""
        return (self.started or self.submitted or Submitted()).get("process")

    @property
    def host(self) -> str | None:
        """Where it was last heard of: the job's machine, else the launcher's."""
        return (self.process or self.claim.get("process") or {}).get("host")

    @property
    def host_is_here(self) -> bool:
        """Whether that is this machine, as far as is known."""
        return self.host in (None, socket.gethostname())

    @property
    def loss(self) -> str:
        """How a lost attempt was lost, for messages."""
        if self.host_is_here:
            return f"attempt {self.number} ended without a word"
        return f"attempt {self.number} of host {self.host} has been silent for {self.heartbeat_age / 60:.0f} min"

    @property
    def was_cancelled(self) -> bool:
        """Whether somebody ended this attempt on purpose."""
        return self.cancelled is not None or (self.seen is not None and self.seen.word == "CANCELLED")

    @property
    def outcome(self) -> str:
        """running, or how it ended: done, failed, cancelled, stopped (by a signal), lost (ended without a word).

        waited: never begun, as its pool was stopped before the cell had its turn.
        """
        found = "running" if self.ended is None and self.live else "lost"
        if found == "lost" and self.pooled and self.started is None and self.seen is None:
            found = "waited"  # it is not the newest attempt: a later start of the pool has claimed the cell
        if self.ended is not None:
            found = self.ended.get("outcome", "lost")
        return "cancelled" if found in ("stopped", "lost") and self.was_cancelled else found


class Attempts(RunFolder):
    """The attempts at one cell, on one track.

    Args:
        folder: of the run.
        schedulers: by the name of the executor; an attempt whose scheduler is missing cannot be looked up.
        track: whose attempts.
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
        if _known_elsewhere(claim, *files.values()):  # the heartbeat is the newest attempt's
            age = float("inf") if superseded else self.heartbeat_age()
        cancelled = read_json(self.attempt_file(number, "cancelled"))
        found = Attempt(number, cast(Claim, claim), **files, heartbeat_age=age, cancelled=cancelled)  # type: ignore[arg-type]
        over = found.ended is not None and found.ended.get("outcome") != "stopped"
        if found.ticket is None or over or superseded:
            return found
        scheduler = self._schedulers.get(found.executor)
        ticket: Ticket = {"job": (found.submitted or {}).get("job_id"), **found.ticket}  # a requeued one's claim has it
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

        A claim that is not `durable` needs a `sync_claim` before anything is started on its word: many claims are
        quicker made first and synced then.
        """
        target = self.attempt_file(number)
        self.attempts_folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".claim.", suffix=".tmp", dir=self.attempts_folder)
        try:
            with full_disk_named(target), os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(claim, file, indent=1)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            Path(name).chmod(0o644)
            try:
                os.link(name, target)
            except FileExistsError:
                return False
            if durable:
                fsync(self.attempts_folder)
            return True
        finally:
            Path(name).unlink(missing_ok=True)

    def sync_claim(self, number: int) -> None:
        """Make the claim of attempt `number`, and the cell, outlast a power cut."""
        for path in (self.cell_file, self.attempt_file(number), self.attempts_folder, self.folder):
            fsync(path)

    def record(self, number: int, event: str, value: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write what became of attempt `number`: event is submitted, started, ended or cancelled."""
        write_json(self.attempt_file(number, event), value, durable=durable)

    def is_cancelled(self, number: int) -> bool:
        """Whether somebody has asked for the end of attempt `number`; quick enough to be asked all the time."""
        return self.attempt_file(number, "cancelled").exists()

    def release(self, number: int) -> None:
        """Take back a claim of which nothing was submitted; a run that has nothing else goes too."""
        self.attempt_file(number).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.attempts_folder.rmdir()
            if [path.name for path in self.folder.iterdir()] == [self.cell_file.name]:
                self.cell_file.unlink()
                self.folder.rmdir()

    def assert_owner(self, number: int) -> None:
        """Raise SupersededError when a later attempt exists. Called before every write of a job."""
        if self.attempt_file(number + 1).exists():
            raise SupersededError(f"attempt {number} of {self.folder.name} was taken over by a later one")

    def progress(self) -> Progress | None:
        """Where the running job is."""
        return cast("Progress | None", read_json(self.progress_file))

    def write_progress(self, value: Progress) -> None:
        """Write where the job is; also its heartbeat. Not synced: losing it costs nothing."""
        temporary = self.progress_file.with_name(f".progress.{os.getpid()}.tmp")
        with full_disk_named(self.progress_file):
            temporary.write_text(json.dumps(value), encoding="utf-8")
            temporary.replace(self.progress_file)

    def heartbeat_age(self) -> float:
        """Seconds since the job last wrote its progress, or the attempt was made, by the file system's clock: those of
        two machines may differ by any amount, and a live job must not look dead for it.
        """
        times = [p.stat().st_mtime for p in (self.progress_file, *self.attempts_folder.glob("*.json")) if p.exists()]
        return file_clock(self.folder.parent) - max(times) if times else float("inf")

    def live(self) -> Attempt | None:
        """The newest attempt of this track while somebody works on it."""
        attempt = self.newest_attempt()
        return attempt if attempt is not None and attempt.live else None

    def remove_temporary_files(self) -> None:
        """Remove what a killed job left half-written. Only for the owner of the run; while a job of the other track
        works, only where that one does not write. Claims and their fate are written by launchers too: see `Study`.
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
