"""The verb that says what to train next: recommend."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as cli
from harness.cli.report import tables_of
from harness.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.predict import Outlook, Training
    from harness.cli.fitted import FittedTable
    from harness.spec.cell import Cell
    from sweeps.grid import Sweep

_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}
_MOST = 1e30  # operations
_ROWS = 12  # of the table of runs


def recommend(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="A sweep file, a study's name, a folder of tables, or a .csv.")
    ],
    budget: Annotated[
        str,
        typer.Option(
            metavar="<budget>",
            help="Of one training: operations, 6 x MACs x images, such as 1e18; or a time, such as 4h, at the rate of "
            "the study's largest model.",
        ),
    ],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="<sweep>",
            help="A sweep: new models have the proportions and the recipe of its largest, and its cells are the runs "
            "to choose from. Default: the study's own.",
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="<name>", help="Fit as if this model were not there.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=cli.home, help="A new .toml file for a sweep of the models."),
    ] = None,
    results: cli.ResultsOption = cli.RESULTS,
    wide: cli.WideOption = False,
) -> None:
    r"""Say which model a budget is best spent on by every law, what it would reach, and which run would tell most.

    Forms of compute alone know one length of training: by them the largest model wins that the budget trains for as
    long. The law of size and data, where the study has several lengths, spends the budget on both. Every prediction has
    its 95 % interval for a new training, which holds only if the form does.

    \b
    dit-harness recommend quickstart --budget 1e15
    dit-harness recommend fashion --budget 4h --from sweeps/larger.toml -o sweeps/next.toml

    The second table holds cells of the sweep that were not trained: what share of the law's standard deviation at the
    recommended model stays after each, and which lowers it most an operation (to first order, J0' (J'J)^-1 J0 with the
    jacobian J of the form).
    """
    os.environ["MPLBACKEND"] = "agg"
    from analysis.predict import outlooks
    from analysis.slices import LOSS, scaling_slices
    from analysis.table import load_curves, load_study, load_table

    sweep = _sweep(from_ or study, results, needed=from_ is not None)
    if output is not None and (sweep is None or output.exists() or output.suffix != ".toml"):
        why = "it exists" if output.exists() else "should end in .toml" if sweep else "needs --from"
        raise InputError(f"--output: {output}: {why}; allowed: a new .toml file, for a study with a sweep")
    folder = tables_of(cli.home(study), results, [])
    table = load_study(folder) if folder.suffix == ".csv" else load_table(folder)
    curves = load_curves(folder) if folder.is_dir() else None
    table = _less(table, without or [])
    operations = _operations(budget, table)
    pieces = [some[0] for column in ("frechet", LOSS) if column in table and (some := scaling_slices(table, column))]
    if not pieces:
        raise InputError(f"{folder}: no row has a distance or a held-out loss; nothing can be predicted")
    chosen: list[Cell] = []
    for found in outlooks(pieces, curves, None if sweep is None else partial(_count_one, sweep)):
        _show(found, operations, sweep, chosen, wide=wide)
    if output is not None and sweep is not None:
        _write(sweep, chosen, output, study, budget)


def _sweep(name: str, results: Path, *, needed: bool) -> Sweep | None:
    """The sweep of a name; None for tables without one."""
    try:
        return cli.resolve(cli.home(name), results)[0]
    except InputError:
        if needed or name.endswith(".toml"):
            raise
        return None


def _less(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The table without the rows of some models."""
    for name in names:
        mine = (table["name"] == name) | table["cell"].astype(str).eq(name)
        if not mine.any():
            allowed = ", ".join(dict.fromkeys(table["name"].astype(str)))
            raise InputError(f"--without {name}: no such model; allowed: {allowed}")
        table = table[~mine]
    return table


def _operations(budget: str, table: pd.DataFrame) -> float:
    """The operations of a budget."""
    found = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?) *(s|min|m|h|d)?", budget.strip(), re.IGNORECASE)
    value = float(found[1]) if found and found[1].count(".") < 2 and found[1] != "." else math.nan
    if not found or not 0 < value < math.inf:
        raise InputError(f"--budget: {budget!r}; allowed: operations such as 1e18, or a time such as 4h, 30min, 2d")
    if found[2]:
        value *= _SECONDS[found[2].lower()] * _rate(budget, table)
    if not 0 < value <= _MOST:
        raise InputError(f"--budget: {budget} is {value:.3g} operations; allowed: up to {_MOST:g}")
    return value


def _rate(budget: str, table: pd.DataFrame) -> float:
    """Operations per second of the training of the largest model that has a time."""
    from analysis.frontier import TRAINING

    timed = table[(table["train_seconds"] > 0) & (table["train_gmacs"] > 0)] if "train_seconds" in table else table[:0]
    if timed.empty:
        raise InputError(f"--budget: {budget}: the study has no times of training; allowed: operations, such as 1e18")
    largest = timed[timed["gmacs"] == timed["gmacs"].max()]
    last = largest.loc[largest.groupby("cell")["step"].idxmax()]
    rate = float((TRAINING * last["train_gmacs"] / last["train_seconds"]).median())
    print(f"{budget} at {rate:.3g} operations per second, as {last['name'].iloc[0]} trained")
    return rate


def _count_one(sweep: Sweep) -> None:
    """Count one network: the first takes seconds, most of them to load torch."""
    from harness.model.cost import count_cell

    count_cell(next(cell for _, cell in sweep.cells()))


