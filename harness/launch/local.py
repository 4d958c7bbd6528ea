"""The local executor: slots of this machine, filled in the foreground.

A job that is lost (killed without a word) is started again, at most `RESTARTS` times a launch; one that failed is not,
unless asked to. Ctrl-C lets the running jobs write a checkpoint and stop.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import submitit

from harness.launch.job import Job
from harness.launch.view import View, note_takeover
from harness.processes import now, process_identity
from harness.runs import provenance
from harness.runs.attempts import RESTARTS
from harness.runs.cellruns import CellRun
from harness.runs.state import ACTIVE, RETRIED, STARTABLE, State
from sweeps.grid import Sweep

POLL_SECONDS = 0.3

#: Longest wait for the jobs to write their checkpoints after Ctrl-C.
STOP_SECONDS = 120.0

#: Submitit ends local jobs after two minutes unless told otherwise; a cell may take as long as it takes.
_NO_TIME_LIMIT_MIN = 60 * 24 * 365


def run_to_end(sweep: Sweep, items: list[CellRun], to_retry: set[str], slots: int, gpus: list[str], view: View) -> None:
    """Fill the slots until nothing is left to start and nothing runs."""
    announced = {item.cell.id for item in items if item.now.state is State.DONE}
    while True:
        active = _fill_slots(sweep, items, to_retry, slots, gpus, view)
        view.tick(items)
        if not active:
            return
        time.sleep(POLL_SECONDS)
        for item in active:
            if item.refresh().state in ACTIVE:
                continue
            lost = item.mine and item.now.state in (State.INTERRUPTED, State.PARTIAL)
            item.restarts += lost
            if lost and item.restarts <= RESTARTS:
                view.note(f"{item.name}: {item.now.message}; starting it again")
            elif item.cell.id not in announced and not _startable(item, to_retry):  # else another launch's is over
                announced.add(item.cell.id)
                view.finished(item)


def _fill_slots(
    sweep: Sweep, items: list[CellRun], to_retry: set[str], slots: int, gpus: list[str], view: View
) -> list[CellRun]:
    """Start cells while slots are free; returns the active ones, whoever started them."""
    active = [item for item in items if item.now.state in ACTIVE]
    for item in items:
        if sum(item.in_local_slot for item in active) >= slots:
            break
        if not _startable(item, to_retry):
            continue
        if item.refresh().state in ACTIVE:  # another launch was quicker
            active.append(item)
        elif _startable(item, to_retry):
            to_retry.discard(item.cell.id)
            note_takeover(item, view)
            if _start(sweep, item, _free_gpus(gpus, active, sweep.resources.ranks)):
                view.started(item)
            item.refresh()
            active.append(item)
    return active


def _startable(item: CellRun, to_retry: set[str]) -> bool:
    if item.now.state in RETRIED:
        return item.cell.id in to_retry
    spent = item.mine and item.restarts > RESTARTS
    return item.now.state in STARTABLE and not spent


def _free_gpus(gpus: list[str], active: list[CellRun], ranks: int) -> str | None:
    """So many GPUs with the fewest live jobs of this study, as CUDA_VISIBLE_DEVICES takes them."""
    if not gpus:
        return None
    claims = [item.now.attempt.claim.get("gpu") or "" for item in active if item.now.attempt and item.in_local_slot]
    taken = Counter(gpu for claim in claims for gpu in claim.split(","))
    return ",".join(sorted(gpus, key=lambda gpu: taken[gpu])[:ranks])


def _start(sweep: Sweep, item: CellRun, gpu: str | None) -> bool:
    """Claim the next attempt and submit it; False when another launcher was quicker."""
    run = item.run
    number = max(run.attempt_numbers(), default=0) + 1
    # the intention is on record before anything is submitted: a crash in between leaves a claim whose launcher is dead
    allocation = os.environ.get("SLURM_JOB_ID")
    if not run.claim(number, {"process": process_identity(), "time": now(), "gpu": gpu, "allocation": allocation}):
        return False
    run.write_cell(item.name, item.cell)
    executor = submitit.LocalExecutor(run.submitit_folder)
    executor.update_parameters(
        timeout_min=_NO_TIME_LIMIT_MIN, stderr_to_stdout=True, tasks_per_node=sweep.resources.ranks
    )
    job = Job(
        folder=str(run.folder.resolve()),
        attempt=number,
        cell=item.cell,
        evaluations=item.evaluations,
        recording=sweep.recording,
        resources=sweep.resources,
        results=str(run.folder.resolve().parents[2]),
        gpu=gpu,
        steps=item.steps,
        origin=provenance.origin()[0],
    )
    with _interrupts_ignored():
        submitted = executor.submit(job)
    try:
        controller = process_identity(int(submitted.job_id))
    except psutil.Error:  # gone already; what it left tells the rest
        controller = None
    run.record(number, "submitted", {"process": controller, "time": now(), "job_id": submitted.job_id})
    item.mine = True
    return True


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Children inherit an ignored signal: Ctrl-C then reaches only the launcher, which stops the jobs in order."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stop_all(items: list[CellRun], view: View) -> None:
    """Ask this launch's jobs to checkpoint and stop, and wait until they have."""
    running = [item for item in items if item.mine and item.refresh().state in ACTIVE]
    if running:
        view.note(f"stopping {len(running)} running cells; each writes a checkpoint first")
    asked: set[int] = set()
    deadline = time.monotonic() + STOP_SECONDS
    while running and time.monotonic() < deadline:
        for item in running:
            attempt = item.now.attempt
            identity = attempt and (attempt.started or attempt.submitted)  # until the job is known, its controller
            pid = int(identity["process"]["pid"]) if identity else None
            if pid is not None and pid not in asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                asked.add(pid)
        time.sleep(POLL_SECONDS)
        running = [item for item in running if item.refresh().state in ACTIVE]
