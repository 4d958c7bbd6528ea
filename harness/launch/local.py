"""The local executor: slots of this machine, filled in the foreground."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import submitit

from harness.errors import InputError
from harness.files import is_full
from harness.launch import imports
from harness.launch.executor import Executor, Launch
from harness.launch.job import Job
from harness.launch.machine import gpus_unseen, share_of, visible_gpus
from harness.launch.neighbours import Neighbour, whose
from harness.launch.signals import held
from harness.processes import now, process_identity, signal_process
from harness.runs import triage
from harness.runs.cellruns import CellRun
from harness.runs.state import ACTIVE
from harness.spec.resources import Resources
from sweeps.grid import Sweep

#: Longest wait for the jobs to write their checkpoints after Ctrl-C, in seconds.
STOP_SECONDS = 120.0

#: Submitit ends local jobs after two minutes by default; a cell has no time limit.
_NO_TIME_LIMIT_MIN = 60 * 24 * 365


def _free_gpus(
    gpus: list[str], active: list[tuple[CellRun, Resources]], ranks: int, neighbours: Sequence[Neighbour] = ()
) -> str | None:
    """The GPUs least taken by live jobs, one for each rank, as CUDA_VISIBLE_DEVICES takes them."""
    if not gpus:
        return None
    taken: Counter[str] = Counter()
    for item, resources in active:
        claimed = (item.now.attempt.claim.get("gpu") or "") if item.now.attempt else ""
        taken.update(dict.fromkeys(claimed.split(","), Fraction(1, resources.cells_per_gpu)))
    for neighbour in neighbours:
        taken.update(neighbour.gpus)
    return ",".join(sorted(gpus, key=lambda gpu: taken[gpu])[:ranks])


def _has_room(
    launch: Launch, resources: Resources, active: list[tuple[CellRun, Resources]], neighbours: list[Neighbour]
) -> bool:
    """Whether a slot is free for a cell with these resources; prints a note when only other studies fill them."""
    stated = resources.slots is not None  # then they are this study's
    counted = [(item, of) for item, of in active if not (stated and item.other_study)]
    taken = sum((share_of(of, launch.gpus) for _, of in counted), Fraction(0))
    if not stated:
        taken += sum(neighbour.share(resources, launch.gpus) for neighbour in neighbours)
    if not taken or taken + share_of(resources, launch.gpus) <= 1:
        return True
    studies = [item.other_study for item, _ in counted] + [neighbour.study for neighbour in neighbours]
    if all(studies):
        launch.blocked = f"waits for a slot: {whose(studies)}; --slots N starts cells beside them"
        launch.tell(launch.blocked)
    return False


def _submit(job: Job) -> None:
    """Start a job as a process of this machine, and record the process; or that it cannot be started."""
    try:
        _start(job)
    except Exception as error:  # cannot be pickled, or the system has no process left: the other cells go on
        if is_full(error):
            raise
        message = f"cannot be started: {type(error).__name__}: {error}"
        ended = {"outcome": "failed", "message": message, **triage.describe(error), "time": now()}
        job.hold.record("ended", ended)


def _start(job: Job) -> None:
    child = start(job, job.run.submitit_folder, job.token, job.resources.ranks)
    record = {"process": child.process, "time": now(), "job_id": child.number, "token": job.token}
    job.run.record(job.attempt, "submitted", record)


class Child(NamedTuple):
    """Submitit's process that starts the ranks of a job; `process` is None when it has ended already."""

    number: str
    process: dict[str, Any] | None


def start(job: Callable[[], object], folder: Path, token: str, ranks: int) -> Child:
    """Start a job as ranks on this machine.

    Args:
        job: what each rank calls.
        folder: for submitit's files, made if need be.
        token: names the file for what submitit's process says, until its number is known.
        ranks: how many.
    """
    executor = submitit.LocalExecutor(folder, python=imports.python())
    executor.update_parameters(timeout_min=_NO_TIME_LIMIT_MIN, stderr_to_stdout=True, tasks_per_node=ranks)
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / f"{token}.err"  # of submitit's process that starts the ranks
    with _stderr_in(errors), imports.for_jobs():
        submitted = executor.submit(job)
    with contextlib.suppress(FileNotFoundError):  # somebody has removed the run meanwhile
        errors.rename(folder / f"{submitted.job_id}.err")
    try:
        controller = process_identity(int(submitted.job_id))
    except psutil.Error:  # it has ended already, and its files tell how
        controller = None
    return Child(str(submitted.job_id), controller)