def _show(found: Outlook, operations: float, sweep: Sweep | None, chosen: list[Cell], *, wide: bool) -> None:
    """Print what the forms of one metric say, and add the cells recommended to `chosen`."""
    from analysis.predict import budgeted
    from harness.cli.words import wrapped

    piece = found.piece
    wanted = list(budgeted(found, operations))
    rows: list[dict[str, Any]] = []
    targets: list[Training] = []
    for by, gmacs, images in wanted:
        target, cell = _training(found, sweep, gmacs, images)
        targets.append(target)
        chosen += [cell] if cell is not None and cell not in chosen else []
        for prediction in found.predictions(target):
            if target.name in {row["training"].name for row in rows if row["form"].form == prediction.form}:
                continue
            rows.append({"training": target, "form": prediction, "by": by})
    print(wrapped(f"{piece.metric}: {found.fits.brief}"))
    if not rows:
        for what, why in found.omitted:
            print(wrapped(f"{what}: {why}"))
        print("no form can predict; nothing is recommended")
        return
    cli.print_table(_predictions(rows, piece.metric, operations), wide=wide)
    for what, why in found.omitted:
        if "law" in what.lower():
            print(wrapped(f"{what}: {why}"))
    if sweep is not None and targets:
        _print_runs(found, sweep, targets[0], wide=wide)


def _training(found: Outlook, sweep: Sweep | None, gmacs: float, images: float) -> tuple[Training, Cell | None]:
    """A training of about this size: a DiT in the sweep's proportions where there is a sweep."""
    from analysis.predict import Training

    if sweep is None:
        return Training(f"{gmacs:.3g} GMACs", gmacs, images), None
    from harness.launch.recommend import trained_within

    cell = trained_within(sweep, gmacs * (1 + 1e-6), images, found.best.patch_size)
    return training_of(cell), cell


def training_of(cell: Cell, name: str | None = None) -> Training:
    """The training of a cell, as the forms know it."""
    from analysis.predict import Training
    from harness.model.cost import count_cell

    cost, training = count_cell(cell), cell.training
    patch = getattr(cell.model, "patch_size", None)
    name = name or f"{cell.model.readable_name}, {training.steps:,} steps"
    return Training(name, cost.macs / 1e9, training.steps * training.batch_size, cost.params, cell.tokens, patch)


def _predictions(rows: Sequence[Any], metric: str, operations: float) -> FittedTable:
    from analysis.numbers import interval, number
    from harness.cli.fitted import Column, FittedTable

    columns = [
        Column("training", lambda row: row["training"].name, rank=10),
        Column("GMACs", lambda row: number(row["training"].gmacs), "right", 8),
        Column("images", lambda row: number(row["training"].images), "right", 4),
        Column("operations", lambda row: f"{row['training'].operations:.3g}", "right", 3),
        Column("form", lambda row: row["form"].form, rank=9),
        Column(metric, lambda row: number(row["form"].mean), "right", 10),
        Column("95 %", lambda row: interval((row["form"].low, row["form"].high)), rank=9),
        Column("notes", lambda row: "; ".join(row["form"].flags), rank=7, least=24),
    ]
    caption = (
        "the form that predicts unseen models best comes first; 95 %: of a new training, if the form holds; a training "
        "is recommended by the forms of compute (largest at their length) or by a law of size and data"
    )
    return FittedTable(f"What {operations:.3g} operations of training buy", columns, rows, caption)


def _print_runs(found: Outlook, sweep: Sweep, target: Training, *, wide: bool) -> None:
    """Print which untrained cells of the sweep would narrow the forecast of `target` most."""
    from analysis.numbers import number
    from harness.cli.fitted import Column, FittedTable

    trained = set(found.piece.group.table["cell"].astype(str))
    forms = [form for form in found.predictors if form.holds_for(target)][:3]
    runs: dict[Any, Training] = {}
    for name, cell in sweep.cells():
        if cell.id not in trained and (cell.model, cell.training) not in runs:
            runs[cell.model, cell.training] = training_of(cell, name)
    rows: list[dict[str, Any]] = []
    for run in (run for run in runs.values() if run.operations < target.operations):
        left = {form.form: form.left(target, run) for form in forms if form.holds_for(run)}
        if left:
            gains = [1 - share**2 for share in left.values()]
            rows.append({"run": run, "left": left, "gain": max(gains[0], 0.0) / run.operations})
    if not rows:
        return
    rows.sort(key=lambda row: -row["gain"])
    best = rows[0]["gain"] or 1.0

    def stays(row: Any, form: str) -> str:
        return f"{row['left'][form]:.1%}" if form in row["left"] else ""

    columns = [
        Column("cell", lambda row: row["run"].name, rank=10),
        Column("GMACs", lambda row: number(row["run"].gmacs), "right", 8),
        Column("operations", lambda row: f"{row['run'].operations:.3g}", "right", 6),
        *(Column(form.form, partial(stays, form=form.form), "right", 9 - at) for at, form in enumerate(forms)),
        Column("per operation", lambda row: f"{row['gain'] / best:.0%}", "right", 9),
    ]  # fmt: skip
    caption = (
        f"share of each form's standard deviation at {target.name} that stays after the run; per operation: the "
        f"variance of {forms[0].form} that it takes away, over that of the best run"
    )
    more = f", the first {_ROWS} of {len(rows)}" if len(rows) > _ROWS else ""
    cli.print_table(FittedTable(f"Which run tells most about it{more}", columns, rows[:_ROWS], caption), wide=wide)


def _write(sweep: Sweep, chosen: Sequence[Cell], output: Path, study: str, budget: str) -> None:
    from harness.files import write_text
    from harness.launch.recommend import as_sweep
    from sweeps.grid import load_sweep
    from sweeps.text import text_of

    made = as_sweep(sweep, chosen, f"What {budget} buys, after {Path(study).stem}")
    write_text(output, text_of(made, f"dit-harness recommend {study} --budget {budget}"))
    load_sweep(output)
    print(f"wrote {output}; next: dit-harness plan {output}")
