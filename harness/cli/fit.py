"""The verb that fits a law to a table of anyone's runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as cli

if TYPE_CHECKING:
    from analysis.laws.approaches import Approach
    from analysis.table_laws import TableLaw


def fit(
    table: Annotated[
        Path,
        typer.Argument(metavar="TABLE.csv", callback=cli.home, help="One row a run; other columns may hold anything."),
    ],
    loss: Annotated[str, typer.Option("--loss", help="Column of the final loss.")],
    size: Annotated[str, typer.Option("--size", help="Column of the size N: parameters.")],
    data: Annotated[str, typer.Option("--data", help="Column of the data D: tokens, or images seen.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", callback=cli.home, help="A folder for fits.json and figures/. Default: that of the table."
        ),
    ] = None,
    delta: Annotated[
        float,
        typer.Option(help="Residual of ln loss from which a run counts linearly; one or two standard deviations of "
                     "the noise between seeds, where they are known."),
    ] = 1e-3,
) -> None:  # fmt: skip
    """Fit the law loss = E + A / N^alpha + B / D^beta to a table of runs, and say how to spend a budget C = 6 N D.

    By log-sum-exp and a summed Huber loss of ln loss from the starts of Hoffmann et al. (2022), with intervals by a
    bootstrap over the runs. Envelope, parabolas at equal compute and the law stand side by side. Writes fits.json and
    figures/ (PNG, SVG, PDF).
    """
    os.environ["MPLBACKEND"] = "agg"  # figures are drawn into files
    from analysis.table_laws import TableColumns, fit_table
    from harness.cli.words import wrapped

    found = fit_table(table, TableColumns(loss, size, data), delta, table.parent if output is None else output)
    console = cli.console()
    console.print(_constants(found))
    console.print()
    console.print(_approaches(found))
    for what, why in found.summary.omitted:
        print(wrapped(f"{what}: {why}"))
    print(f"{len(found.paths)} files; all numbers are in {found.paths[0]}")


def _constants(found: TableLaw) -> Any:
    from analysis.numbers import interval, number
    from harness.cli.fitted import Column, FittedTable

    fit, words = found.fit, found.summary.words
    rows = [
        {"constant": name, "value": number(value, 6), "interval": interval(fit.intervals[name], 4)}
        for name, value in fit.constants.items()
    ]
    flags = f"; {'; '.join(fit.flags)}" if fit.flags else ""
    return FittedTable(
        title=f"{words.loss} = E + A / N^alpha + B / D^beta, {fit.runs} runs of {found.summary.label}",
        columns=_columns(Column, "constant", "value", "interval:95 %"),
        rows=rows,
        caption=f"{words.meaning}; 95 %: bootstrap over the runs; residuals {fit.sigma * 100:.2g} %{flags}",
    )


def _approaches(found: TableLaw) -> Any:
    from harness.cli.fitted import Column, FittedTable

    return FittedTable(
        title="How the best N and the best D grow with a budget C = 6 N D, after Hoffmann et al. (2022)",
        columns=_columns(
            Column, "approach", "size:N ~ C^", "size95:95 %", "data:D ~ C^", "data95:95 %", "budgets", "flags"
        ),
        rows=[_row(approach) for approach in found.summary.approaches],
        caption="budgets: those whose optimum a smaller and a larger model enclose; only these count",
    )


def _row(approach: Approach) -> dict[str, str]:
    from analysis.numbers import interval, number

    return {
        "approach": approach.name,
        "size": number(approach.size_exponent, 3), "size95": interval(approach.size_interval),
        "data": number(approach.data_exponent, 3), "data95": interval(approach.data_interval),
        "budgets": "" if approach.name == "parametric" else f"{approach.enclosed} of {len(approach.optima)}",
        "flags": approach.why,
    }  # fmt: skip


def _columns(kind: Any, *names: str) -> list[Any]:
    """Columns of texts; "key:title" where they differ."""
    pairs = [(name.partition(":")[0], name.rpartition(":")[2]) for name in names]
    return [kind(title, lambda row, key=key: row[key], rank=len(names) - at) for at, (key, title) in enumerate(pairs)]
