"""From plan to Slurm jobs: claim, submit as arrays, and follow when asked to.

Policy. A cell is claimed before sbatch, and the claim holds a ticket: the token that the array will carry as its
comment, and the cell's index in it. A launcher that dies in between leaves claims of which squeue can tell whether they
were submitted. A requeued job (USR2 before the time limit, preemption, a lost node) runs as an attempt of its own. What
Slurm refuses is released again. Following starts a lost cell anew, at most twice; nothing is ever cancelled by it.
"""

from __future__ import annotations

import itertools
import time
import uuid
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.launch import slurm_commands as slurm
from harness.launch.job import Job
from harness.launch.slurm_pool import Pool
from harness.launch.view import View, note_takeover
from harness.processes import now, process_identity
from harness.runs import provenance
from harness.runs.attempts import RESTARTS
from harness.runs.cellruns import CellRun
from harness.runs.state import ACTIVE, STARTABLE, State
from harness.runs.study import Study
from harness.spec.resources import Resources
from sweeps.grid import Sweep

#: Time between two looks at the queue; each is one squeue, whatever the number of cells.
POLL_SECONDS = 3.0


def launch_slurm(
    sweep: Sweep, study: Study, items: list[CellRun], to_retry: set[str], view: View, *, wait: bool
) -> None:
    """Submit what is not done and not active; with `wait`, follow until all has ended.

    Raises:
        InputError: Slurm refused or did not answer; the message says what was submitted before, if anything.
        KeyboardInterrupt: after Ctrl-C while following; the jobs go on.
    """
    folder = str(study.submitit_folder.resolve())
    if "%" in folder or not folder.isprintable():  # sbatch puts other words in place of %j, and ends a line at its end
        raise InputError(f"{folder!r}: sbatch cannot write there; allowed: a results folder without % and line breaks")
    queue = study.scheduler if isinstance(study.scheduler, slurm.Queue) else slurm.Queue(study.name)
    try:
        limit = slurm.max_array_size()
    except slurm.SlurmError as error:
        raise InputError(
            f"Slurm does not answer: {error}; nothing was submitted, the same command goes on later"
        ) from None
    if queue.error is not None:  # it did not answer when the states were read
        queue.forget()
        for item in items:
            item.refresh()
    chosen = [item for item in items if item.now.state in STARTABLE or item.cell.id in to_retry]
    for item in chosen:
        note_takeover(item, view)
    _submit(sweep, study, chosen, limit, queue, view)
    if wait:
        _follow(sweep, study, items, limit, queue, view)


def _submit(sweep: Sweep, study: Study, items: list[CellRun], limit: int, queue: slurm.Queue, view: View) -> None:
    """Submit cells as arrays of at most `limit`; pools are one array, as they are as few as is asked."""
    submitted = 0
    after: str | None = None
    size = limit if sweep.resources.cells_per_job is None else max(1, len(items))
    for first in range(0, len(items), size):
        try:
            job = _submit_array(sweep, study, items[first : first + size], limit, queue, after, view)
        except slurm.SlurmDownError as error:
            raise InputError(
                f"Slurm does not answer: {error}; {submitted} cells were submitted, the same command goes on later"
            ) from None
        except slurm.SlurmError as error:
            raise InputError(f"{sweep.path}: Slurm refused: {error}; {submitted} cells were submitted") from None
        if job is not None and sweep.resources.max_parallel is not None:
            after = job  # the cap holds for one array, so the next one waits for it
        submitted += len(items[first : first + size])


