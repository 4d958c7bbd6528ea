"""Designs side by side at one shape: the paper's Figure 5."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.compare import BlockComparison
from analysis.conditions import require_comparable
from analysis.figures import style
from analysis.figures.style import Drawing, ModelKey
from analysis.figures.training import step_ticks
from analysis.names import METRIC, block_name
from analysis.trainings import training_of


@style.styled
def block_bars(table: pd.DataFrame, metric: str, caption: str, comparisons: Sequence[BlockComparison] = ()) -> Drawing:
    """The metric of the designs at one shape and step: a bar for the geometric mean, a dot for each seed; ±: one SD.

    Args:
        table: comparable rows of one shape, batch size and step, two or more blocks.
        metric: printed name of the metric.
        caption: how it was measured, and the shape and step.
        comparisons: the compute multipliers of the conclusive ones are printed after the values.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: fewer than two blocks.
    """
    rows = table[table[METRIC] > 0]
    require_comparable(rows)
    logs = rows[METRIC].map(math.log).groupby([rows["block"], training_of(rows)]).mean()  # as in the verdicts
    means = logs.groupby("block").mean().map(math.exp).sort_values(ascending=False)
    if len(means) < 2:
        raise style.CannotDrawError("fewer than two designs at one shape and step")
    key = ModelKey.of_blocks(rows)
    multiplier = {c.block: c.multiplier for c in comparisons if c.multiplier is not None and c.conclusive}
    figure, (axes,) = style.new_figure(height=0.6 + 0.25 * len(means))
    names = [style.shortened(block_name(str(block)), 20) for block in means.index]
    for index, (block, mean) in enumerate(means.items()):
        values = rows.loc[rows["block"] == block, METRIC]
        axes.barh(index, mean, color=key.look(rows[rows["block"] == block]).colour, height=0.62)
        if len(values) > 1:
            axes.plot(
                values,
                [index] * len(values),
                "o",
                color="white",
                markeredgecolor="black",
                markersize=2.5,
                markeredgewidth=0.5,
            )
        spread = f" ± {values.std():.2g}" if len(values) > 1 else ""
        bought = f"\n({multiplier[str(block)]:.2f}× compute)" if str(block) in multiplier else ""
        text, place = f"{mean:.3g}{spread}{bought}", axes.get_yaxis_transform()
        axes.text(1.02, index, text, transform=place, va="center", fontsize=6)
    axes.set_yticks(range(len(means)), names)
    axes.grid(False, axis="y")
    axes.set_xlim(0, 1.04 * rows[METRIC].max())
    style.linear_ticks(axes.xaxis)
    axes.set(xlabel=style.lower(metric, 50))
    return style.finish(figure, f"{metric} of the designs", caption)


@style.styled
def block_curves(table: pd.DataFrame, metric: str, shape: str, caption: str) -> Drawing:
    """The metric of the designs over training at one shape: thick the mean of a design, faint each of its seeds.

    Args:
        table: comparable rows of one shape, with cell, step, block and the metric.
        metric: printed name of the metric.
        shape: for the heading.
        caption: how it was measured.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: fewer than two blocks have a value at more than one step.
    """
    rows = table[table[METRIC].notna()]
    require_comparable(rows)
    rows = rows[rows.groupby("cell")["step"].transform("nunique") > 1]
    if rows["block"].nunique() < 2:
        raise style.CannotDrawError("fewer than two designs were measured at more than one training step")
    figure, (axes,) = style.new_figure()
    key = ModelKey.of_blocks(rows)
    for _, design in rows.groupby("block"):
        look = key.look(design)
        runs = [run.groupby("step")[METRIC].mean() for _, run in design.groupby("cell")]
        for run in runs if len(runs) > 1 else []:
            axes.plot(run.index, run, color=look.colour, linewidth=0.5, alpha=0.35)
        mean = pd.concat(runs, axis=1).dropna().mean(axis=1)
        dots = {**look.points, "markersize": 3} if len(mean) <= 12 else {}
        axes.plot(mean.index, mean, **{**dots, "color": look.colour, "linestyle": "-", "linewidth": 1.4})
    step_ticks(axes)
    style.linear_ticks(axes.yaxis)
    axes.set(xlabel=style.STEPS, ylabel=style.lower(metric))
    heading = f"{metric} of the designs over training, {shape}"
    return style.finish(figure, heading, caption, key.handles(rows, markers=False))
