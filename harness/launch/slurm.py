"""The Slurm executor: it claims cells, submits them as arrays, and follows them when asked to.

Policy. A cell is claimed before sbatch runs. The claim holds a ticket: the token that is the array's comment, and the
cell's index in the array. When a launcher dies in between, or sbatch gives no answer, squeue tells which claims have a
job. A requeued job (USR2 before the time limit, preemption, a lost node) claims an attempt of its own. When Slurm
refuses jobs, their claims are removed; without an answer they stay, since the job may still come: it then finds that a
later attempt has the cell. A launch never cancels a job, not even when the user ends a launch that waits.
"""

from __future__ import annotations

import itertools
import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import CellFailedError, InputError
from harness.files import fsync
from harness.launch import slurm_commands as slurm
from harness.launch.executor import Executor, Launch, NoAnswerError
from harness.launch.job import Job
from harness.launch.payload import Placed
from harness.launch.signals import StopFlag
from harness.launch.site import divided
from harness.launch.slurm_pool import Pool, claim_start
from harness.launch.slurm_queue import Queue
from harness.processes import now
from harness.runs.attempts import Attempt
from harness.runs.cellruns import CellRun
from harness.runs.records import Ticket
from harness.runs.study import Study
from harness.spec.resources import PATHS, Resources

if TYPE_CHECKING:
    from harness.launch.encoding import Encoding


def _queue(study: Study) -> Queue:
    """The queue from which the states of the study's cells are read."""
    queue = study.schedulers.get("slurm")
    return queue if isinstance(queue, Queue) else Queue(study.name)


