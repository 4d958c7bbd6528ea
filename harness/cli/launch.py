"""The verbs that run cells: launch and evaluate."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as cli
from harness.cli import streams
from harness.cli.guidance import print_choices

if TYPE_CHECKING:
    from harness.runs.cellruns import CellRun
    from harness.runs.study import Study
    from sweeps.grid import Sweep

RESOURCES = (
    *("executor", "slots", "threads", "ranks", "cells_per_gpu", "device", "data_folder", "data_download"),
    *("nodes", "partition", "account", "qos", "constraint", "time", "mem_gb", "gpus", "max_parallel", "cells_per_job"),
)

_EVALUATION = (
    *("samples", "sampler", "sampling_steps", "guidance", "guidance_channels"),
    *("labels", "extractor", "reference", "seed", "ema"),
)


@cli.takes_fields(
    resources=(
        *(*RESOURCES, "micro_batch", "recompute", "compile"),
        *("inception_weights", "dinov2_weights", "adm_reference"),
    )
)
def launch(
    study: cli.StudyArgument,
    results: cli.ResultsOption = cli.RESULTS,
    cell: cli.CellsOption = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed and cancelled cells again, too.")] = False,
    wait: cli.WaitOption = False,
    wide: cli.WideOption = False,
    **given: Any,
) -> None:
    """Train, sample and score every cell that is not done; resume what was interrupted.

    Locally it stays in the foreground. Ctrl-C lets the running cells write a checkpoint and stop; the same command goes
    on. On Slurm it submits and returns; with --wait it follows, and Ctrl-C ends the following only.

    If a cell is too large or too slow for one GPU, several ranks (--ranks, on Slurm also --nodes) can share its global
    batch, and --micro-batch splits a rank's share into pieces that fit. Neither changes what is trained: the same cell
    on another number of ranks agrees up to the order of float summation, and one rank can finish what two began.
    """
    from harness.runs.state import RETRIED

    sweep, folder = cli.resolve(study, results, given)
    items = cli.items_of(sweep, folder)
    chosen = cli.matching(items, cell, folder) if cell else items
    only = {item.cell.id for item in chosen} if cell else None
    with streams.lasting():
        ended = run(sweep, folder, chosen, items, retry=retry, wait=wait, only=only)
        hint = "".join(f" --cell {shlex.quote(pattern)}" for pattern in cell or ())
        hint += " --retry" if any(item.now.state in RETRIED for item in ended) else ""
        owed = {(item.cell.id, key) for item in chosen for key in item.owed} if cell else None
        _print_results(sweep, folder, cli.items_of(sweep, folder), ended, f"launch {study}{hint}", owed, wide=wide)


@cli.takes_fields(
    resources=(*RESOURCES, "inception_weights", "dinov2_weights", "adm_reference"), evaluation=_EVALUATION
)
def evaluate(
    study: cli.StudyArgument,
    results: cli.ResultsOption = cli.RESULTS,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Start from this protocol instead of the sweep's first evaluation: paper, fast, ...",
            rich_help_panel=cli.EVALUATION,
        ),
    ] = None,
    at: Annotated[str | None, typer.Option(help="Training steps whose weights are kept. Default: the last.")] = None,
    cell: cli.CellsOption = None,
    wait: cli.WaitOption = False,
    wide: cli.WideOption = False,
    **given: Any,
) -> None:
    """Measure kept weights again, with other samplers, steps, guidance, seeds, labels, references or protocols.

    Trains nothing, and may run beside a training; --slots counts only the cells that are measured. Cells without
    kept weights are named and left out, and nothing is measured twice. The rows are in results.csv beside the others. A
    cell is measured with the CPU threads it was trained with, whatever --threads says.

    --guidance best searches the scale of each cell, between 1 and 4, that gives the least distance on the first of the
    --seed values (default: 0,1,2), and measures it, and no guidance, on the others.
    """
    from harness.cli.words import cost_line, evaluation_lines, wrapped
    from harness.launch import guidance, remeasure
    from harness.runs.state import ACTIVE
    from harness.spec.resources import EXECUTORS

    sweep, folder = cli.resolve(study, results, given)
    everything = cli.items_of(sweep, folder)  # with the sweep's own evaluations, which come first in the tables
    steps = None if at is None else remeasure.values(at, "at")
    seeds = guidance.seeds_asked(given, steps)
    fields = {field: given[field] for field in _EVALUATION} | (
        {"guidance": "1", "seed": str(seeds[0])} if seeds else {}
    )
    sweep = remeasure.with_evaluations(sweep, protocol, fields)
    chosen = cli.matching(everything, cell, folder) if cell else everything
    selection = remeasure.select(sweep, chosen, steps)
    if seeds:
        selection = replace(selection, items=guidance.of(selection.items, seeds))
    for line in selection.skipped:
        print(f"left out: {line}", file=sys.stderr)
    for line in evaluation_lines(sweep, f"after {at} steps" if at else "after the last step"):
        print(wrapped(line))
    if seeds:
        print(wrapped(guidance.describe(seeds)))
    print(wrapped(cost_line(remeasure.cost(selection.items, everything), len(selection.items))))
    if busy := [item.name for item in selection.items if item.now.state in ACTIVE]:
        detached = EXECUTORS.facts(sweep.resources.executor).detached
        names = f"{', '.join(busy[:3])}{f' and {len(busy) - 3} more' if len(busy) > 3 else ''}"
        plan = "nothing is submitted for them now" if detached else "waiting for it"
        print(f"another evaluate is at work on {names}: {plan}", file=sys.stderr)
    with streams.lasting():
        ended = run(sweep, folder, selection.items, everything, chosen=selection.items, retry=True, wait=wait)
        owed = {(item.cell.id, key) for item in selection.items for key in item.owed}
        again = f"evaluate {study}, with the same options"
        if seeds:
            print_choices(folder, everything, owed, wide=wide)
            _require_done(ended, again)
        else:
            _print_results(sweep, folder, everything, ended, again, owed, wide=wide)


def run(
    sweep: Sweep,
    study: Study,
    items: list[CellRun],
    everything: list[CellRun],
    *,
    retry: bool,
    wait: bool,
    chosen: list[CellRun] | None = None,
    only: set[str] | None = None,
) -> list[CellRun]:
    """Launch with a view of these cells, and return them as they ended; `chosen` and `only` are those of `launch`.

    `everything` is all cells of the study, whose tables are written after Ctrl-C.

    Raises:
        Exit: with code 0 once all is submitted, if jobs go on by themselves and without `wait`; with 130 after Ctrl-C.
    """
    from harness.cli.bars import LaunchView
    from harness.errors import CellFailedError
    from harness.launch.launch import launch as run_all
    from harness.launch.signals import interrupting
    from harness.runs.collect import collect
    from harness.runs.state import ACTIVE, RETRIED
    from harness.spec.resources import EXECUTORS

    executor = sweep.resources.executor
    detached = EXECUTORS.facts(executor).detached
    cli.print_warnings(sweep)
    try:
        with interrupting(), LaunchView(cli.console(), items) as view:
            ended = run_all(sweep, study, view, retry=retry, wait=wait, chosen=chosen, only=only)
    except KeyboardInterrupt:
        if not detached:
            with contextlib.suppress(KeyboardInterrupt):  # who asks twice does not want to wait
                if rows := collect(study, everything):
                    print(f"{len(rows)} rows in {study.table('results.csv')}")
        jobs = f"the {executor.capitalize()} jobs go on"
        print(jobs if detached else "stopped; the same command goes on from the checkpoints", file=sys.stderr)
        raise typer.Exit(130) from None
    except CellFailedError as error:  # of work before the cells
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if detached and not wait:
        states = Counter(str(item.now.state) for item in ended)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        if any(item.now.state in ACTIVE for item in ended):
            print(f"{counts}; to follow: dit-harness status {study.name}, or the same command with --wait")
        else:
            retried = any(item.now.state in RETRIED for item in ended)
            print(f"{counts}{'; the same command with --retry runs them again' if retried else ''}")
        raise typer.Exit(0)
    return ended


def _print_answers(study: Study, everything: list[CellRun]) -> None:
    """Say what the study shows so far; where its tables do not allow that, say why."""
    from analysis.answer import Unfinished
    from analysis.answers import answers_of
    from harness.cli.words import wrapped
    from harness.errors import InputError
    from harness.runs.state import State

    missing = sum(item.now.state is not State.DONE for item in everything)
    unfinished = [Unfinished(missing, len(everything), study.name)] if missing else []
    try:
        for line in answers_of(study.folder, unfinished):
            print(wrapped(line))
    except InputError as error:
        print(f"no answers: {error}", file=sys.stderr)


def _print_results(
    sweep: Sweep,
    study: Study,
    everything: list[CellRun],
    ended: list[CellRun],
    again: str,
    owed: set[tuple[str, str]] | None = None,
    *,
    wide: bool,
) -> None:
    """Write the tables of all cells; print the results, and the cells that are not done.

    Args:
        sweep: what was asked for.
        study: where the tables go.
        everything: all cells of the study.
        ended: those that were launched.
        again: the command that goes on, without `dit-harness`.
        owed: the cells and records whose results are printed; None: all.
        wide: print all columns of the results.

    Raises:
        Exit: with code 1, when something is not done.
    """
    from harness.cli.tables import results_table
    from harness.runs.cellruns import evaluation_key
    from harness.runs.collect import collect
    from harness.runs.layout import LOSSES

    rows = collect(study, everything)
    keys = [(row["cell"], evaluation_key(row["evaluation"] or LOSSES, row["step"])) for row in rows]
    shown = [row for row, key in zip(rows, keys, strict=True) if owed is None or key in owed]
    if shown:
        cli.print_table(results_table(sweep.title, shown), wide=wide)
    if rows:
        print(f"{len(rows)} rows in {study.table('results.csv')}")
        if owed is None:
            _print_answers(study, everything)
        print(f"figures and report: dit-harness report {study.name}")
    _require_done(ended, again)


def _require_done(ended: list[CellRun], again: str) -> None:
    """Name the cells that are not done.

    Raises:
        Exit: with code 1, if there are any.
    """
    from harness.runs.state import State

    unfinished = [item for item in ended if item.now.state is not State.DONE]
    for item in unfinished:
        print(f"{item.name}: {item.now.state}: {item.now.message} (log: {item.run.log})", file=sys.stderr)
    if unfinished:
        print(f"{len(unfinished)} of {len(ended)} cells are not done; again: dit-harness {again}", file=sys.stderr)
        raise typer.Exit(1)
