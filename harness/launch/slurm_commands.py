"""Slurm by its own commands: what is queued, what it allows, submit, cancel. The policy is in `harness.launch.slurm`.

The launcher makes a token for each array: sbatch takes it as the array's comment, and every claim holds the token and
the index of its task. A job is found by its recorded number first, whatever its name and comment have become; by the
token when the launcher ended before it could write down the number. One squeue answers for a whole study, a second one
for recorded numbers that the first does not list. sacct is asked only about jobs that squeue no longer lists.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

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
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REVOKED",
    "TIMEOUT",
}

#: States of jobs that wait, beside PENDING: requeued ones, some of them held.
_WAITING = {"REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}

#: What a command says when slurmctld, munge or the network between did not answer, in lower case.
_NO_ANSWER = (
    "unable to contact slurm controller",
    "timed out",
    "connection refused",
    "connection failure",
    "zero bytes were",
    "no route to host",
    "munge",
    "authentication",
    "not responding",
    "standby mode",
    "could not establish a configuration source",
)

#: Variables that change what Slurm's commands list, submit or cancel. Those of sbatch win over the script's own lines.
_MISLEADING = re.compile(
    "SQUEUE_.*|SACCT_.*|SCANCEL_.*"
    "|SBATCH_(ARRAY_INX|COMMENT|DEPENDENCY|ERROR|JOB_NAME|NO_REQUEUE|OPEN_MODE|OUTPUT|REQUEUE|SIGNAL|TIMELIMIT|WAIT)"
)

#: The fields of a job that squeue lists: number, state, reason, comment, name, batch script.
_FIELDS = ["%i", "%T", "%r", "%k", "%j", "%o"]

#: A token, as the launcher makes it.
_TOKEN = re.compile("[0-9a-f]{12}")


class SlurmError(RuntimeError):
    """A command of Slurm failed; the message is Slurm's own, in one line."""


class SlurmDownError(SlurmError):
    """Slurm gave no answer, so it is not known whether the command took effect."""


def _error(words: str) -> SlurmError:
    """The error for Slurm's message, without the name of the command in front of each line."""
    lines = [line.partition("error: ")[2] or line for line in words.splitlines() if line.strip()]
    line = "; ".join(" ".join(part.split()) for part in dict.fromkeys(lines)) or "no reason given"
    return SlurmDownError(line) if any(sign in line.lower() for sign in _NO_ANSWER) else SlurmError(line)


