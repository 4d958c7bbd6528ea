"""Several cells in one Slurm job: its slots run one cell after another until none is left or a signal comes.

Every cell runs as it does without a pool: in a process of its own, as a `harness.launch.job.Job`, with its own
attempts. The pool stores nothing. It reads from the runs which cells are over and which were begun, so a requeued pool
goes on where its last start stopped.
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

from harness.launch import imports
from harness.launch.imports import SAFE_PATH
from harness.launch.job import Job
from harness.launch.signals import StopFlag
from harness.processes import now, process_identity
from harness.runs.attempts import RESTARTS, Attempt
from harness.runs.claims import SupersededError
from harness.runs.records import Claim
from harness.runs.triage import Cause, describe_words
from harness.runs.words import NO_WORDS, last_words

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Pool:
    """The cells of one Slurm job; submitit calls it. Their claims hold the same ticket, in which `pool` is set."""

    jobs: tuple[Job, ...]
    slots: int

    def __call__(self) -> int:
        """Run the cells to their ends, or until a signal; returns how many are not over."""
        stop = StopFlag()
        left = _Slots(self, stop).work()
        if left and stop.is_set():
            print(f"[{now()}] stopped with {left} cells to go", flush=True)
            stop.requeue()
        return left

    def checkpoint(self) -> Any:
        """What submitit saves, to be run after the requeue."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def claim_start(job: Job, restarts: int, *, again: bool) -> Job | None:
    """Claim an attempt for this start of the cell's job; None when another launch or start has the cell.

    The first start uses the attempt that was claimed at submission. Every other start claims the next attempt, because
    two starts of one Slurm job may be alive: the older one on a node that was thought lost.

    Args:
        job: as submitted.
        restarts: how often Slurm has requeued the Slurm job.
        again: whether this start of the Slurm job has started the cell before.

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
        mine = {"process": process_identity(), "time": now(), "study": job.study, "executor": attempt.executor}
        number += 1
        if (hold := job.run.claim(number, cast(Claim, {**mine, attempt.executor: ticket}))) is None:
            return None
        return replace(job, attempt=number, token=hold.token)
    return replace(job, attempt=number, token=attempt.claim.get("token", ""))


def _words_of(job: Job) -> str:
    """Name of the file that holds what the job's process prints before the job begins."""
    return f"attempt-{job.attempt}"


def _newest(job: Job) -> Attempt:
    return job.run.attempt(max(job.run.attempt_numbers(), default=job.attempt))


def _over(attempt: Attempt) -> bool:
    """Whether a cell has nothing left to do."""
    ended = attempt.ended is not None and attempt.ended.get("outcome") != "stopped"
    return ended or attempt.cancelled is not None


@dataclass
class _Slot:
    """A place for one cell at a time, and the process of the cell that has it."""

    gpu: str | None
    job: Job | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has cancelled its cell."""
        return self.job is not None and self.job.run.is_cancelled(self.job.attempt)


@dataclass
class _Slots:
    """One start of a pool, and its slots."""

    pool: Pool
    stop: StopFlag
    restarts: int = field(default_factory=lambda: int(os.environ.get("SLURM_RESTART_COUNT", "0")))
    begun: Counter[str] = field(default_factory=Counter)  # folder of the run -> starts by this start of the pool

    def work(self) -> int:
        """Keep the slots filled until all cells are over or a signal comes; returns how many are not over."""
        gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
        slots = [_Slot(gpus[i % len(gpus)] if gpus else None) for i in range(self.pool.slots)]
        # cells that an earlier start of the pool has begun come before new ones
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
                    slot.process.send_signal(signal.SIGTERM)  # at every look: a process that just starts ignores it
            if all(slot.process is None for slot in slots):
                return sum(not _over(_newest(job)) for job in self.pool.jobs)
            time.sleep(POLL_SECONDS)

    def _start(self, slot: _Slot, job: Job) -> None:
        """Start the cell's process in this slot, unless the cell is over or another launch has it."""
        again = self.begun[job.folder] > 0
        if _over(_newest(job)) or not (claimed := claim_start(job, self.restarts, again=again)):
            return
        self.begun[job.folder] += 1
        environment = dict(os.environ) if slot.gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": slot.gpu}
        words = claimed.run.submitit_folder / f"{_words_of(claimed)}.err"
        words.parent.mkdir(parents=True, exist_ok=True)
        with words.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, SAFE_PATH, "-m", "harness.launch.slurm_pool"],
                stdin=subprocess.PIPE,
                stderr=stderr,  # until the job begins its log
                env={**environment, **imports.environment()},
                # Slurm signals every process of the job, and USR2 would kill one that does not handle it yet
                preexec_fn=_ignore_stop_signals,
            )
        assert process.stdin is not None
        slot.job, slot.process = claimed, process
        # the process may be killed already: the next look sees that
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pickle.dump(replace(claimed, gpu=slot.gpu), pipe)
        print(f"[{now()}] {claimed.run.label}: attempt {claimed.attempt} is process {process.pid}", flush=True)

    def _again(self, slot: _Slot) -> list[Job]:
        """The job of the slot's ended process, in a list, if its cell has to start again; `RESTARTS` times at most."""
        assert slot.job is not None
        assert slot.process is not None
        job, attempt = slot.job, _newest(slot.job)
        print(f"[{now()}] {job.run.label}: attempt {job.attempt} ended: {attempt.outcome}", flush=True)
        if attempt.number != job.attempt:  # another launch or start has taken it over
            return []
        starts, ended = self.begun[job.folder], {}
        if attempt.cancelled is not None:
            ended = {"outcome": "stopped", "message": "cancelled"}
        elif not _over(attempt) and not self.stop.is_set():
            words = NO_WORDS
            if attempt.started is None:
                words = last_words(job.run.submitit_folder, _words_of(job))
            if starts <= RESTARTS and not words.raised:
                return [job]
            message = f"its process ended without a word {starts} times (exit status {slot.process.returncode})"
            ended = {"outcome": "failed", "message": message, "cause": str(Cause.LOST)}
            if words.lines:
                ended |= {"message": f"ended before it began: {words}", **describe_words(words)}
        if ended and attempt.ended is None:  # the process has not recorded its end
            with contextlib.suppress(SupersededError):
                job.hold.record("ended", {**ended, "time": now()})
        return []


@contextlib.contextmanager
def _put_aside() -> Iterator[None]:
    """Let an error of the disk or of a new process end only this cell's turn; the next launch starts the cell again."""
    try:
        yield
    except OSError as error:
        print(f"[{now()}] put aside: {error}", flush=True)


def _ignore_stop_signals() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":  # the process of one cell: run the job that the pool hands over
    pickle.load(sys.stdin.buffer)()
