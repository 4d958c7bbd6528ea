"""The command `dit-harness`: parse, call, print. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import InputError

if TYPE_CHECKING:
    from harness.launch import CellRun
    from harness.runs import Study
    from sweeps.grid import Sweep

app = typer.Typer(
    name="dit-harness",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Scaling studies of Diffusion Transformers: from a grid of models to the GFLOPs-vs-FID plots.

    A study is a sweep file (TOML), such as sweeps/quickstart.toml. Every verb takes the file, or the study's name (the
    file's stem) once it was launched.

    \b
    dit-harness plan sweeps/quickstart.toml      what would run, and what it costs
    dit-harness launch sweeps/quickstart.toml    train, sample and score every cell; again to resume
    dit-harness report quickstart                table, fits, figures, report.html

    Exit codes: 0 all well, 1 some cells failed, 2 bad input (nothing was started), 130 stopped by Ctrl-C.""",
)

StudyArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file (.toml), or the name of a study.")]
ResultsOption = Annotated[
    Path, typer.Option("--results", envvar="DIT_HARNESS_RESULTS", help="The folder that holds the studies.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RESULTS = Path("results")


def _resolve(argument: str, results: Path) -> tuple[Sweep, Study]:
    """The sweep and the study an argument names."""
    from harness.runs import Study
    from sweeps.grid import load_sweep, study_name

    name = study_name(argument)
    study = Study(results, name)
    if argument.endswith(".toml"):
        return load_sweep(Path(argument)), study
    for path in (study.sweep_file, Path("sweeps") / f"{name}.toml"):
        if path.exists():
            return load_sweep(path, name), study
    raise InputError(f"{argument}: no study of this name in {results}, and no sweeps/{name}.toml; give a sweep file")


def _items(sweep: Sweep, study: Study) -> list[CellRun]:
    from harness.launch import cell_runs

    return cell_runs(sweep, study)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _console() -> Any:
    from rich.console import Console

    # a pipe has no width; tables should not be squeezed into 80 columns there
    return Console(width=None if sys.stdout.isatty() else 200)


@app.command()
def plan(study: StudyArgument, results: ResultsOption = RESULTS, as_json: JsonOption = False) -> None:
    """Show every cell: shape, tokens, parameters, GMACs, cost, estimated time and state. Starts nothing."""
    from harness.plan import plan as price
    from harness.plan import totals
    from harness.views import plan_table
    from sweeps.grid import warnings

    sweep, folder = _resolve(study, results)
    rows = price(sweep, _items(sweep, folder))
    if as_json:
        _print_json(rows)
        return
    _console().print(plan_table(sweep.title, rows, totals(sweep, rows)))
    for line in warnings(sweep):
        print(f"warning: {line}", file=sys.stderr)


@app.command()
def launch(
    study: StudyArgument,
    results: ResultsOption = RESULTS,
    slots: Annotated[int | None, typer.Option(min=1, help="Cells at once. Default: what cores or GPUs allow.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads a cell.")] = None,
    data_folder: Annotated[Path | None, typer.Option(help="Folder with the data set's files.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Download missing data (torchvision).")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed cells again, too.")] = False,
) -> None:
    """Train, sample and score every cell that is not done; resume what was interrupted.

    Stays in the foreground. Ctrl-C lets the running cells write a checkpoint and stop; the same command goes on.
    """
    from dataclasses import replace

    from harness.collect import collect as write_tables
    from harness.launch import launch as run_all
    from harness.runs import State
    from harness.views import LiveView, PlainView, results_table
    from sweeps.grid import warnings

    sweep, folder = _resolve(study, results)
    asked: dict[str, Any] = {
        "slots": slots,
        "threads": threads,
        "data_folder": str(data_folder) if data_folder else None,
        "data_download": download or None,
    }
    options = {key: value for key, value in asked.items() if value is not None}
    sweep = replace(sweep, resources=sweep.resources.model_copy(update=options))
    for line in warnings(sweep):
        print(f"warning: {line}", file=sys.stderr)
    console = _console()
    view_type = LiveView if console.is_terminal else PlainView
    try:
        with view_type(console, _items(sweep, folder)) as view:
            items = run_all(sweep, folder, view, retry=retry)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the checkpoints", file=sys.stderr)
        raise typer.Exit(130) from None
    rows = write_tables(folder, _items(sweep, folder))
    if rows:
        console.print(results_table(sweep.title, rows))
        print(f"{len(rows)} rows in {folder.table('results.csv')}")
    unfinished = [item for item in items if item.now.state is not State.DONE]
    for item in unfinished:
        print(f"{item.name}: {item.now.state}: {item.now.message} (log: {item.run.log})", file=sys.stderr)
    if unfinished:
        hint = " --retry" if any(item.now.state is State.FAILED for item in unfinished) else ""
        print(
            f"{len(unfinished)} of {len(items)} cells are not done; again: dit-harness launch {study}{hint}",
            file=sys.stderr,
        )
        raise typer.Exit(1)


@app.command()
def status(study: StudyArgument, results: ResultsOption = RESULTS, as_json: JsonOption = False) -> None:
    """Show the state of every cell. Reads only; changes nothing."""
    from harness.views import status_row, status_table

    sweep, folder = _resolve(study, results)
    rows = [status_row(item) for item in _items(sweep, folder)]
    if as_json:
        _print_json(rows)
    else:
        _console().print(status_table(sweep.title, rows))


@app.command()
def logs(
    study: StudyArgument,
    cell: Annotated[str, typer.Argument(help="Name of the cell, or the beginning of its id.")],
    results: ResultsOption = RESULTS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the cell ends.")] = False,
) -> None:
    """Print what a cell's jobs printed."""
    from harness.runs import State

    sweep, folder = _resolve(study, results)
    items = _items(sweep, folder)
    found = [item for item in items if item.name == cell or item.cell.id.startswith(cell)]
    if len(found) != 1:
        problem = "no cell" if not found else "several cells"
        raise InputError(
            f"{cell}: {problem} of this name in {folder.name}; allowed: {', '.join(i.name for i in items)}"
        )
    item = found[0]
    if not item.run.log.exists():
        raise InputError(f"{cell}: has no log yet (state: {item.now.state})")
    with item.run.log.open(encoding="utf-8", errors="replace") as log:
        while True:
            sys.stdout.write(log.read())
            sys.stdout.flush()
            if not follow or item.refresh().state not in (State.RUNNING, State.QUEUED):
                return
            time.sleep(0.5)


@app.command()
def collect(study: StudyArgument, results: ResultsOption = RESULTS) -> None:
    """Write results.csv, curves.csv, attempts.csv and samples/*.png from the run folders."""
    from harness.collect import collect as write_tables

    sweep, folder = _resolve(study, results)
    rows = write_tables(folder, _items(sweep, folder))
    print(f"{len(rows)} rows in {folder.table('results.csv')}")


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="A sweep file, a study's name, or a folder of tables (results/paper).")],
    results: ResultsOption = RESULTS,
) -> None:
    """Draw the figures (PNG and SVG), fit the laws (fits.json) and write one self-contained report.html."""
    from harness.collect import collect as write_tables

    folder = Path(study)
    if not (folder.is_dir() and any((folder / name).exists() for name in ("published.csv", "results.csv"))):
        sweep, runs = _resolve(study, results)
        if not write_tables(runs, _items(sweep, runs)):
            raise InputError(f"{study}: no cell is evaluated yet; first: dit-harness launch {study}")
        folder = runs.folder
    from analysis.report import write_report

    written = write_report(folder)
    for line in written.summary:
        print(line)
    print(f"{len(written.paths)} files, all on one page: {written.paths[-1]}")


def main() -> None:
    """Run the command; bad input is one line and exit code 2."""
    try:
        app()
    except InputError as error:
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
