"""`dit-harness encode`: in the foreground, on ranks of this machine, or as a job of Slurm, which goes on by itself.

A job is recorded before it is submitted, as cells are claimed: no second `encode` submits another while Slurm has it.
"""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from harness.data import autoencoders, latents, sources
from harness.data.dataset import Source
from harness.errors import CellFailedError, InputError
from harness.launch.encoding import Encoding, Submitted
from harness.launch.executor import Executor, NoAnswerError, executor_named
from harness.launch.extractors import require_extractors, train_extractors, wanted_extractors
from harness.launch.local import STOP_SECONDS, Child, start
from harness.launch.prepare import Latent, latent_data
from harness.launch.signals import held, interrupt_no_more
from harness.launch.view import Say
from harness.processes import HeldError, exclusive, file_lock, is_alive, now, signal_process
from harness.runs.attempts import Scheduler, Seen
from harness.runs.study import Study
from harness.runs.words import last_words
from harness.training.hooks import Hooks, Report, StoppedError
from sweeps.grid import Sweep

#: Longest wait for another `encode` that is just submitting, in seconds.
_LOCK_SECONDS = 120.0


def encode_all(sweep: Sweep, study: Study, hooks: Hooks, say: Say, *, wait: bool = False) -> None:
    """Encode every data set of the sweep that is not encoded yet; resume what was interrupted.

    On Slurm each is a job; without `wait` this returns when all are submitted.

    Raises:
        InputError: an autoencoder, the data or the device is missing or does not fit; another process encodes it just
            now; Slurm refuses or does not answer.
        CellFailedError: a job failed.
        StoppedError: somebody asked the ranks to stop; or the following was stopped, and the job goes on.
        KeyboardInterrupt: after Ctrl-C and the like, when ranks of this machine have stopped.
    """
    executor = executor_named(sweep.resources.executor)
    gpus = [] if sweep.resources.device == "cpu" else executor.gpus()
    executor.check(sweep, gpus)
    require_extractors(sweep, study, wanted := wanted_extractors(sweep))
    if not executor.detached:
        train_extractors(sweep, study, wanted, hooks, say)
    works = [_encoding(latent, gpus) for latent in latent_data(sweep, study)]
    jobs = [job for work in works if (job := _begin(work, executor, hooks, say)) is not None]
    for job in jobs:
        if not wait:
            say(f"{job.where()}; how far it is: the same command; to follow: with --wait")
            continue
        try:
            _follow(job, executor.poll_seconds, hooks, say)
        except KeyboardInterrupt:
            raise StoppedError(f"the {job.executor} job goes on") from None


def _encoding(latent: Latent, gpus: list[str]) -> Encoding:
    """The work on a data set, for a process that may start in another folder.

    Raises:
        InputError: the autoencoder or the data is missing or does not fit.
    """
    shared = latent.shared
    vae = autoencoders.find(latent.data, shared, latent.sweep, download=True)
    sources.check_available(latent.data, Source.of(latent.resources, shared.images_folder))
    gpu = ",".join(gpus[: latent.resources.ranks]) or None
    return Encoding(**vars(latent), vae=str(vae.resolve()), token=uuid.uuid4().hex[:12], gpu=gpu)


@dataclass(frozen=True)
class _Job:
    """A job that goes on by itself.

    Attributes:
        work: what it encodes; of a job that another command has submitted, the same data set.
        submitted: its record.
        scheduler: of its executor.
    """

    work: Encoding
    submitted: Submitted
    scheduler: Scheduler

    @property
    def executor(self) -> str:
        """The name of its executor, in a message."""
        return self.submitted["executor"].capitalize()

    def seen(self) -> Seen:
        """What the scheduler says of it."""
        return self.scheduler.look(self.work.ticket(self.submitted))

    def where(self, seen: Seen | None = None) -> str:
        """Where it is, in words."""
        seen = seen or self.seen()
        name = f"{self.work.folder}: {self.executor} job {self.submitted.get('job') or seen.job}"
        if seen.alive is None:
            return f"{name}: {self.executor} does not answer: {self.scheduler.error}"
        if seen.word == "PENDING":
            return f"{name} is queued{f' ({seen.reason})' if seen.reason else ''}"
        at = self.work.records.progress()
        return f"{name} is running{'' if at is None or not at['total'] else ': {stage} {done}/{total}'.format(**at)}"

    def settle(self, seen: Seen, say: Say) -> None:
        """Say how it ended, and forget it.

        Raises:
            CellFailedError: it failed, or ended early.
        """
        records = self.work.records
        ended, number = records.ended(self.submitted["token"]), self.submitted.get("job") or seen.job
        records.forget()
        if ended is not None and ended["outcome"] == "done":
            say(f"{self.work.folder}: {ended['message']}")
        elif ended is not None or number is not None:  # else it was never submitted
            message = f"failed: {ended['message']}" if ended is not None and ended["outcome"] == "failed" else ""
            words = last_words(records.submitit_folder, str(number)) if ended is None else ""
            early = f"ended early ({seen.word or 'without a word'}){f': {words}' if str(words) else ''}"
            log = records.log if ended is not None else records.submitit_folder
            raise CellFailedError(
                f"{self.work.folder}: {self.executor} job {number} {message or early} (log: {log}); "
                "the same command goes on after the last whole shard"
            )


