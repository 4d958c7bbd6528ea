"""Slurm by its own commands: what is queued, what it allows, submit, cancel. The policy is in `harness.launch.slurm`.

The launcher makes a token for each array: sbatch takes it as the array's comment, and every claim holds the token and
the index of its task. So squeue tells for each claim whether Slurm has its job, even when the launcher died before it
could write down the job's number. One squeue answers for a whole study. sacct is asked only about jobs that squeue no
longer lists; its answer is shown to the user and decides nothing.
"""

from __future__ import annotations

import contextlib
import io
import math
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.launch import imports
from harness.runs.attempts import Seen
from harness.runs.records import Ticket
from harness.spec.resources import Resources

if TYPE_CHECKING:
    from harness.launch.job import Job
    from harness.launch.slurm_pool import Pool


#: Longest wait for one of Slurm's commands, in seconds; without slurmctld they give up after about 10 s by themselves.
COMMAND_SECONDS = 30.0

#: How long an answer of squeue is used, in seconds.
QUEUE_SECONDS = 3.0

#: Slurm sends USR2 so many seconds before the time limit, or up to a minute earlier.
SIGNAL_SECONDS = 90

#: How often a cell may reach its time limit; it writes a checkpoint each time, and so makes progress.
_REQUEUES = 1000

#: States of squeue and sacct after which nothing runs; CANCELLED may be followed by "by <user>".
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}

_NO_ANSWER = ("Unable to contact slurm controller", "Socket timed out", "Connection refused", "Zero Bytes were")


class SlurmError(RuntimeError):
    """A command of Slurm failed; the message is Slurm's own, in one line."""


class SlurmDownError(SlurmError):
    """Slurm gave no answer, so it is not known whether the command took effect."""


def _error(words: str) -> SlurmError:
    """The error for Slurm's message, without the name of the command in front of each line."""
    lines = [line.partition("error: ")[2] or line for line in words.splitlines() if line.strip()]
    line = "; ".join(" ".join(part.split()) for part in dict.fromkeys(lines)) or "no reason given"
    return SlurmDownError(line) if any(sign in line for sign in _NO_ANSWER) else SlurmError(line)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        raise SlurmDownError(f"{command[0]}: no such command here; is this a Slurm machine?") from None
    except subprocess.TimeoutExpired:
        raise SlurmDownError(f"{command[0]}: no answer within {COMMAND_SECONDS:.0f} s") from None
    if done.returncode:
        raise _error(done.stderr)
    return done.stdout


def job_name(study: str) -> str:
    """The name of all jobs of a study."""
    return f"dit-{study}"