def _run(*command: str) -> str:
    plain = {key: value for key, value in os.environ.items() if not _MISLEADING.fullmatch(key)}
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMMAND_SECONDS, check=False, env=plain)
    except FileNotFoundError:
        raise SlurmDownError(f"{command[0]}: no such command here; is this a Slurm machine?") from None
    except OSError as error:
        raise SlurmDownError(f"{command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise SlurmDownError(f"{command[0]}: no answer within {COMMAND_SECONDS:.0f} s") from None
    # a comment may be in any encoding
    out, err = (text.decode("utf-8", errors="replace") for text in (done.stdout, done.stderr))
    if done.returncode:
        raise _error(err)
    return out


def job_name(study: str) -> str:
    """The name of all jobs of a study."""
    return f"dit-{study}"


def max_array_size() -> int:
    """The largest number of tasks that the cluster takes in one array.

    Raises:
        SlurmError: the cluster does not say.
    """
    found = re.search(r"^\s*MaxArraySize\s*=\s*(\d+)\s*$", _run("scontrol", "show", "config"), re.MULTILINE)
    if found is None:
        raise SlurmDownError("scontrol show config: no MaxArraySize in the answer")
    return max(1, int(found[1]))


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, by number; a job that has ended already is no error.

    Raises:
        SlurmError: Slurm refused, or did not answer.
    """
    if jobs:
        _run("scancel", "--quiet", *jobs)


@dataclass(frozen=True)
class _Listed:
    """A job as squeue lists it. Its name and comment may be anybody's words."""

    seen: Seen
    comment: str
    name: str
    script: str

    def is_of(self, token: str, name: str) -> bool:
        """Whether a job with a recorded number is still the one that was submitted with this token.

        Anybody may change name and comment, but not the script. Slurm counts from 1 again when it has lost its state:
        the number then belongs to somebody else's job, or to another one of this study, which has its own token.
        """
        if self.comment == token:
            return True
        return not _TOKEN.fullmatch(self.comment) and (self.name == name or "/submitit/" in self.script)


def _squeue(*options: str) -> list[_Listed]:
    """The jobs that squeue lists.

    Raises:
        SlurmError: it gave no answer, or one that breaks off or cannot be read.
    """
    mark = f"@{uuid.uuid4().hex}@"  # in nobody's comment; one before each field, and one more at the end of the job
    out = _run("squeue", "--array", "--states=all", *options, f"--format={mark}{mark.join(_FIELDS)}{mark}")
    words = out.split(mark)
    jobs = list(zip(*[iter(words[1:])] * (len(_FIELDS) + 1), strict=False))
    # the first one is the header, one a cluster: without it there is no answer. What is between two jobs is of neither
    if not jobs or (len(words) - 1) % (len(_FIELDS) + 1):
        raise SlurmDownError("squeue: the answer is empty, or breaks off")
    return [_listed(*values) for *values, _ in jobs if values[0] != jobs[0][0]]


def _listed(number: str, word: str, reason: str, comment: str, name: str, script: str) -> _Listed:
    state = _state(word)
    if not re.fullmatch(r"\d+(_\d+)?(\+\d+)?", number) or not re.fullmatch("[A-Z_]+", state):
        raise SlurmDownError(f"squeue: {number!r} {word!r} cannot be read as the number of a job and its state")
    reason = "" if reason == "None" else reason
    if state in _WAITING:
        state, reason = "PENDING", f"{state} {reason}".strip()
    return _Listed(Seen(state not in _ENDED, state, reason, number), comment, name, script)


def _state(word: str) -> str:
    """The name of a state, without who caused it, and whole: a name that was cut short ends in a plus."""
    name, plus, _ = word.partition(" ")[0].partition("+")
    whole = [state for state in (*_ENDED, "COMPLETING") if plus and state.startswith(name)]
    return whole[0] if len(whole) == 1 else name


@dataclass
class Queue:
    """What Slurm knows about the jobs of one study. Reads only, and keeps an answer for `QUEUE_SECONDS`."""

    study: str
    #: Why Slurm did not answer, in its own words; None when it answered, or was not asked yet.
    error: str | None = None
    _jobs: dict[str, _Listed] = field(default_factory=dict)  # by number
    _tokens: dict[tuple[str, int], Seen] = field(default_factory=dict)  # by comment and index in the array
    _asked_at: float | None = None
    _tokens_asked: set[str] = field(default_factory=set)
    _strays: set[str] = field(default_factory=set)  # arrays that were once not listed by name
    _strays_asked: set[str] = field(default_factory=set)  # in this answer

    def look(self, ticket: Ticket) -> Seen:
        """The state of the job with this ticket (see `harness.launch.slurm`)."""
        token, number = str(ticket["token"]), ticket.get("job")
        if self._asked_at is None or time.monotonic() - self._asked_at > QUEUE_SECONDS:
            self._ask()
        elif self.error is None and not number and not self._find(ticket) and token not in self._tokens_asked:
            self._ask()  # the array may be younger than the answer: it is missing when a new answer lacks it too
        self._tokens_asked.add(token)
        if self.error is None and number and not self._find(ticket):
            self._ask_for(number)
        if self.error is not None:
            return Seen(None)
        return self._find(ticket) or self._accounting.get(str(number), Seen(False))

    def forget(self) -> None:
        """Drop the answer, so that the next look asks Slurm."""
        self._asked_at = None

    def _find(self, ticket: Ticket) -> Seen | None:
        """The job in the answer: by its number, else by its token."""
        token, job = str(ticket["token"]), self._jobs.get(str(ticket.get("job")))
        if job is not None and job.is_of(token, job_name(self.study)):
            return job.seen
        return self._tokens.get((token, int(ticket["index"])))

    def _ask(self) -> None:
        self._jobs, self._tokens = {}, {}
        self._strays_asked.clear()
        self._take(f"--name={job_name(self.study)}")
        self._asked_at = time.monotonic()

    def _ask_for(self, number: str) -> None:
        """Ask for a job that has another name now, and for all others that once had; not twice in one answer."""
        self._strays.add(number.partition("_")[0])
        if not self._strays <= self._strays_asked:
            self._take(f"--jobs={','.join(sorted(self._strays))}")
            self._strays_asked |= self._strays

    def _take(self, question: str) -> None:
        """Add what squeue lists."""
        self.error = None
        try:
            jobs = _squeue(question)
        except SlurmError as error:
            # what squeue says when all it was asked for has ended long ago
            self.error = None if "invalid job id" in str(error).lower() else str(error)
            return
        for job in jobs:
            number = str(job.seen.job)
            self._jobs[number] = job
            # a single job is no array, and has no index
            self._tokens[job.comment, int(number.partition("_")[2].partition("+")[0] or 0)] = job.seen

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
        return {job: Seen(False, _state(word), "", job) for job, word in pairs}


@contextlib.contextmanager
def _plain_environment(parameters: Mapping[str, object]) -> Iterator[None]:
    """Without the variables by which sbatch would overrule these parameters; those of what is left open stay."""
    given = {f"SBATCH_{key.upper()}" for key, value in parameters.items() if value is not None}
    given |= {f"{key}_PER_NODE" for key in given}  # of the memory
    kept = {key: os.environ.pop(key) for key in list(os.environ) if key in given or _MISLEADING.fullmatch(key)}
    try:
        yield
    finally:
        os.environ.update(kept)


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
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_REQUEUES)
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
        setup=_leave_work(jobs, folder, token, resources.time),
        additional_parameters={"requeue": True},  # some clusters' default is false
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()), _plain_environment(executor.parameters):  # submitit prints, too
            return [str(job.job_id) for job in executor.submit_array(jobs)]
    except (FailedJobError, FailedSubmissionError) as error:
        raise _error(str(error)) from None


def _leave_work(jobs: Sequence[Job | Pool], folder: Path, token: str, minutes: int) -> list[str]:
    """Leave each task's work under the token, and return the lines of the script by which the task takes it.

    Submitit puts the work under the job's number when sbatch has told it; a task that starts without would wait in vain
    when the launcher was killed in between, or sbatch had no answer.
    """
    from submitit.helpers import DelayedSubmission

    folder.mkdir(parents=True, exist_ok=True)
    for index, job in enumerate(jobs):
        work = DelayedSubmission(job)
        work.set_timeout(minutes, _REQUEUES)
        work.dump(folder / f"{token}_{index}.pkl")
    there = shlex.quote(str(folder.absolute()))
    return [
        f"work={there}/{token}_${{SLURM_ARRAY_TASK_ID:-0}}.pkl",
        "job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
        f'[ ! -e "$work" ] || mv -n "$work" {there}/"$job"_submitted.pkl',
        'rm -f "$work"',
    ]


def remove_work(folder: Path, token: str) -> None:
    """Remove what was left for the tasks of an array that Slurm does not have."""
    for path in folder.glob(f"{token}_*.pkl"):
        path.unlink(missing_ok=True)
