"""The verbs that write results: collect, report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as cli
from harness.errors import InputError


def collect(study: cli.StudyArgument, results: cli.ResultsOption = cli.RESULTS) -> None:
    """Write results.csv, nested.csv, curves.csv, attempts.csv and samples/*.png from the run folders."""
    from harness.runs.collect import collect as write_tables

    sweep, folder = cli.resolve(study, results)
    rows = write_tables(folder, cli.items_of(sweep, folder))
    print(f"{len(rows)} rows in {folder.table('results.csv')}")


def report(
    study: Annotated[
        str,
        typer.Argument(callback=cli.home, help="A sweep file, a study's name, or a folder of tables (results/paper)."),
    ],
    results: cli.ResultsOption = cli.RESULTS,
) -> None:
    """Say what the study shows, fit the laws (fits.json), draw the figures (PNG, SVG, PDF) and write a report.

    report.html is one self-contained page that begins with the answers; report.md holds the answers alone.
    """
    from harness.cli.words import wrapped
    from harness.runs.collect import collect as write_tables

    folder = Path(study)
    if not (folder.is_dir() and any((folder / name).exists() for name in ("published.csv", "results.csv"))):
        sweep, runs = cli.resolve(study, results)
        if not write_tables(runs, cli.items_of(sweep, runs)):
            raise InputError(f"{study}: no cell is evaluated yet; first: dit-harness launch {study}")
        folder = runs.folder
    # figures are drawn into files; a backend that the environment names may not be installed
    os.environ["MPLBACKEND"] = "agg"
    from analysis.report import write_report

    written = write_report(folder)
    for line in written.summary:
        print(wrapped(line))
    print(f"{len(written.paths)} files, all on one page: {written.paths[-1]}")
