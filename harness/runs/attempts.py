"""Attempts at a cell: what their files say, and whether somebody still works on them."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from harness.processes import is_alive

#: How often one launch, or one start of a pool, starts a cell again whose process ended without a word.
RESTARTS = 2


#: The two tracks of a run: `launch` and `evaluate` each claim on their own, so that neither takes the other over.
TRAINING, EVALUATING = TRACKS = "attempts", "evaluating"

#: A job of another machine is taken for dead when its progress file has not changed for so long.
HEARTBEAT_SECONDS = 300.0


class Seen(NamedTuple):
    """What a scheduler says of a job."""

    alive: bool | None  # waiting or running; None: it cannot be asked
    word: str = ""  # its own word for the state, such as PENDING; empty when it does not know the job
    reason: str = ""  # why it waits
    job: str | None = None  # the scheduler's number of it


class Scheduler(Protocol):
    """Who runs the jobs of claims that hold a ticket."""

    def look(self, ticket: dict[str, Any]) -> Seen:
        """What became of the job of this ticket."""


class SupersededError(RuntimeError):
    """A later attempt has taken this cell over; this job must not write any more."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a cell, as its files tell it."""

    number: int
    claim: dict[str, Any]
    submitted: dict[str, Any] | None
    started: dict[str, Any] | None
    ended: dict[str, Any] | None
    heartbeat_age: float  # seconds; decides only for a job of another host, and is 0 on this one
    cancelled: dict[str, Any] | None = None
    seen: Seen | None = None  # by the scheduler; None when it was not asked, for the files say enough

    @property
    def live(self) -> bool:
        """Whether something still works, or is about to work, on this attempt.

        The job itself is asked once it is known, else what was submitted, else the launcher that claimed.
        """
        if "slurm" in self.claim:
            return self._live_on_slurm()
        if self.ended is not None:
            return False
        alive = is_alive((self.started or self.submitted or self.claim).get("process"))
        return self.heartbeat_age < HEARTBEAT_SECONDS if alive is None else alive

    def _live_on_slurm(self) -> bool:
        """As `live`, of a Slurm job: one that was stopped lives as long as Slurm means to run it again."""
        if self.seen is None:
            return False
        if self.pooled and self.cancelled is not None and (self.started is None or self.ended is not None):
            return False  # its pool lives on without it
        if self.started is None and self.submitted is None:
            launcher = is_alive(self.claim.get("process"))
            if launcher or (launcher is None and self.heartbeat_age < HEARTBEAT_SECONDS and not self.seen.alive):
                return True  # on its way to Slurm
        if self.seen.alive is not None:
            return self.seen.alive
        if self.ended is not None:
            return False
        if self.started is None:
            return True  # Slurm may well have it, and nothing is submitted twice
        alive = is_alive(self.started.get("process"))
        return self.heartbeat_age < HEARTBEAT_SECONDS if alive is None else alive

    @property
    def pooled(self) -> bool:
        """Whether its Slurm job is a pool (see `harness.launch.slurm_pool`), which other cells share."""
        return bool(self.claim.get("slurm", {}).get("pool"))

    @property
    def job_id(self) -> str | None:
        """The scheduler's number of the job, as far as it is on record."""
        found = (self.seen and self.seen.job) or (self.submitted or {}).get("job_id")
        return str(found) if found else self.claim.get("slurm", {}).get("job")

    @property
    def host(self) -> str | None:
        """Where it was last heard of: the job's machine, else the launcher's."""
        process = (self.started or self.submitted or {}).get("process") or self.claim.get("process") or {}
        return process.get("host")

    @property
    def host_is_here(self) -> bool:
        """Whether that is this machine, as far as is known."""
        return self.host in (None, socket.gethostname())

    @property
    def silence(self) -> str:
        """How a lost attempt was lost."""
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
        told = "running" if self.ended is None and self.live else "lost"
        if told == "lost" and self.pooled and self.started is None and self.seen is None:
            told = "waited"  # it is not the newest attempt: a later start of the pool has claimed the cell
        if self.ended is not None:
            told = str(self.ended.get("outcome", "lost"))
        return "cancelled" if told in ("stopped", "lost") and self.was_cancelled else told


def known_elsewhere(*records: dict[str, Any] | None) -> bool:
    """Whether the launcher or the job is known to be on another machine."""
    processes = [(record or {}).get("process") or {} for record in records]
    return any(process.get("host", socket.gethostname()) != socket.gethostname() for process in processes)
