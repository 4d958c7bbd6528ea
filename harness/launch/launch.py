"""From sweep to jobs: checks, the set-up of the study, and the loop that starts cells until nothing is left.

Policy. A launch claims the next attempt of a cell before it starts it (see `harness.runs.attempts`), so two launches at
once start no cell twice. A job that runs already, of another launch or of a killed one, is waited for. A lost job (no
record of its end) starts again, at most `RESTARTS` times in one launch; a failed one only when the user asks for it.
The executor decides where jobs run.
"""

from __future__ import annotations

import contextlib
import time

from harness.files import read_json
from harness.launch.checks import check_writable, checks
from harness.launch.executor import Executor, Launch, NoAnswerError, executor_named
from harness.launch.extractors import owed_extractors, train_extractors
from harness.launch.signals import interrupt_no_more
from harness.launch.view import View
from harness.processes import now
from harness.runs import provenance, triage
from harness.runs.attempts import RESTARTS
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.claims import Hold, SupersededError
from harness.runs.state import ACTIVE, RETRIED, State
from harness.runs.study import Study
from harness.training.hooks import Hooks
from sweeps.grid import Sweep

#: Longest pause of a launch that waits, after submissions to which its scheduler did not answer, in seconds.
PAUSE_SECONDS = 60.0


def launch(
    sweep: Sweep,
    study: Study,
    view: View,
    *,
    retry: bool = False,
    wait: bool = False,
    chosen: list[CellRun] | None = None,
    only: set[str] | None = None,
) -> list[CellRun]:
    """Run every cell that is missing, partial or interrupted (failed and cancelled ones too with `retry`).

    With `chosen`, runs these cells only: those that `harness.launch.remeasure` has to measure. With `only`, the cells
    with these ids. Returns the cells to run, when they have ended; without `wait` an executor like Slurm returns when
    all are submitted.

    Raises:
        InputError: the data, the weights of Inception or the device is missing, the ranks cannot share the batch, or
            Slurm refuses. Nothing was started unless the message says so.
        NonFiniteError: an extractor that the sweep has trained became non-finite; nothing was started.
        KeyboardInterrupt: after Ctrl-C and the like, when the running jobs have stopped; on Slurm they go on.
    """
    executor = executor_named(sweep.resources.executor)
    everything = cell_runs(sweep, study) if chosen is None else chosen
    items = [item for item in everything if only is None or item.cell.id in only]
    on_cpu = all(sweep.resources_of(item.cell).device == "cpu" for item in items)
    gpus = [] if on_cpu else executor.gpus()
    _check(sweep, study, items, gpus, view)
    if not executor.detached and (wanted := owed_extractors(items)):
        train_extractors(sweep, study, wanted, Hooks(report=view.work), view.note)
    if chosen is None:
        _tell_unlisted(study, everything, view)
        study.save_sweep(sweep.path, {item.cell.id: item.name for item in everything}, sweep.extensions)
    study.remove_leftovers(item.run for item in items)
    origin, changed = provenance.origin()
    study.save_diff(origin.diff, changed)
    # the most expensive first: no long cell runs alone at the end, and a cell that does not fit fails early
    items = sorted(items, key=_training_cost, reverse=True)
    # `evaluate` also retries a cell that fails in another launch while this one runs
    to_retry = {item.cell.id for item in items if retry and (chosen is not None or item.now.state in RETRIED)}
    beside = tuple(item for item in everything if only is not None and item.cell.id not in only)
    work = Launch(sweep, study, items, view, gpus, to_retry, beside, retry)
    executor.prepare(work)
    try:
        run_to_end(work, executor, wait=wait)
    except KeyboardInterrupt:
        interrupt_no_more()
        executor.stop(work)
        raise
    return items


def _check(sweep: Sweep, study: Study, items: list[CellRun], gpus: list[str], view: View) -> None:
    """Check all that a launch needs, before it writes anything.

    Raises:
        InputError: a check fails; one line with file, key and what is allowed.
    """
    for check in checks(sweep, study, items, gpus, say=view.note):
        check()
    study.check_schema()
    check_writable(study)


def _tell_unlisted(study: Study, items: list[CellRun], view: View) -> None:
    """Tell how many cells the study listed and lists no longer."""
    gone = (read_json(study.cells_file) or {}).keys() - {item.cell.id for item in items}
    if gone:
        one = len(gone) == 1
        ran = any((study.runs_folder / cell).exists() for cell in gone)
        kept = f"; {'its run stays' if one else 'their runs stay'} until dit-harness clean" if ran else ""
        view.note(f"{len(gone)} cell{' is' if one else 's are'} no longer listed{kept}")