def _begin(work: Encoding, executor: Executor, hooks: Hooks, say: Say) -> _Job | None:
    """Encode here, or submit a job unless there is one; returns the job that is queued or running.

    Raises:
        InputError: another process is at work on the folder; Slurm refuses or does not answer.
        CellFailedError: the job that was submitted earlier has failed (the next call submits anew); or a rank here has.
    """
    records = work.records
    records.folder.mkdir(parents=True, exist_ok=True)
    with _alone(work):
        if (job := _known_job(work)) is not None:
            seen = job.seen()
            if seen.alive is None:
                raise InputError(f"{job.where(seen)}; the same command asks later")
            if seen.alive:
                return job
            job.settle(seen, say)
        if line := work.finished():
            say(f"{work.folder}: {line}")
            return None
        if executor.detached:
            if latents.being_encoded(work.data, work.shared):
                raise InputError(f"{work.folder}: another dit-harness encode is at work on it; wait for it")
            return _submit(work, executor)
    line = work.in_process(hooks, say) if work.resources.world == 1 else _on_ranks(work, executor, hooks)
    say(f"{work.folder}: {line}")
    return None


@contextlib.contextmanager
def _alone(work: Encoding) -> Iterator[None]:
    """In here no other `encode` looks for a job of this data set, or submits one.

    Raises:
        InputError: another one does.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(work.records.lock_file, "dit-harness encode", _LOCK_SECONDS))
        except HeldError as error:
            raise InputError(f"{work.folder}: {error} is just looking at it; again in a moment") from None
        yield


def _known_job(work: Encoding) -> _Job | None:
    """The job of this data set that was submitted last, unless its end is known."""
    submitted = work.records.submitted()
    if submitted is None:
        return None
    scheduler = executor_named(submitted["executor"]).scheduler(work.study)
    return None if scheduler is None else _Job(work, submitted, scheduler)


def _submit(work: Encoding, executor: Executor) -> _Job | None:
    """Record a job and submit it."""
    records = work.records
    submitted = Submitted(executor=work.resources.executor, token=work.token, time=now())
    records.submit(submitted)
    try:
        submitted["job"] = executor.submit_encoding(work)
    except NoAnswerError:  # the record stays: the next call asks whether there is a job
        raise
    except Exception:
        records.forget()
        raise
    records.submit(submitted)
    return _known_job(work)


def _follow(job: _Job, poll_seconds: float, hooks: Hooks, say: Say) -> None:
    """Show how far a job is until it has ended; the end of this process ends the following only.

    Raises:
        CellFailedError: it failed, or ended early.
    """
    watch, told = _Watch(job.work, hooks), ""
    while (seen := job.seen()).alive is not False:
        line = job.where(seen).partition(": ")[2].partition(": ")[0]
        if line != told:
            told = line
            say(f"{job.work.folder}: {line}" if seen.alive else f"{job.where(seen)}; waiting")
        if seen.word != "PENDING":
            watch.look()
        time.sleep(poll_seconds)
    job.settle(seen, say)


def _on_ranks(work: Encoding, executor: Executor, hooks: Hooks) -> str:
    """Encode on ranks of this machine; returns what there is to say.

    Raises:
        InputError: another process is at work on the folder.
        CellFailedError: a rank failed.
        StoppedError: somebody asked the ranks to stop.
        KeyboardInterrupt: the user did, and they have stopped.
    """
    records = work.records
    with exclusive(work.folder, "dit-harness encode"):
        pass  # or it says who has it
    with held():
        child = start(work, records.submitit_folder, work.token, work.resources.ranks)
    watch = _Watch(work, hooks)
    try:
        while is_alive(child.process):
            watch.look()
            time.sleep(executor.poll_seconds)
    except KeyboardInterrupt:
        interrupt_no_more()
        _stop(child, executor.poll_seconds)
        raise
    ended = records.ended(work.token)
    if ended is None:
        words = last_words(records.submitit_folder, child.number)
        raise CellFailedError(
            f"{work.folder}: the ranks ended {f'early: {words}' if str(words) else 'without a word'} "
            f"(log: {records.submitit_folder})"
        )
    if ended["outcome"] == "stopped":
        raise StoppedError(ended["message"])
    if ended["outcome"] == "failed":
        raise CellFailedError(f"{work.folder}: {ended['message']} (log: {records.log})")
    return ended["message"]


def _stop(child: Child, poll_seconds: float) -> None:
    """Ask the ranks to stop, and wait for them, `STOP_SECONDS` at most."""
    signal_process(child.process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while is_alive(child.process) and time.monotonic() < deadline:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(poll_seconds)


class _Watch:
    """Reports how far a job is, by its file, when that has changed."""

    def __init__(self, work: Encoding, hooks: Hooks) -> None:
        self._records, self._hooks = work.records, hooks
        self._last: Report | None = None

    def look(self) -> None:
        """Look at the file."""
        at = self._records.progress()
        if at is not None and at["total"] and at != self._last:
            self._last = at
            self._hooks.report(at)
