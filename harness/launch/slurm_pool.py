"""Several cells in one Slurm job: its slots take one cell after the other until none is left, or the time runs low.

Every cell stays what it is without a pool: a process that runs a `harness.launch.job.Job`, with attempts of its own.
The pool itself keeps nothing: which cells are over, and which were begun, it reads from their runs. So a requeued pool
goes on where the last start of it left off.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from harness.launch.job import Job
from harness.launch.signals import StopFlag
from harness.processes import now, process_identity
from harness.runs.attempts import RESTARTS, Attempt
from harness.runs.records import Claim
from harness.runs.triage import Cause

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Pool:
    """The cells of one Slurm job; called by submitit. Their claims hold the same ticket, with `pool` in it."""

    jobs: tuple[Job, ...]
    slots: int

    def __call__(self) -> int:
        """Run the cells to their ends, or until a signal; returns how many are left."""
        stop = StopFlag()
        left = _Slots(self, stop).work()
        if left and stop.is_set():
            print(f"[{now()}] stopped with {left} cells to go", flush=True)
            stop.requeue()
        return left

    def checkpoint(self) -> Any:
        """What submitit writes down to be run after the requeue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def claim_start(job: Job, restarts: int, *, again: bool) -> Job | None:
    """Claim the attempt of this start of the cell's job; None when somebody else has the cell.

    Only the first start of what was claimed at submission has that claim's number; every other start claims the next
    one, for two starts of a Slurm job may be alive (the older one on a node that was thought lost).

    Args:
        job: as submitted.
        restarts: how often Slurm has requeued this Slurm job.
        again: whether this start of the Slurm job has begun the cell before.

    Returns:
        The job with the number of its attempt.
    """
    attempt, ours = _newest(job), job.run.attempt(job.attempt).ticket
    number, theirs = attempt.number, attempt.ticket
    if not ours or not theirs or any(theirs.get(key) != ours.get(key) for key in ("token", "index")):
        return None  # another launch has taken the cell over
    if theirs["restarts"] > restarts:
        return None  # this start was thought lost
    if again or theirs["restarts"] < restarts:
        ticket = {"job": attempt.job_id, **theirs, "restarts": restarts}
        claim = {"process": process_identity(), "time": now(), "executor": attempt.executor, attempt.executor: ticket}
        number += 1
        if not job.run.claim(number, cast(Claim, claim)):
            return None
    return replace(job, attempt=number)


def _newest(job: Job) -> Attempt:
    return job.run.attempt(max(job.run.attempt_numbers(), default=job.attempt))


def _over(attempt: Attempt) -> bool:
    """Whether a cell has nothing left to do."""
    ended = attempt.ended is not None and attempt.ended.get("outcome") != "stopped"
    return ended or attempt.cancelled is not None


@dataclass
class _Slot:
    """One of the places for a cell, and the process that has it."""

    gpu: str | None
    job: Job | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has asked for the end of its cell."""
        return self.job is not None and self.job.run.is_cancelled(self.job.attempt)


@dataclass
class _Slots:
    """One start of a pool at work."""

    pool: Pool
    stop: StopFlag
    restarts: int = field(default_factory=lambda: int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    begun: Counter[str] = field(default_factory=Counter)  # folder of the run -> starts by this start of the pool

    def work(self) -> int:
        """Fill the slots until there is nothing to do, or a signal comes; returns the cells that are not over."""
        gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        slots = [_Slot(gpus[i % len(gpus)] if gpus else None) for i in range(self.pool.slots)]
        # what an earlier start began comes first: it has a slot again before anything new
        waiting = sorted(self.pool.jobs, key=lambda job: _newest(job).started is None)
        while True:
            for slot in slots:
                if slot.process is not None and slot.process.poll() is not None:
                    with _put_aside():
                        waiting = [*self._again(slot), *waiting]
                    slot.process = None
                while slot.process is None and waiting and not self.stop.is_set():
                    with _put_aside():
                        self._start(slot, waiting.pop(0))
                if slot.process is not None and (self.stop.is_set() or slot.is_cancelled):
                    slot.process.send_signal(signal.SIGTERM)  # at every look: one that is just starting ignores it
            if all(slot.process is None for slot in slots):
                return sum(not _over(_newest(job)) for job in self.pool.jobs)
            time.sleep(POLL_SECONDS)

    def _start(self, slot: _Slot, job: Job) -> None:
        """Start the cell's process in this slot, unless there is nothing to do."""
        again = self.begun[job.folder] > 0
        if _over(_newest(job)) or not (claimed := claim_start(job, self.restarts, again=again)):
            return
        self.begun[job.folder] += 1
        environment = dict(os.environ) if slot.gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": slot.gpu}
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.launch.slurm_pool"],
            stdin=subprocess.PIPE,
            env=environment,
            # Slurm signals every process of the job, and USR2 would end one that does not yet look out for it
            preexec_fn=_ignore_stop_signals,
        )
        assert process.stdin is not None
        slot.job, slot.process = claimed, process
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # killed already, as the next look tells
            pickle.dump(replace(claimed, gpu=slot.gpu), pipe)
        print(f"[{now()}] {claimed.run.folder.name}: attempt {claimed.attempt} is process {process.pid}", flush=True)

    def _again(self, slot: _Slot) -> list[Job]:
        """The job of a process that has ended, if its cell is to be started again; `RESTARTS` times at most."""
        assert slot.job is not None
        assert slot.process is not None
        job, attempt = slot.job, _newest(slot.job)
        print(f"[{now()}] {job.run.folder.name}: attempt {job.attempt} ended: {attempt.outcome}", flush=True)
        if attempt.number != job.attempt:  # somebody else has taken it over
            return []
        starts, ended = self.begun[job.folder], {}
        if attempt.cancelled is not None:
            ended = {"outcome": "stopped", "message": "cancelled"}
        elif not _over(attempt) and not self.stop.is_set():
            if starts <= RESTARTS:
                return [job]
            message = f"its process ended without a word {starts} times (exit status {slot.process.returncode})"
            ended = {"outcome": "failed", "message": message, "cause": str(Cause.LOST)}
        if ended and attempt.ended is None:  # the process had no last word
            job.run.record(job.attempt, "ended", {**ended, "time": now()})
        return []


@contextlib.contextmanager
def _put_aside() -> Iterator[None]:
    """Let trouble with the disk, or with a new process, end only this cell's turn; the next launch starts it again."""
    try:
        yield
    except OSError as error:
        print(f"[{now()}] put aside: {error}", flush=True)


def _ignore_stop_signals() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":  # the process of one cell: run the job that the pool hands over
    pickle.load(sys.stdin.buffer)()
