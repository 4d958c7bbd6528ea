"""Slurm by its own commands: what it allows, submit, cancel. What is queued is in `harness.launch.slurm_queue`."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.launch import imports
from harness.spec.resources import Resources

#: What a task of an array calls; an object with a method `checkpoint`, by which submitit requeues it.
Work = Callable[[], object]


#: Longest wait for one of Slurm's commands, in seconds; without slurmctld they give up after about 10 s by themselves.
COMMAND_SECONDS = 30.0

#: Slurm sends USR2 so many seconds before the time limit, or up to a minute earlier.
SIGNAL_SECONDS = 90

#: How often a cell may reach its time limit; it writes a checkpoint each time, and so makes progress.
_REQUEUES = 1000

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
    "standby mode",
    "could not establish a configuration source",
)

#: Variables that change what Slurm's commands list, submit or cancel. Those of sbatch win over the script's own lines.
_MISLEADING = re.compile(
    "SQUEUE_.*|SACCT_.*|SCANCEL_.*"
    "|SBATCH_(ARRAY_INX|COMMENT|DEPENDENCY|ERROR|JOB_NAME|NO_REQUEUE|OPEN_MODE|OUTPUT|REQUEUE|SIGNAL|TIMELIMIT|WAIT)"
)


class SlurmError(RuntimeError):
    """A command of Slurm failed; the message is Slurm's own, in one line."""


class SlurmDownError(SlurmError):
    """Slurm gave no answer, so it is not known whether the command took effect."""


def _error(words: str) -> SlurmError:
    """The error for Slurm's message, without the name of the command in front of each line."""
    lines = [line.partition("error: ")[2] or line for line in words.splitlines() if line.strip()]
    line = "; ".join(" ".join(part.split()) for part in dict.fromkeys(lines))
    down = not line or any(sign in line.lower() for sign in _NO_ANSWER)  # a command that was killed says nothing
    return SlurmDownError(line or "no reason given") if down else SlurmError(line)


def run(*command: str) -> str:
    """What a command prints.

    Raises:
        SlurmError: it failed, is missing, or gave no answer.
    """
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
    found = re.search(r"^\s*MaxArraySize\s*=\s*(\d+)\s*$", run("scontrol", "show", "config"), re.MULTILINE)
    if found is None:
        raise SlurmDownError("scontrol show config: no MaxArraySize in the answer")
    return max(1, int(found[1]))


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, by number; a job that has ended already is no error.

    Raises:
        SlurmError: Slurm refused, or did not answer.
    """
    if jobs:
        run("scancel", "--quiet", *jobs)


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
    jobs: Sequence[Work], resources: Resources, folder: Path, study: str, token: str, after: str | None
) -> list[str]:
    """Submit an array with a task for each job; returns their numbers ("17_0", ..., or "17" for a single one).

    Args:
        jobs: claimed attempts, pools of them, or an encoding.
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
        setup=_leave_work(jobs, folder, token, resources.time),
        additional_parameters={"requeue": True},  # some clusters' default is false
    )
    try:
        # submitit also prints the errors that it raises
        with contextlib.redirect_stderr(io.StringIO()), imports.for_jobs(), _plain_environment(executor.parameters):
            return [str(job.job_id) for job in executor.submit_array(jobs)]
    except FailedJobError as error:
        raise _error(str(error)) from None
    except FailedSubmissionError:  # sbatch ended well
        raise SlurmDownError("the answer of sbatch has no number of a job") from None
    except FileNotFoundError as error:
        if error.filename != "sbatch":
            raise
        raise SlurmError("sbatch: no such command here") from None


def _leave_work(jobs: Sequence[Work], folder: Path, token: str, minutes: int) -> list[str]:
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
