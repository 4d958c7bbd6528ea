"""From plan to jobs: what must hold, the set-up of the study, and the loop that starts cells until nothing is left.

Policy. A cell is started by claiming its next attempt (see `harness.runs.attempts`), so two launches at once start
nothing twice. What runs already, be it another launcher's or an orphan of a killed one, is waited for. A job that is
lost (killed without a word) is started again, at most `RESTARTS` times a launch; one that failed is not, unless asked
to. Where jobs run is the executor's business.
"""

from __future__ import annotations

import time

from harness.launch.checks import check_data, check_evaluations, check_ranks, check_writable
from harness.launch.executor import Executor, Launch, executor_named
from harness.launch.view import View
from harness.runs import provenance, trackers
from harness.runs.attempts import RESTARTS
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.state import ACTIVE, RETRIED, State
from harness.runs.study import Study
from sweeps.grid import Sweep


def launch(
    sweep: Sweep,
    study: Study,
    view: View,
    *,
    retry: bool = False,
    wait: bool = False,
    chosen: list[CellRun] | None = None,
) -> list[CellRun]:
    """Run every cell that is missing, partial or interrupted (failed and cancelled ones too with `retry`).

    Of `chosen` only, when given: what `harness.launch.remeasure` has to measure.
    Returns them all; ended, unless the executor is one that returns at once (Slurm) and `wait` is not set.

    Raises:
        InputError: the data or the weights of Inception are not there, or the device asked for is not, or the ranks
            cannot share the work, or Slurm refuses; nothing was started unless the message says so.
        KeyboardInterrupt: after Ctrl-C, once the running jobs have stopped; on Slurm they go on.
    """
    executor = executor_named(sweep.resources.executor)
    gpus = [] if sweep.resources.device == "cpu" else executor.gpus()
    items = cell_runs(sweep, study) if chosen is None else chosen
    _check(sweep, study, items, gpus)
    if chosen is None:
        study.save_sweep(sweep.path, sweep.extensions)
    study.remove_leftovers()
    origin, changed = provenance.origin()
    study.save_diff(origin.diff, changed)
    # the dearest first, so that no long cell is left over at the end, and what does not fit fails early
    items = sorted(items, key=_training_cost, reverse=True)
    # of what is measured again, another launch may fail in meanwhile what it measures; this one tries it all the same
    to_retry = {item.cell.id for item in items if retry and (chosen is not None or item.now.state in RETRIED)}
    work = Launch(sweep, study, items, view, gpus, to_retry)
    executor.prepare(work)
    try:
        run_to_end(work, executor, wait=wait)
    except KeyboardInterrupt:
        executor.stop(work)
        raise
    return items


def _check(sweep: Sweep, study: Study, items: list[CellRun], gpus: list[str]) -> None:
    """Everything that must hold before anything is written.

    Raises:
        InputError: something does not; one line with file, key and what is allowed.
    """
    check_ranks(sweep, gpus)
    check_evaluations(sweep, items)
    trackers.check_installed(sweep.recording.trackers, str(sweep.path))
    check_data(sweep, study)
    study.check_schema()
    check_writable(study)


def run_to_end(work: Launch, executor: Executor, *, wait: bool = False) -> None:
    """Start cells while there is room, until nothing is left to start and nothing runs.

    Of an executor whose jobs go on by themselves, unless `wait` is set, only until all is submitted.
    """
    view = work.view
    announced = {item.cell.id for item in work.items if item.now.state is State.DONE}
    watched: list[CellRun] = []
    silent = False
    while True:
        if not silent:  # without the scheduler's word nothing is taken for lost
            tried = executor.submit(work, [item for item in work.items if work.may_start(item)])
            ids = {item.cell.id for item in tried}
            watched = [item for item in work.items if item.now.state in ACTIVE or item.cell.id in ids]
        if executor.detached and not wait:
            return
        view.tick(work.items)
        if not watched:
            return
        time.sleep(executor.poll_seconds)
        for item in watched:
            item.refresh()
        name = work.sweep.resources.executor
        scheduler = work.study.schedulers.get(name)
        error = scheduler.error if scheduler else None
        if (error is not None) != silent:
            silent = not silent
            name = name.capitalize()
            view.note(f"{name} does not answer: {error}; waiting" if silent else f"{name} answers again")
        for item in watched if not silent else ():
            if item.now.state in ACTIVE:
                continue
            lost = item.mine and item.now.state in (State.INTERRUPTED, State.PARTIAL)
            item.restarts += lost
            if lost and item.restarts <= RESTARTS:
                view.note(f"{item.name}: {item.now.message}; starting it again")
            elif item.cell.id not in announced and not work.may_start(item):  # else another launch's is over
                announced.add(item.cell.id)
                view.finished(item)


def _training_cost(item: CellRun) -> float:
    """Multiply-adds of a training, about: no torch is needed to order a queue."""
    recipe = item.cell.training
    return item.cell.model.macs_proxy(item.cell.data.shape) * recipe.batch_size * recipe.steps
