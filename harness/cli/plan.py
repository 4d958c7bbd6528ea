"""The verb plan."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from harness.cli import options as cli
from harness.errors import InputError


def plan(
    study: cli.StudyArgument,
    results: cli.ResultsOption = cli.RESULTS,
    tflops: Annotated[
        float | None,
        typer.Option(help="What a GPU sustains, 1e12 operations/s. Default: as finished cells did, or assumed 100."),
    ] = None,
    wide: cli.WideOption = False,
    as_json: cli.JsonOption = False,
) -> None:
    """Show every cell: shape, tokens, parameters, GMACs, cost, GPU hours, disk, estimated time and state.

    Starts nothing, and needs neither the data nor a GPU. Training compute is the paper's 3 * GMACs * batch * steps; an
    operation is half a multiply-add.
    """
    from harness.cli.tables import plan_table
    from harness.cli.words import evaluation_lines
    from harness.launch.plan import plan as price
    from harness.launch.plan import totals

    sweep, folder = cli.resolve(study, results)
    if tflops is not None and not 0 < tflops < math.inf:
        raise InputError(f"--tflops: {tflops}; allowed: a finite number above 0")
    rows = price(sweep, cli.items_of(sweep, folder), tflops)
    if as_json:
        cli.print_json(rows)
        return
    cli.print_table(plan_table(sweep.title, rows, totals(sweep, rows)), wide=wide)
    for line in evaluation_lines(sweep):
        print(line)
    cli.print_warnings(sweep)