def _record_stop(item: CellRun) -> None:
    """Record that a process was stopped before its job began, which could not record it."""
    attempt = item.now.attempt
    if attempt is not None and attempt.outcome == "lost" and attempt.started is None:
        ended = {"outcome": "stopped", "message": "stopped before it began", "time": now()}
        item.run.record(attempt.number, "ended", {**ended, "token": attempt.claim.get("token")})
        item.refresh()


@contextlib.contextmanager
def _stderr_in(path: Path) -> Iterator[None]:
    """Processes that are started in here write their stderr to this file."""
    saved = os.dup(2)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class LocalExecutor(Executor):
    """Slots of this machine, filled in the foreground."""

    def gpus(self) -> list[str]:
        """The GPUs of this machine, or of the Slurm allocation in which the launcher runs."""
        return visible_gpus()

    def runs_on_cpu(self, resources: Resources, gpus: list[str]) -> bool:
        """Where no GPU is visible, or none is wanted."""
        return resources.device == "cpu" or not gpus

    def check(self, sweep: Sweep, gpus: list[str]) -> None:
        """Check that the sweep asks for one node and, where there are GPUs, for no more ranks than GPUs."""
        resources, key = sweep.resources, f"{sweep.path}: resources"
        if resources.device == "cuda" and not gpus:
            raise InputError(f'{key}.device: "cuda", but no GPU is visible here; allowed: "auto", "cpu"')
        if resources.nodes > 1:
            raise InputError(f'{key}.nodes: {resources.nodes} need executor = "slurm"; allowed here: 1')
        if gpus and resources.ranks > len(gpus):
            raise InputError(
                f"{key}.ranks: {resources.ranks}, but of GPUs, one a rank, {len(gpus)} "
                f'{"is" if len(gpus) == 1 else "are"} there; allowed: at most as many, or device = "cpu"'
            )

    def prepare(self, launch: Launch) -> None:
        """Tell the user when the GPUs do not answer, or the launch does not run in the shell's Slurm allocation."""
        if launch.sweep.resources.device == "auto" and (reason := gpus_unseen()):
            launch.view.note(f"warning: the cells run on the CPU, for nvidia-smi fails: {reason}")
        if "SLURM_JOB_ID" in os.environ and "SLURMD_NODENAME" not in os.environ:
            note = "this shell has a Slurm allocation but is not on a node of it: srun dit-harness ... runs there"
            launch.view.note(note)

    def submit(self, launch: Launch, waiting: list[CellRun]) -> list[CellRun]:
        """Start cells while slots are free.

        All launches of the study on this machine share the slots. Jobs of other studies take slots, too, unless the
        user says how many there are.
        """
        tried: list[CellRun] = []
        launch.blocked = ""
        for item in waiting:
            resources, others = launch.resources_of(item), (*launch.items, *launch.beside)
            active = [(i, launch.resources_of(i)) for i in others if i.now.state in ACTIVE and i.in_local_slot]
            neighbours = launch.around.look()
            if not _has_room(launch, resources, active, neighbours):
                break
            if neighbours:
                launch.tell(whose((neighbour.study for neighbour in neighbours), "already "))
            item.refresh()
            if not launch.may_start(item):  # another launch was quicker
                continue
            gpus = [] if resources.device == "cpu" else launch.gpus
            gpu = _free_gpus(gpus, active, resources.ranks, neighbours)
            with held():  # a claim has its job, or neither is made
                job = launch.claim(item, gpu=gpu, allocation=os.environ.get("SLURM_JOB_ID"))
                if job is not None:
                    _submit(job)
            if job is not None:
                launch.view.started(item)
            item.refresh()
            tried.append(item)
        return tried

    def stop(self, launch: Launch) -> None:
        """Ask this launch's jobs to write a checkpoint and stop; wait for them, `STOP_SECONDS` at most."""
        running = [item for item in launch.items if item.mine and item.refresh().state in ACTIVE]
        if running:
            launch.view.note(f"stopping {len(running)} running cells; each writes a checkpoint first")
        asked: set[int] = set()
        deadline = time.monotonic() + STOP_SECONDS
        while running and time.monotonic() < deadline:
            for item in running:
                process = item.now.attempt and item.now.attempt.process
                if process and process["pid"] not in asked and signal_process(process, signal.SIGTERM):
                    asked.add(process["pid"])
            time.sleep(self.poll_seconds)
            for item in running:
                if item.refresh().state not in ACTIVE:
                    _record_stop(item)
            running = [item for item in running if item.now.state in ACTIVE]


LOCAL = LocalExecutor()