def max_array_size() -> int:
    """The largest number of tasks that the cluster takes in one array.

    Raises:
        SlurmError: the cluster does not say.
    """
    for line in _run("scontrol", "show", "config").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize":
            return max(1, int(value))
    return 1


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, by number; a job that has ended already is no error.

    Raises:
        SlurmError: Slurm refused, or did not answer.
    """
    if jobs:
        _run("scancel", "--quiet", *jobs)


@dataclass
class Queue:
    """What Slurm knows about the jobs of one study. Reads only, and keeps an answer for `QUEUE_SECONDS`."""

    study: str
    #: Why Slurm did not answer, in its own words; None when it answered, or was not asked yet.
    error: str | None = None
    _jobs: dict[tuple[str, int], Seen] = field(default_factory=dict)
    _asked_at: float | None = None
    _tokens_asked: set[str] = field(default_factory=set)

    def look(self, ticket: Ticket) -> Seen:
        """The state of the job with this ticket (see `harness.launch.slurm`)."""
        key = str(ticket["token"]), int(ticket["index"])
        if self._asked_at is None or time.monotonic() - self._asked_at > QUEUE_SECONDS:
            self._ask()
        elif self.error is None and key not in self._jobs and key[0] not in self._tokens_asked:
            self._ask()  # the array may be younger than the answer: it is missing when a new answer lacks it too
        self._tokens_asked.add(key[0])
        if self.error is not None:
            return Seen(None)
        return self._jobs.get(key) or self._accounting.get(str(ticket.get("job")), Seen(False))

    def forget(self) -> None:
        """Drop the answer, so that the next look asks Slurm."""
        self._asked_at = None

    def _ask(self) -> None:
        self.error, self._jobs, name = None, {}, f"--name={job_name(self.study)}"
        try:
            listing = _run("squeue", "--noheader", "--array", "--states=all", name, "--format=%k|%K|%i|%T|%r")
        except SlurmError as error:
            self.error = str(error)
            listing = ""
        self._asked_at = time.monotonic()
        for line in listing.splitlines():
            token, index, job, word, reason = line.split("|", 4)
            # a single job is no array, and has no index
            self._jobs[token, int(index) if index.isdigit() else 0] = _seen(word, reason, job)

    @cached_property
    def _accounting(self) -> dict[str, Seen]:
        """What sacct remembers of ended jobs, by number; nothing where there is no accounting. Asked once."""
        name = f"--name={job_name(self.study)}"
        try:
            listing = _run("sacct", "-n", "-X", "-P", "-S", "now-30days", name, "-o", "JobID,State")
        except SlurmError:
            return {}
        pairs = [line.partition("|")[::2] for line in listing.splitlines()]
        # squeue does not list these jobs any more, so they have ended whatever the accounting says
        return {job: Seen(False, word.split()[0] if word else "", "", job) for job, word in pairs}


def _seen(word: str, reason: str, job: str) -> Seen:
    return Seen(word.split()[0] not in _ENDED, word.split()[0], "" if reason == "None" else reason, job)


def submit(
    jobs: Sequence[Job | Pool], resources: Resources, folder: Path, study: str, token: str, after: str | None
) -> list[str]:
    """Submit an array with a task for each job; returns their numbers ("17_0", ..., or "17" for a single one).

    Args:
        jobs: claimed attempts, or pools of them.
        resources: what a cell needs; a pool asks for as much for each of its slots.
        folder: where submitit keeps its files; shared by all nodes.
        study: name of the study, which gives the jobs their name.
        token: the comment of the array.
        after: number of an array that has to end first; None: start at once.

    Raises:
        SlurmError: Slurm refused, or did not answer.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_REQUEUES, python=imports.python())
    except RuntimeError as error:
        raise SlurmDownError(str(error)) from None
    slots = resources.cells_per_job or 1
    cores = slots * resources.threads
    gpus = math.ceil(slots / resources.cells_per_gpu) * resources.gpus_wanted
    executor.update_parameters(  # None leaves an option out
        partition=resources.partition,
        account=resources.account,
        qos=resources.qos,
        constraint=resources.constraint,
        mem=None if resources.mem_gb is None else f"{round(slots * resources.mem_gb * 1024)}M",
        gpus_per_node=gpus or None,
        dependency=None if after is None else f"afterany:{after}",
        job_name=job_name(study),
        comment=token,
        time=resources.time,
        # at most half of a short time limit is given up; Slurm checks the time every 30 s only
        signal_delay_s=min(SIGNAL_SECONDS, resources.time * 30),
        nodes=resources.nodes,
        ntasks_per_node=resources.ranks,
        cpus_per_task=cores,
        # srun does not inherit --cpus-per-task since Slurm 22.05; a killed rank has to end those that wait for it
        srun_args=[f"--cpus-per-task={cores}", "--kill-on-bad-exit=1"],
        array_parallelism=resources.max_parallel or len(jobs),
        stderr_to_stdout=True,
        additional_parameters={"requeue": True},  # some clusters' default is false
    )
    try:
        # submitit also prints the errors that it raises
        with contextlib.redirect_stderr(io.StringIO()), imports.for_jobs():
            return [str(job.job_id) for job in executor.submit_array(jobs)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise _error(str(error)) from None
