"""Stop what is queued or running, on purpose and on record."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass

from harness.launch import slurm_commands as slurm
from harness.processes import now, process_identity
from harness.runs.cellruns import CellRun
from harness.runs.state import State


@dataclass(frozen=True)
class Cancelled:
    """What `cancel` did."""

    cells: int  # asked to stop
    problems: list[str]  # one line each


def cancel(items: list[CellRun], study: list[CellRun]) -> Cancelled:
    """Ask the jobs of these cells to write a checkpoint and stop; cells that are neither queued nor running stay.

    It is written down first, so that a job which ends by it, or never starts, is known as cancelled. Does not wait.
    A pool, whose job other cells of the `study` share, goes on with those and sees by itself what was written down.
    """
    cells, problems, jobs = 0, [], []
    chosen = {item.cell.id for item in items}
    others = {
        item.now.attempt.job_id
        for item in study
        if item.on_slurm
        and item.now.attempt
        and item.now.state in (State.QUEUED, State.RUNNING)
        and item.cell.id not in chosen
    }
    for item in items:
        attempt = item.now.attempt
        if attempt is None or item.now.state not in (State.QUEUED, State.RUNNING):
            continue
        process = (attempt.started or attempt.submitted or {}).get("process") or attempt.claim.get("process") or {}
        here = process.get("host") == socket.gethostname()
        if item.on_slurm and attempt.job_id is None:
            problems.append(f"{item.name}: is just being submitted; again in a moment")
            continue
        if not item.on_slurm and not here:
            problems.append(f"{item.name}: runs on {process.get('host')}; cancel it there")
            continue
        item.run.record(attempt.number, "cancelled", {"process": process_identity(), "time": now()})
        cells += 1
        if item.on_slurm:
            if attempt.job_id not in others:
                jobs.append(str(attempt.job_id))
        elif attempt.started or attempt.submitted:  # never the launcher
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process["pid"]), signal.SIGTERM)
    try:
        slurm.cancel(sorted(set(jobs)))
    except slurm.SlurmError as error:
        problems.append(f"Slurm did not cancel: {error}; the same command again")
    return Cancelled(cells, problems)
