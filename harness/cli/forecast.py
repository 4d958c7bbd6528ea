"""The verb that puts a forecast on record: forecast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as cli
from harness.cli.recommend import training_of
from harness.cli.report import tables_of
from harness.errors import InputError

if TYPE_CHECKING:
    from analysis.forecasts import Forecast
    from harness.cli.fitted import FittedTable
    from harness.runs.cellruns import CellRun
    from sweeps.grid import Sweep


def forecast(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="A study, or a folder of tables, that is fitted.")],
    cell: Annotated[
        str, typer.Option("--cell", metavar="<cell>", help="What is predicted: SWEEP:NAME, or a cell of the study.")
    ],
    results: cli.ResultsOption = cli.RESULTS,
    wide: cli.WideOption = False,
) -> None:
    r"""Predict a model before it is trained, and put that on record.

    Every form that the study carries predicts the cell's distance and its held-out loss after its last step. They are
    written to the study's forecasts.json with 95 % prediction intervals, what they were fitted to (by hash), time and
    commit. A cell that was launched is refused, and so is one that is fitted. `report` sets the truth beside it:
    whether the interval holds it, and the interval score against the plain power law.

    \b
    dit-harness forecast fashion-scaling --cell sweeps/fashion-large.toml:d6-w128-p4
    """
    os.environ["MPLBACKEND"] = "agg"
    from analysis.forecasts import FILE, as_json, load_forecasts
    from harness.files import write_json

    folder = tables_of(cli.home(study), results, [])
    if folder.suffix == ".csv":
        raise InputError(f"{study}: a forecast needs a folder for its {FILE}; allowed: a study, or a folder of tables")
    sweep, item = _target(study, cell, results)
    known = load_forecasts(folder)
    made = _forecasts(folder, sweep, item, cell)
    again = {(one.cell, one.column, one.evaluation, one.data) for one in known}
    if all((one.cell, one.column, one.evaluation, one.data) in again for one in made):
        raise InputError(f"{folder / FILE}: holds a forecast of {item.name} from these data already; it stays")
    write_json(folder / FILE, as_json((*known, *made)))
    for one in made:
        cli.print_table(_table(one), wide=wide)
    print(f"on record in {folder / FILE}; next: commit it, train the cell, then dit-harness report {study}")


def _target(study: str, cell: str, results: Path) -> tuple[Sweep, CellRun]:
    """The cell to predict, which nobody has launched.

    Raises:
        InputError: no such cell, or it was launched.
    """
    from harness.runs.state import State

    other, _, name = cell.rpartition(":")
    sweep, runs = cli.resolve(cli.home(other or study), results)
    item = cli.find_cell(cli.items_of(sweep, runs), name, runs)
    if item.now.state is not State.MISSING:
        raise InputError(
            f"--cell {cell}: it has been launched (state {item.now.state}), so this would be no forecast; allowed: a "
            "cell that nobody has launched"
        )
    return sweep, item


def _forecasts(folder: Path, sweep: Sweep, item: CellRun, cell: str) -> list[Forecast]:
    """What the forms of every metric predict that the cell is measured by.

    Raises:
        InputError: the cell is among those fitted, or is measured in no way that the study is.
    """
    from analysis.forecasts import forecast as predicted
    from analysis.predict import outlook
    from analysis.slices import LOSS, scaling_slices
    from analysis.table import load_curves, load_table
    from harness.processes import now
    from harness.runs.provenance import origin

    table, training = load_table(folder), training_of(item.cell, item.name)
    if (table["cell"].astype(str) == item.cell.id).any():
        raise InputError(f"--cell {cell}: it is in the set that is fitted; allowed: a cell that has no rows there")
    asked = [evaluation.id for evaluation in sweep.evaluations_of(item.cell)]
    about = {
        "study": sweep.study, "cell": item.cell.id, "name": item.name, "step": item.cell.training.steps,
        "made": now(), "commit": origin()[0].commit,
    }  # fmt: skip
    made, reasons = [], []
    for column in ("frechet", LOSS):
        for piece in scaling_slices(table, column) if column in table else []:
            same = [key for key in asked if (piece.table["evaluation"] == key).any()] if column != LOSS else [""]
            alike = piece.block == item.cell.model.label and (piece.table["data"] == item.cell.data.name).all()
            batch = (piece.table["batch_size"] == item.cell.training.batch_size).all()
            if not (same and alike and batch):
                continue
            try:
                found = outlook(piece, load_curves(folder))
                made.append(predicted(found, training, {**about, "evaluation": same[0]}))
            except InputError as error:
                reasons.append(str(error))
            break
    if not made:
        why = "; ".join(reasons) or "it differs in design, data, batch size or evaluations"
        raise InputError(f"--cell {cell}: no form of {folder.name} predicts it: {why}")
    return made


def _table(one: Forecast) -> FittedTable:
    from analysis.numbers import interval, number
    from harness.cli.fitted import Column, FittedTable

    rows: list[dict[str, Any]] = [{"said": said} for said in one.said]
    columns = [
        Column("form", lambda row: row["said"].form, rank=9),
        Column(one.metric, lambda row: number(row["said"].mean), "right", 10),
        Column("95 %", lambda row: interval((row["said"].low, row["said"].high)), rank=8),
        Column("beyond", lambda row: f"{row['said'].extrapolation:.3g} x", "right", 5),
        Column("notes", lambda row: "; ".join(row["said"].flags), rank=4, least=24),
    ]
    caption = f"fitted to {one.fitted} models; 95 %: of a new training; beyond: operations over the most fitted"
    return FittedTable(f"{one.name}, {one.step:,} steps: {one.operations:.3g} operations", columns, rows, caption)
