"""The verbs that look at running cells, and stop them: status, logs, cancel."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options as cli
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.runs.cellruns import CellRun


def status(
    study: cli.StudyArgument,
    results: cli.ResultsOption = cli.RESULTS,
    wide: cli.WideOption = False,
    as_json: cli.JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until nothing is queued or running.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 2.0,
) -> None:
    """Show the state of every cell, and group the failures by cause. Reads only; changes nothing.

    With --watch a live table in a terminal, a line for every change in a pipe; Ctrl-C ends the watching only.
    """
    from harness.cli import tables
    from harness.cli.follow import watch as follow

    if watch + as_json + wide > 1:
        raise InputError("--watch, --json, --wide: allowed: one of them")
    sweep, folder = cli.resolve(study, results)
    items = cli.items_of(sweep, folder)
    if watch:
        try:
            follow(cli.console(), sweep.title, items, every)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    elif as_json:
        cli.print_json([tables.status_row(item) for item in items])
    else:
        cli.print_table(tables.status_table(sweep.title, [tables.status_row(item) for item in items]), wide=wide)
    if not as_json:
        for trouble in tables.troubles(items):
            print(trouble)
    for name, scheduler in folder.schedulers.items():
        if scheduler.error is not None:
            told = f"{name.capitalize()} does not answer: {scheduler.error}"
            print(f"{told}; the states are what the runs' own files tell", file=sys.stderr)


def cancel(
    study: cli.StudyArgument,
    cell: Annotated[
        str | None, typer.Argument(help="Name of a cell, or the beginning of its id. Default: all.")
    ] = None,
    results: cli.ResultsOption = cli.RESULTS,
) -> None:
    """Stop what is queued or running, evaluations too; a running cell writes a checkpoint first.

    `launch --retry` goes on with it, and `evaluate` with what it had begun.
    """
    from harness.launch.cancel import cancel as stop
    from harness.launch.remeasure import at_work

    sweep, folder = cli.resolve(study, results)
    items = cli.items_of(sweep, folder)
    chosen = [cli.find_cell(items, cell, folder)] if cell else items
    stopped = stop([*chosen, *at_work(chosen)], [*items, *at_work(items)], folder.name)
    for line in stopped.problems:
        print(line, file=sys.stderr)
    print(f"{stopped.cells} cell{'s' * (stopped.cells != 1)} asked to stop{_others(chosen)}")
    if stopped.problems:
        raise typer.Exit(1)


def _others(items: list[CellRun]) -> str:
    """How many of these cells had nothing to stop, and why."""
    from harness.launch.remeasure import at_work
    from harness.runs.state import ACTIVE, State

    busy = {item.cell.id for item in at_work(items)}
    idle = [item.now.state for item in items if item.now.state not in ACTIVE and item.cell.id not in busy]
    done = sum(state is State.DONE for state in idle)
    counts = {"done already": done, "not running": len(idle) - done}
    return "".join(f", {count} {'is' if count == 1 else 'are'} {what}" for what, count in counts.items() if count)


def logs(
    study: cli.StudyArgument,
    cell: cli.CellArgument,
    results: cli.ResultsOption = cli.RESULTS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the cell has ended.")] = False,
    evaluating: Annotated[bool, typer.Option("--evaluating", help="Of `evaluate` instead of `launch`.")] = False,
) -> None:
    """Print what a cell's jobs printed; with --follow also what is to come, waiting for a first line if need be."""
    from harness.cli.follow import follow_log
    from harness.launch.remeasure import of_evaluating

    sweep, folder = cli.resolve(study, results)
    item = cli.find_cell(cli.items_of(sweep, folder), cell, folder)
    item = of_evaluating(item) if evaluating else item
    if not follow:
        if not item.run.log.exists():
            raise InputError(f"{cell}: has no log yet (state: {item.now.state})")
        sys.stdout.write(item.run.log.read_text(encoding="utf-8", errors="replace"))
        return
    try:
        follow_log(item, partial(print, end="", flush=True), lambda line: print(line, file=sys.stderr))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