def _submit_array(
    launch: Launch, items: list[CellRun], resources: Resources, limit: int, after: str | None
) -> str | None:
    """Claim cells, submit them, and record the jobs' numbers.

    Args:
        launch: the launch.
        items: the cells.
        resources: of each of them.
        limit: largest number of tasks in an array.
        after: number of the array that has to end first; None: start at once.

    Returns:
        The number of the array; None when other launches had claimed all cells.
    """
    study = launch.study
    token, queue, slots = uuid.uuid4().hex[:12], _queue(study), resources.cells_per_job
    pools = None if slots is None else min(resources.max_parallel or 1, -(-len(items) // slots), limit)
    claimed: list[tuple[CellRun, Job]] = []
    for item in items:
        ticket: Ticket = {"token": token, "index": len(claimed), "restarts": 0, "study": study.name}
        if pools is not None:  # in turn, so that each pool gets some of the expensive cells, which come first
            ticket |= {"index": len(claimed) % pools, "pool": True}
        if job := launch.claim(item, ticket, durable=False):
            claimed.append((item, replace(job, resources=_absolute(resources), pooled=pools is not None)))
    if not claimed:
        return None
    jobs = [job for _, job in claimed]
    fsync(study.runs_folder)
    for job in jobs:
        job.run.sync_claim(job.attempt)
    work: list[Job | Pool] = list(jobs)
    if slots is not None and pools is not None:
        work = [Pool(tuple(jobs[index::pools]), slots) for index in range(min(pools, len(jobs)))]
    numbers = _hand_over(launch, _Array(work, claimed, resources, token, after))
    array = numbers[0].partition("_")[0]
    where = f"Slurm job {array}" if slots is None else f"Slurm job {array} of {len(numbers)} x {slots} slots"
    launch.view.note(f"{len(claimed)} cell{'s' * (len(claimed) != 1)} submitted as {where}")
    queue.forget()
    for item, _ in claimed:
        item.refresh()
    return array


@dataclass(frozen=True)
class _Array:
    """Claimed cells, and the jobs for them, which run on the same resources.

    Attributes:
        work: what each job calls.
        claimed: the cells, each with its own job.
        resources: of a cell.
        token: the array's comment.
        after: number of the array that has to end first; None: none.
    """

    work: list[Job | Pool]
    claimed: list[tuple[CellRun, Job]]
    resources: Resources
    token: str
    after: str | None


def _hand_over(launch: Launch, array: _Array) -> list[str]:
    """Submit an array, and record its numbers; returns them.

    Raises:
        _UnknownError: Slurm did not answer, and squeue lists no job; the claims stay.
        SlurmError: Slurm refused; the claims are removed.
    """
    study, claimed, token = launch.study, array.claimed, array.token
    jobs = [job for _, job in claimed]
    queue = _queue(study)
    try:
        numbers = slurm.submit(array.work, array.resources, study.submitit_folder, study.name, token, array.after)
    except slurm.SlurmError as error:
        refused = not isinstance(error, slurm.SlurmDownError)
        numbers = _found(
            queue, token, len(array.work), over=not refused
        )  # a refused job is listed for a while as failed
        absent = queue.error is None
        if not numbers and absent and refused:
            _release(claimed, study, token)
            raise
        _record(jobs, numbers)
        if not numbers:
            for item, _ in claimed:
                item.refresh()
            raise _UnknownError(error, len(claimed), absent=absent) from None
        launch.view.note(f"sbatch: {error}; but squeue lists the job")
        return numbers
    except BaseException as error:  # Ctrl-C too, which may come before or after Slurm has taken the jobs
        numbers = _found(queue, token, len(array.work))
        if isinstance(error, Exception) and not numbers and queue.error is None:
            _release(claimed, study, token)
        else:
            _record(jobs, numbers)
        raise
    _record(jobs, numbers)
    return numbers


class _Group(NamedTuple):
    """Cells with the same resources, in which `max_parallel` is the share of these cells."""

    items: list[CellRun]
    resources: Resources


def _groups(launch: Launch, waiting: list[CellRun]) -> list[_Group]:
    """The cells by their resources, in the order of the first ones.

    `max_parallel` is divided among the groups by their cells; where there are more groups than that, they go in turn.
    """
    found: dict[Resources, list[CellRun]] = {}
    for item in waiting:
        found.setdefault(launch.resources_of(item), []).append(item)
    caps = divided(launch.sweep.resources.max_parallel, [len(items) for items in found.values()])
    if caps is None:
        return [_Group(items, resources) for resources, items in found.items()]
    return [
        _Group(items, resources.model_copy(update={"max_parallel": most}))
        for (resources, items), most in zip(found.items(), caps, strict=True)
    ]


class _UnknownError(slurm.SlurmDownError):
    """Slurm did not answer to sbatch, and squeue lists no job of it, or does not answer either."""

    def __init__(self, error: slurm.SlurmError, cells: int, *, absent: bool) -> None:
        super().__init__(str(error))
        noun = f"{cells} cell{'s' * (cells != 1)}"
        self.state = f"it has no job of {noun}" if absent else f"whether it took {noun} is not known"


def _found(queue: Queue, token: str, count: int, *, over: bool = True) -> list[str]:
    """The numbers of the array with this token, in order; none when Slurm has no such array, or does not answer.

    With `over`, of one that has ended too.
    """
    queue.forget()
    first = queue.look({"token": token, "index": 0})
    if first.job is None or not (first.alive or over):
        return []
    array, in_array, _ = first.job.partition("_")
    return [f"{array}_{index}" if in_array else array for index in range(count)]


def _record(jobs: list[Job], numbers: list[str]) -> None:
    """Record that the jobs were handed to sbatch, and their numbers where they are known."""
    output = str(Study(Path(jobs[0].results), jobs[0].study).submitit_folder)
    for job, number in zip(jobs, itertools.cycle(numbers or [""]), strict=False):
        submitted = {"process": None, "time": now(), "output": output, "token": job.token}
        submitted |= {"job_id": number} if number else {}
        job.run.record(job.attempt, "submitted", submitted, durable=False)  # squeue finds it by the ticket, too


def _release(claimed: list[tuple[CellRun, Job]], study: Study, token: str) -> None:
    """Remove the claims of jobs that Slurm has refused, and what was left for the jobs."""
    for item, job in claimed:
        item.run.release(job.attempt)
        item.refresh()
    slurm.remove_work(study.submitit_folder, token)


def _absolute(resources: Resources) -> Resources:
    """The resources with absolute paths, since a node may start in another folder."""
    paths = {name: getattr(resources, name) for name in PATHS}
    return resources.model_copy(update={key: str(Path(path).resolve()) for key, path in paths.items() if path})


_LATER = "nothing was submitted, the same command goes on later"


def _check(folder: Path) -> None:
    """Check that Slurm answers, and can write into this folder of submitit's.

    Raises:
        InputError: it would misread the folder's name.
        SlurmError: it does not answer.
    """
    path = str(folder.resolve())
    # sbatch replaces patterns such as %j in a path, and reads its options line by line
    if "%" in path or not path.isprintable():
        allowed = "allowed: a results folder without % and line breaks"
        raise InputError(f"{path!r}: sbatch cannot write there; {allowed}")
    slurm.max_array_size()


class SlurmExecutor(Executor):
    """Jobs of Slurm, submitted as arrays; a launch returns at once unless it is asked to wait."""

    detached = True
    poll_seconds = 3.0  # each look is one squeue, whatever the number of cells

    def prepare(self, launch: Launch) -> None:
        """Check that Slurm answers and can write where it is to write."""
        try:
            _check(launch.study.submitit_folder)
            queue = _queue(launch.study)
            if queue.error is not None:  # Slurm did not answer when the states were read
                queue.forget()
                for item in launch.items:
                    item.refresh()
            if queue.error is not None:
                raise slurm.SlurmDownError(queue.error)
        except slurm.SlurmError as error:
            raise InputError(f"Slurm does not answer: {error}; {_LATER}") from None

    def submit(self, launch: Launch, waiting: list[CellRun]) -> list[CellRun]:
        """Submit arrays of cells with the same resources, as large as the cluster allows; pools are one array each."""
        submitted = 0
        try:
            limit = slurm.max_array_size() if waiting else 1
            after, groups = None, _groups(launch, waiting)
            in_turn = len(groups) > (launch.sweep.resources.max_parallel or len(groups))
            for group in groups:
                after = after if in_turn else None
                size = len(group.items) if group.resources.cells_per_job is not None else limit
                for first in range(0, len(group.items), size):
                    chunk = group.items[first : first + size]
                    job = _submit_array(launch, chunk, group.resources, limit, after)
                    if job is not None and group.resources.max_parallel is not None:
                        after = job  # Slurm applies the cap to each array, so the next one has to wait
                    submitted += len(chunk)
        except slurm.SlurmDownError as error:
            state = f"{error.state}, " if isinstance(error, _UnknownError) else ""
            known = f"{state}{submitted} cells were submitted, the same command goes on later"
            raise NoAnswerError(f"Slurm does not answer: {error}; {known}", str(error)) from None
        except slurm.SlurmError as error:
            raise InputError(f"{launch.sweep.path}: Slurm refused: {error}; {submitted} cells were submitted") from None
        return waiting

    def submit_encoding(self, encoding: Encoding) -> str:
        """Submit the job of an encoding, under its token; returns its number."""
        folder, token = encoding.records.submitit_folder, encoding.token
        try:
            _check(folder)
        except slurm.SlurmError as error:
            raise InputError(f"Slurm does not answer: {error}; {_LATER}") from None
        # a cell's share of a job is no matter here
        resources = encoding.resources.model_copy(update={"cells_per_job": None, "cells_per_gpu": 1})
        results = str(Path(encoding.results).resolve())  # a node may start in another folder
        work = replace(encoding, resources=_absolute(resources), results=results)
        try:
            return slurm.submit([work], resources, folder, encoding.study, token, None)[0]
        except slurm.SlurmDownError as error:
            if numbers := _found(Queue(encoding.study), token, 1):
                return numbers[0]
            unknown = "whether it took the job is not known, the same command asks later"
            raise NoAnswerError(f"Slurm does not answer: {error}; {unknown}", str(error)) from None
        except slurm.SlurmError as error:
            slurm.remove_work(folder, token)
            raise InputError(f"{encoding.sweep}: Slurm refused: {error}; nothing was submitted") from None

    def runs_on_cpu(self, resources: Resources, gpus: list[str]) -> bool:
        """Where the job asks for no GPU."""
        return not resources.gpus_wanted

    def scheduler(self, study: str) -> Queue:
        """What Slurm knows of the jobs of a study."""
        return Queue(study)

    def cannot_cancel(self, attempt: Attempt) -> str:
        """Slurm cancels by the number of the job, from anywhere."""
        if attempt.job_id is not None:
            return ""
        silent = attempt.seen is not None and attempt.seen.alive is None
        return f"{'Slurm does not answer' if silent else 'is just being submitted'}; again in a moment"

    def cancel(self, attempts: list[Attempt], others: set[str | None]) -> str:
        """Cancel the jobs, except pools that other cells need: a pool stops its cancelled cells by itself."""
        try:
            slurm.cancel(sorted({str(attempt.job_id) for attempt in attempts if attempt.job_id not in others}))
        except slurm.SlurmError as error:
            return f"Slurm did not cancel every job: {error}; the same command again"
        return ""

    def set_gpus(self, job: Placed) -> None:
        """Slurm itself says which GPUs a job has."""

    def wants_gpu(self, job: Placed) -> bool:
        """Whether GPUs were asked for; Slurm must have given them."""
        import torch

        wanted = job.resources.gpus_wanted
        if wanted and not torch.cuda.is_available():
            raise CellFailedError(f"resources.gpus is {wanted}, and torch sees no GPU in the Slurm job")
        return wanted > 0

    def of_this_start(self, job: Job) -> Job:
        """The job with the attempt of this start; when Slurm has restarted the job, a new one is claimed here.

        The attempt stays when another launch, or a later start of the job, has claimed the cell: the job then finds
        that it is superseded. A pool does this itself for each of its cells.
        """
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        return job if job.pooled else claim_start(job, restarts, again=False) or job

    def requeue(self, stop: StopFlag) -> None:
        """After the signal before the time limit, let submitit requeue the job."""
        stop.requeue()


SLURM = SlurmExecutor()
