"""The verbs that write results: collect, report."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options as cli
from harness.errors import InputError

if TYPE_CHECKING:
    from analysis.answer import Unfinished

_OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", callback=cli.home, help="A folder for all of them together. Needed for several."),
]


def collect(
    studies: Annotated[list[str], typer.Argument(metavar="SWEEP...", help="Sweep files (.toml), or names of studies.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=cli.home, help="A folder for the tables of all of them together."),
    ] = None,
    results: cli.ResultsOption = cli.RESULTS,
) -> None:
    """Write results.csv, nested.csv, curves.csv, attempts.csv and the pictures of samples/ from the run folders.

    With --output also those of several studies as one, as `report` reads them.
    """
    from harness.runs.collect import brought
    from harness.runs.collect import collect as write_tables

    if output is not None:
        _together(studies, output, results, [])
        return
    for study in dict.fromkeys(map(cli.home, studies)):
        sweep, folder = cli.resolve(study, results)
        items = cli.items_of(sweep, folder)
        if brought(folder, items):
            print(f"{study}: none of its runs is here; its tables stay as they are")
            continue
        rows = write_tables(folder, items)
        print(f"{len(rows)} rows in {folder.table('results.csv')}")


def report(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY...",
            help="Sweep files, names of studies, folders of tables (results/paper), or a .csv in the columns of "
            "results.csv.",
        ),
    ],
    output: _OutputOption = None,
    results: cli.ResultsOption = cli.RESULTS,
) -> None:
    """Say what the study shows, fit the laws (fits.json), draw the figures (PNG, SVG, PDF) and write a report.

    report.html is one self-contained page that begins with the answers; report.md holds the answers alone.

    Several studies become one report. What was measured alike is fitted together, a cell of two studies counts once,
    and what does not compare stands apart, with the reason.
    """
    if output is None and len(set(studies)) > 1:
        raise InputError("--output: is missing; several studies need a folder of their own, such as results/both")
    if output is None and studies[0].endswith(".csv"):
        raise InputError("--output: is missing; a table needs a folder for its report, such as results/theirs")
    unfinished: list[Unfinished] = []
    if output is None:
        folder = tables_of(cli.home(studies[0]), results, unfinished)
    else:
        folder = _together(studies, output, results, unfinished)
    # figures are drawn into files; a backend that the environment names may not be installed
    os.environ["MPLBACKEND"] = "agg"
    from analysis.report import write_report
    from harness.cli.bars import WorkBar
    from harness.cli.words import wrapped

    print(f"{folder}: fitting, then drawing the figures", file=sys.stderr, flush=True)
    with WorkBar(cli.console(stderr=True), images=False) as bar:
        written = write_report(
            folder, unfinished, lambda done, total: bar.report({"stage": "figures", "done": done, "total": total})
        )
    for line in written.summary:
        print(wrapped(line))
    print(f"{len(written.paths)} files, all on one page: {written.paths[-1]}")


def _together(studies: list[str], output: Path, results: Path, unfinished: list[Unfinished]) -> Path:
    """Write the tables of several studies as one, and return their folder; see `tables_of`.

    Raises:
        InputError: the folder holds what other studies gave, or see `analysis.combine.combine`.
    """
    from analysis.combine import combine, sources_of

    names = list(dict.fromkeys(map(str, map(cli.home, studies))))
    there = sources_of(output)
    if there and set(map(_called, there)) != set(map(_called, names)):
        raise InputError(
            f"--output: {output} holds the tables of {', '.join(there)}; allowed: these studies again, or a new folder"
        )
    table = combine([tables_of(name, results, unfinished) for name in names], names, output)
    print(f"{len(table)} rows of {table['cell'].nunique()} cells in {output / 'results.csv'}")
    return output


def _called(study: str) -> str:
    """What a study is called, by its name or by its sweep file."""
    return Path(study).stem if study.endswith(".toml") else study


def tables_of(study: str, results: Path, unfinished: list[Unfinished]) -> Path:
    """The folder or file with the tables of an argument; those of a study are written anew.

    A study whose cells are not all done is added to `unfinished`.

    Raises:
        InputError: there is no such study, or it has no results yet.
    """
    from analysis.answer import Unfinished
    from analysis.table import SOURCES
    from harness.runs.collect import brought
    from harness.runs.collect import collect as write_tables
    from harness.runs.state import State

    path = Path(study)
    if (results / study / SOURCES).exists():  # put together earlier
        return results / study
    tables = ("published.csv", "results.csv")
    if path.suffix == ".csv" or (path.is_dir() and any((path / name).exists() for name in tables)):
        return path
    sweep, runs = cli.resolve(study, results)
    items = cli.items_of(sweep, runs)
    cells = brought(runs, items)
    if missing := sum(item.now.state is not State.DONE and item.cell.id not in cells for item in items):
        unfinished.append(Unfinished(missing, len(items), study))
    if cells:
        print(f"{study}: none of its runs is here; its tables are read as they are", file=sys.stderr)
        return runs.folder
    if not write_tables(runs, items):
        done = "evaluated" if sweep.evaluations else "trained"
        raise InputError(f"{study}: no cell is {done} yet; first: dit-harness launch {study}")
    return runs.folder
