"""From plan to submitit jobs: local slots in the foreground.

Policy. A cell is started by claiming its next attempt (see `harness.runs`), so two launches at once start nothing
twice. The slots are shared by all launches of a study on this machine (or in this Slurm allocation): what runs already,
be it another launcher's or an orphan of a killed one, takes up a slot and is waited for; what runs elsewhere is waited
for, too. A job that is lost (killed without a word) is started
again, at most twice a launch; one that failed is not, unless asked to. Ctrl-C lets the running jobs write a checkpoint
and stop.
"""

from __future__ import annotations

import os

from harness.errors import InputError
from harness.launch.checks import check_data, check_evaluations, check_ranks, check_writable
from harness.launch.local import run_to_end, stop_all
from harness.launch.machine import default_slots, visible_gpus
from harness.launch.view import View
from harness.runs import provenance, trackers
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.state import RETRIED
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
    Returns them all; ended, except on Slurm without `wait`.

    Raises:
        InputError: the data or the weights of Inception are not there, or the device asked for is not, or the ranks
            cannot share the work, or Slurm refuses; nothing was started unless the message says so.
        KeyboardInterrupt: after Ctrl-C, once the running jobs have stopped; on Slurm they go on.
    """
    resources = sweep.resources
    on_slurm = resources.executor == "slurm"
    gpus = [] if resources.device == "cpu" or on_slurm else visible_gpus()
    if resources.device == "cuda" and not gpus and not on_slurm:
        raise InputError(f'{sweep.path}: resources.device: "cuda", but no GPU is visible here; allowed: "auto", "cpu"')
    items = cell_runs(sweep, study) if chosen is None else chosen
    check_ranks(sweep, gpus)
    check_evaluations(sweep, items)
    trackers.check_installed(sweep.recording.trackers, str(sweep.path))
    check_data(sweep, study)
    study.check_schema()
    check_writable(study)
    if chosen is None:
        study.save_sweep(sweep.path, sweep.extensions)
    study.remove_leftovers()
    origin, changed = provenance.origin()
    study.save_diff(origin.diff, changed)
    # the dearest first, so that no long cell is left over at the end, and what does not fit fails early
    items = sorted(items, key=_training_cost, reverse=True)
    to_retry = {item.cell.id for item in items if retry and item.now.state in RETRIED}
    if on_slurm:
        from harness.launch.slurm import launch_slurm

        launch_slurm(sweep, study, items, to_retry, view, wait=wait)
        return items
    if "SLURM_JOB_ID" in os.environ and "SLURMD_NODENAME" not in os.environ:
        view.note("this shell has a Slurm allocation but is not on a node of it: srun dit-harness ... runs there")
    slots = default_slots(resources, gpus)
    if chosen is not None and retry:
        # what another launch, of other measurements, fails in meanwhile is tried here, too
        to_retry = {item.cell.id for item in items}
    try:
        run_to_end(sweep, items, to_retry, slots, gpus, view)
    except KeyboardInterrupt:
        stop_all(items, view)
        raise
    return items


def _training_cost(item: CellRun) -> float:
    """Multiply-adds of a training, about: no torch is needed to order a queue."""
    recipe = item.cell.training
    return item.cell.model.macs_proxy(item.cell.data.shape) * recipe.batch_size * recipe.steps