def _submit_array(
    sweep: Sweep, study: Study, items: list[CellRun], limit: int, queue: slurm.Queue, after: str | None, view: View
) -> str | None:
    """Claim, submit, and write down the jobs' numbers; returns the array's, None when others had claimed everything."""
    token = uuid.uuid4().hex[:12]
    me = process_identity()
    claimed: list[tuple[CellRun, int]] = []
    slots = sweep.resources.cells_per_job
    pools = None if slots is None else min(sweep.resources.max_parallel or 1, -(-len(items) // slots), limit)
    for item in items:
        number = max(item.run.attempt_numbers(), default=0) + 1
        ticket: dict[str, Any] = {"token": token, "index": len(claimed), "restarts": 0}
        if pools is not None:  # dealt out in turn, as the cells come the dearest first
            ticket |= {"index": len(claimed) % pools, "pool": True}
        if item.run.claim(number, {"process": me, "time": now(), "slurm": ticket}, durable=False):
            item.run.write_cell(item.name, item.cell, durable=False)
            claimed.append((item, number))
    if not claimed:
        return None
    for item, number in claimed:
        item.run.sync_claim(number)
    jobs = [
        Job(
            folder=str(item.run.folder.resolve()),
            attempt=number,
            cell=item.cell,
            evaluations=item.evaluations,
            recording=sweep.recording,
            resources=_absolute(sweep.resources),
            results=str(study.root.resolve()),
            steps=item.steps,
            origin=provenance.origin()[0],
            pooled=pools is not None,
        )
        for item, number in claimed
    ]
    work: list[Job | Pool] = list(jobs)
    if slots is not None and pools is not None:
        work = [Pool(tuple(jobs[index::pools]), slots) for index in range(min(pools, len(jobs)))]
    try:
        numbers = slurm.submit(work, sweep.resources, study.submitit_folder, study.name, token, after)
    except BaseException:  # Ctrl-C too
        _release(claimed, token, queue)
        raise
    for (item, number), job in zip(claimed, itertools.cycle(numbers), strict=False):
        told = {"process": None, "time": now(), "job_id": job}
        item.run.record(number, "submitted", told, durable=False)  # squeue knows it too, by the ticket
        item.mine = True
    array = numbers[0].partition("_")[0]
    where = f"Slurm job {array}" if slots is None else f"Slurm job {array} of {len(numbers)} x {slots} slots"
    view.note(f"{len(claimed)} cell{'s' * (len(claimed) != 1)} submitted as {where}")
    queue.forget()
    for item, _ in claimed:
        item.refresh()
    return array


def _release(claimed: list[tuple[CellRun, int]], token: str, queue: slurm.Queue) -> None:
    """Take claims back when Slurm has no job of theirs. If it cannot say, they stay until it can."""
    queue.forget()
    if queue.look({"token": token, "index": 0}).alive is False:
        for item, number in claimed:
            item.run.release(number)
            item.refresh()


def _absolute(resources: Resources) -> Resources:
    """Paths as the nodes see them, wherever they start."""
    paths = {key: getattr(resources, key) for key in ("data_folder", "inception_weights", "adm_reference")}
    return resources.model_copy(update={key: str(Path(path).resolve()) for key, path in paths.items() if path})


def _follow(sweep: Sweep, study: Study, items: list[CellRun], limit: int, queue: slurm.Queue, view: View) -> None:
    """Wait until nothing is active, and start anew what was lost."""
    told = {item.cell.id for item in items if item.now.state is State.DONE}
    silent = False
    while True:
        for item in items:
            if item.cell.id not in told:
                item.refresh()
        if (queue.error is not None) != silent:
            silent = not silent
            view.note(f"Slurm does not answer: {queue.error}; waiting" if silent else "Slurm answers again")
        lost: list[CellRun] = []
        if not silent:  # without Slurm's word nothing is taken for lost
            lost = [item for item in items if _lost(item)]
            for item in lost:
                item.restarts += 1
                view.note(f"{item.name}: {item.now.message}; starting it again")
            _submit(sweep, study, lost, limit, queue, view)
        for item in items:
            if item.now.state not in ACTIVE and item.cell.id not in told and item.now.attempt and not silent:
                told.add(item.cell.id)
                view.finished(item)
        view.tick(items)
        if not silent and not any(item.now.state in ACTIVE for item in items):
            return
        time.sleep(POLL_SECONDS)


def _lost(item: CellRun) -> bool:
    return item.mine and item.now.state in (State.INTERRUPTED, State.PARTIAL) and item.restarts < RESTARTS
