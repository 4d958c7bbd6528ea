"""What `evaluate --guidance best` prints."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from harness.cli import options as cli

if TYPE_CHECKING:
    from analysis.page import Table
    from harness.cli.fitted import FittedTable
    from harness.runs.cellruns import CellRun
    from harness.runs.study import Study


def print_choices(study: Study, everything: list[CellRun], owed: Collection[tuple[str, str]], *, wide: bool) -> None:
    """Write the tables of all cells, and print the chosen scales.

    Args:
        study: where the tables go.
        everything: all cells of the study.
        owed: the cells and records of the searches.
        wide: print all columns.
    """
    from analysis.guidance import choices
    from analysis.printed_guidance import choice_table
    from analysis.table import load_study
    from harness.runs.cellruns import evaluation_key
    from harness.runs.collect import collect

    rows = collect(study, everything)
    if not rows:
        return
    table = load_study(study.folder)
    keys = [(cell, evaluation_key(evaluation, step)) for cell, evaluation, step in
            zip(table["cell"], table["evaluation"], table["step"], strict=True)]  # fmt: skip
    found = choices(table[[key in owed for key in keys]])
    for way in dict.fromkeys(one.conditions for one in found):
        shown = [one for one in found if one.conditions == way]
        cli.print_table(_fitted(choice_table(shown)), wide=wide)
    if not found:
        print("no scale is chosen yet", file=sys.stderr)
    print(f"{len(rows)} rows in {study.table('results.csv')}")
    print(f"figures and report: dit-harness report {study.name}")


def _fitted(table: Table) -> FittedTable:
    from harness.cli.fitted import Column, FittedTable

    def column(at: int, title: str) -> Column:
        side = "right" if table.numeric[at] else "left"
        return Column(title, lambda row: row[str(at)], side, len(table.columns) - at)  # type: ignore[arg-type]

    rows: Sequence[dict[str, str]] = [{str(at): text for at, text in enumerate(row)} for row in table.rows]
    return FittedTable(
        "Best guidance scale", [column(at, title) for at, title in enumerate(table.columns)], rows, table.caption
    )
