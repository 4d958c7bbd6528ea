"""The verb plan."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as cli
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.runs.cellruns import CellRun
    from harness.runs.study import Study
    from sweeps.grid import Sweep

#: Above so many GPU hours a plan says how to pay less.
WORTH_SAVING_HOURS = 24


@cli.takes_fields(
    resources=(
        *("executor", "slots", "threads", "ranks", "cells_per_gpu", "device", "data_folder", "data_download"),
        *("inception_weights", "dinov2_weights", "adm_reference", "nodes", "max_parallel", "cells_per_job"),
    )
)
def plan(
    study: cli.StudyArgument,
    results: cli.ResultsOption = cli.RESULTS,
    tflops: Annotated[
        float | None,
        typer.Option(help="What a GPU sustains, 1e12 operations/s. Default: as finished cells did, or assumed 100."),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=100_000,
            help="GPUs to plan for: of a machine, or of every node's job on Slurm. Default: as here.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Instead, list everything that is missing, and how to get it.")
    ] = False,
    match_gmacs: Annotated[
        str | None,
        typer.Option(
            metavar="<cell>",
            help="Instead, propose channels of a U-Net within 5 % of this cell's GMACs: a name or id, or SWEEP:NAME.",
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="First time a few steps of each distinct shape, on this machine.")
    ] = False,
    wide: cli.WideOption = False,
    as_json: cli.JsonOption = False,
    **given: Any,
) -> None:
    """Show every cell: shape, tokens, parameters, GMACs, cost, GPU hours, disk, estimated time and state.

    Starts no cell, and needs neither the data nor a GPU. Training compute is the paper's 3 * GMACs * batch * steps; an
    operation is half a multiply-add. The time is that on this machine, or on what --gpus or --executor slurm describe,
    by a probe of the cell's shape (--measure), else by the study's finished cells of the same machine, else by assumed
    speeds; the table says which. Of a finished cell it is what it took.
    """
    from harness.cli.seeds import seeds_line
    from harness.cli.tables import plan_table
    from harness.cli.words import evaluation_lines, first_lines, lever_lines, longest_line, parts_line, wrapped
    from harness.launch.checks import check_ranks
    from harness.launch.first import first_seconds, trained_first
    from harness.launch.levers import levers
    from harness.launch.plan import plan as price
    from harness.launch.plan import totals
    from harness.runs.state import State
    from harness.runs.study import Shared

    sweep, folder = cli.resolve(study, results, given)
    if tflops is not None and not 0 < tflops < math.inf:
        raise InputError(f"--tflops: {tflops}; allowed: a finite number above 0")
    if sweep.resources.executor == "slurm" and gpus is not None:
        sweep = sweep.with_resources({"gpus": gpus})
    elif gpus:
        check_ranks(sweep, [str(number) for number in range(gpus)])
    items = cli.items_of(sweep, folder)
    if check:
        _check(sweep, folder, items)
        return
    if match_gmacs is not None:
        _match(match_gmacs, folder, items, wide=wide)
        return
    if measure:
        _measure(sweep, folder, items, gpus)
    rows = price(sweep, items, tflops, gpus, Shared(folder.root))
    if as_json:
        cli.print_json(rows)
        return
    total = totals(sweep, rows)
    cli.print_table(plan_table(sweep.title, rows, total), wide=wide)
    lines = [parts_line(total)] if total["on_gpu"] else []
    if total["on_gpu"] and (line := longest_line(rows, total)):
        lines.append(line)
    owed = trained_first(sweep, (item.cell for item in items if item.now.state is not State.DONE), Shared(folder.root))
    lines += first_lines({what: first_seconds(gmacs, rows[0]) for what, gmacs in owed.items()})
    lines += evaluation_lines(sweep)
    lines += filter(None, [seeds_line(sweep, items, folder.folder)])
    if total["on_gpu"] and total["gpu_hours"] > WORTH_SAVING_HOURS:
        lines += lever_lines(levers(sweep, items, rows))
    for line in lines:
        print(wrapped(line))
    cli.print_warnings(sweep)


def _match(cell: str, study: Study, items: list[CellRun], *, wide: bool) -> None:
    """Propose U-Nets at the compute of a cell: those of the sweep with other channels, else the usual one.

    Raises:
        InputError: no such cell, or no U-Net within 5 %.
    """
    from harness.cli.tables import matches_table
    from harness.launch.match import matches, row_of
    from harness.spec.model import UNetSpec

    other, _, name = cell.rpartition(":")
    sweep, folder = cli.resolve(other, study.root) if other else (None, study)
    item = cli.find_cell(cli.items_of(sweep, folder) if sweep else items, name, folder)
    given = dict.fromkeys(item.cell.model for item in items if isinstance(item.cell.model, UNetSpec))
    found = matches(item.cell, given)
    rows = [row_of(item.cell), *(match.row for match in found)]
    cli.print_table(matches_table(f"U-Nets at the GMACs of {item.name}", rows), wide=wide)
    for match in found:
        print(match.line)


def _measure(sweep: Sweep, folder: Study, items: list[CellRun], gpus: int | None) -> None:
    """Probe every shape that was not measured here before.

    Raises:
        InputError: the plan is for another machine.
    """
    from harness.cli.bars import WorkBar
    from harness.launch.probe import probes_of, run_probes
    from harness.launch.signals import interrupting

    jobs, failed = probes_of(sweep, items, folder.root, gpus), 0
    try:
        with interrupting(), WorkBar(cli.console(stderr=True), images=False) as bar:
            for done, probe in enumerate(run_probes(jobs), 1):
                failed += bool(probe.error)
                bar.report({"stage": "probes", "done": done, "total": len(jobs)})
    except KeyboardInterrupt:
        print("stopped; what was measured is kept, and the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    if failed:
        print(f"{failed} of {len(jobs)} probes failed; the table says why", file=sys.stderr)


def _check(sweep: Sweep, folder: Study, items: list[CellRun]) -> None:
    """List what a launch lacks.

    Raises:
        InputError: something is missing.
    """
    from harness.launch.checks import missing

    lines = missing(sweep, folder, items)
    for line in lines:
        print(f"missing: {line}")
    if lines:
        raise InputError(
            f"{sweep.path}: {len(lines)} of what a launch needs {'is' if len(lines) == 1 else 'are'} missing"
        )
    print("nothing is missing; the content of files is checked by launch")