def run_to_end(work: Launch, executor: Executor, *, wait: bool = False) -> None:
    """Start cells while there is room, until none is left to start and none runs.

    Without `wait`, an executor whose jobs go on by themselves returns when all cells are submitted.
    """
    view = work.view
    announced = {item.cell.id for item in work.items if item.now.state is State.DONE}
    pause, silent = executor.poll_seconds, False
    while True:
        tried, reason = [item for item in work.items if work.may_start(item)], None
        for item in work.beside if tried else ():
            item.refresh()
        try:
            tried, pause = executor.submit(work, tried), executor.poll_seconds
        except NoAnswerError as error:
            if not wait:
                raise
            reason, pause = error.reason, min(2 * pause, PAUSE_SECONDS)
        if executor.detached and not wait:
            return
        ids = {item.cell.id for item in tried}
        watched = [item for item in work.items if item.now.state in ACTIVE or item.cell.id in ids or work.is_held(item)]
        view.tick(work.items)
        if not watched and not _waits_for_slots(work):
            return
        reason = reason or _silence(work, watched)
        if (reason is not None) != silent:
            silent = not silent
            name = work.sweep.resources.executor.capitalize()
            view.note(f"{name} does not answer: {reason}; waiting" if silent else f"{name} answers again")
        time.sleep(pause)
        _look(work, watched, announced)


def _look(work: Launch, watched: list[CellRun], announced: set[str]) -> None:
    """Read the states of these cells anew; tell of those that have ended, and whose ids are not among `announced`."""
    for item in watched:
        item.refresh()
        if item.now.state in ACTIVE or work.is_held(item):
            continue
        if item.mine:
            _record_last_words(item)
        lost = item.mine and item.now.state in (State.INTERRUPTED, State.PARTIAL)
        item.restarts += lost and not _was_never_taken(item)
        if lost and item.restarts <= RESTARTS:
            work.view.note(f"{item.name}: {item.now.message}; starting it again")
        elif item.cell.id not in announced and not work.may_start(item):  # else it was another launch's
            announced.add(item.cell.id)
            work.view.finished(item)


def _waits_for_slots(work: Launch) -> bool:
    """Whether a cell would start, if other cells, of this study or of others, did not have the slots."""
    busy = bool(work.blocked) or any(item.now.state in ACTIVE and item.in_local_slot for item in work.beside)
    return busy and any(work.may_start(item) for item in work.items)


def _record_last_words(item: CellRun) -> None:
    """Record how a process ended before its job began, and what it printed last, in the log too.

    An error of Python's comes again, so the cell has failed; else it was killed, perhaps, and starts again.
    """
    attempt = item.now.attempt
    if attempt is None or not attempt.words.lines:
        return
    words, run = attempt.words, item.run
    hold = Hold(run, attempt.number, attempt.claim.get("token", ""))
    with contextlib.suppress(SupersededError):
        with hold.writing(), run.log.open("a", encoding="utf-8") as log:
            log.write(f"[{now()}] {attempt.loss}; its last lines:\n" + "".join(f"{line}\n" for line in words.lines))
        if words.raised:
            ended = {"outcome": "failed", "message": attempt.loss, **triage.describe_words(words), "time": now()}
            hold.record("ended", ended)
    item.refresh()


def _silence(work: Launch, watched: list[CellRun]) -> str | None:
    """Why the scheduler gave no answer for one of the cells; None when it answered for all that it was asked about."""
    scheduler = work.study.schedulers.get(work.sweep.resources.executor)
    return scheduler.error if scheduler is not None and any(map(work.is_unanswered, watched)) else None


def _was_never_taken(item: CellRun) -> bool:
    """Whether the scheduler did not answer to the submission of the last attempt, and has no job of it."""
    attempt = item.now.attempt
    if attempt is None or attempt.submitted is None:
        return False
    return attempt.job_id is None and attempt.started is None


def _training_cost(item: CellRun) -> float:
    """Roughly the multiply-adds of a training, found without torch; orders the cells."""
    recipe = item.cell.training
    return item.cell.model.macs_proxy(item.cell.data.shape) * recipe.batch_size * recipe.steps
