"""The local executor: slots of this machine, filled in the foreground."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import psutil
import submitit

from harness.errors import InputError
from harness.launch.executor import Executor, Launch
from harness.launch.job import Job
from harness.launch.machine import default_slots, visible_gpus
from harness.processes import now, process_identity, signal_process
from harness.runs.cellruns import CellRun
from harness.runs.state import ACTIVE
from sweeps.grid import Sweep

#: Longest wait for the jobs to write their checkpoints after Ctrl-C, in seconds.
STOP_SECONDS = 120.0

#: Submitit ends local jobs after two minutes by default; a cell has no time limit.
_NO_TIME_LIMIT_MIN = 60 * 24 * 365


def _free_gpus(gpus: list[str], active: list[CellRun], ranks: int) -> str | None:
    """The GPUs with the fewest live jobs of this study, one for each rank, as CUDA_VISIBLE_DEVICES takes them."""
    if not gpus:
        return None
    claims = [item.now.attempt.claim.get("gpu") or "" for item in active if item.now.attempt]
    taken = Counter(gpu for claim in claims for gpu in claim.split(","))
    return ",".join(sorted(gpus, key=lambda gpu: taken[gpu])[:ranks])


def _submit(job: Job) -> None:
    """Start a job as a process of this machine, and record the process."""
    executor = submitit.LocalExecutor(job.run.submitit_folder)
    executor.update_parameters(
        timeout_min=_NO_TIME_LIMIT_MIN, stderr_to_stdout=True, tasks_per_node=job.resources.ranks
    )
    # children inherit an ignored signal: Ctrl-C then reaches only the launcher, which stops the jobs in order
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        submitted = executor.submit(job)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        controller = process_identity(int(submitted.job_id))
    except psutil.Error:  # it has ended already, and its files tell how
        controller = None
    record = {"process": controller, "time": now(), "job_id": submitted.job_id, "token": job.token}
    job.run.record(job.attempt, "submitted", record)


class LocalExecutor(Executor):
    """Slots of this machine, filled in the foreground."""

    def gpus(self) -> list[str]:
        """The GPUs of this machine, or of the Slurm allocation in which the launcher runs."""
        return visible_gpus()

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
                f'{"is" if len(gpus) == 1 else "are"} visible here; allowed: at most as many, or device = "cpu"'
            )

    def prepare(self, launch: Launch) -> None:
        """Tell the user when the shell has a Slurm allocation that the launch does not run in."""
        if "SLURM_JOB_ID" in os.environ and "SLURMD_NODENAME" not in os.environ:
            note = "this shell has a Slurm allocation but is not on a node of it: srun dit-harness ... runs there"
            launch.view.note(note)

    def submit(self, launch: Launch, waiting: list[CellRun]) -> list[CellRun]:
        """Start cells while slots are free. All launches of the study on this machine share the slots."""
        resources, tried = launch.sweep.resources, []
        for item in waiting:
            active = [i for i in launch.items if i.now.state in ACTIVE and i.in_local_slot]
            if len(active) >= default_slots(resources, launch.gpus):
                break
            item.refresh()
            if not launch.may_start(item):  # another launch was quicker
                continue
            gpu = _free_gpus(launch.gpus, active, resources.ranks)
            job = launch.claim(item, gpu=gpu, allocation=os.environ.get("SLURM_JOB_ID"))
            if job is not None:
                _submit(job)
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
            running = [item for item in running if item.refresh().state in ACTIVE]


LOCAL = LocalExecutor()
