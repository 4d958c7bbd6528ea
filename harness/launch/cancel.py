"""Stop cells that are queued or running, and record that this was asked for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from harness.launch.executor import executor_named
from harness.processes import now, process_identity
from harness.runs.attempts import Attempt
from harness.runs.cellruns import CellRun
from harness.runs.state import ACTIVE


@dataclass(frozen=True)
class Cancelled:
    """What `cancel` did."""

    cells: int  # asked to stop
    problems: list[str]  # one line each


def cancel(items: list[CellRun], study: list[CellRun], name: str) -> Cancelled:
    """Ask the jobs of these cells to write a checkpoint and stop. Does not wait; skips cells that do not run.

    The `cancelled` file is written first, so that a job which stops for it, or never starts, counts as cancelled. A
    pool whose job other cells share goes on with those: it reads the files of its cells by itself.

    Args:
        items: the cells.
        study: all cells of the study.
        name: its name; a pool that another study submitted holds cells of that one.
    """
    problems: list[str] = []
    asked: dict[str, list[Attempt]] = defaultdict(list)
    chosen = {item.cell.id for item in items}
    active = {item.cell.id: item.now.attempt for item in study if item.now.state in ACTIVE and item.now.attempt}
    pooled_elsewhere = {a.job_id for a in active.values() if a.pooled and a.claim.get("study", name) != name}
    others = {attempt.job_id for cell, attempt in active.items() if cell not in chosen} | pooled_elsewhere
    for item in items:
        attempt = item.now.attempt
        if attempt is None or item.now.state not in ACTIVE:
            continue
        if reason := executor_named(attempt.executor).cannot_cancel(attempt):
            problems.append(f"{item.name}: {reason}")
            continue
        asked_for = {"process": process_identity(), "time": now(), "token": attempt.claim.get("token")}
        item.run.record(attempt.number, "cancelled", asked_for)
        asked[attempt.executor].append(attempt)
    for name, attempts in asked.items():
        if problem := executor_named(name).cancel(attempts, others):
            problems.append(problem)
    return Cancelled(sum(map(len, asked.values())), problems)
