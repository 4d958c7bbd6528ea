"""The compute-optimal frontier: checkpoints against the compute of their training or sampling, and their envelope."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from analysis.figures import style
from analysis.figures.scaling import draw_points
from analysis.figures.style import Drawing, ModelKey
from analysis.frontier import Frontier
from analysis.laws.runs import Words
from analysis.names import METRIC

_AXES = {"training": Words().compute, "sampling": "Compute of sampling one image, operations"}


@style.styled
def frontier(
    table: pd.DataFrame,
    found: Frontier,
    metric: str,
    caption: str,
    column: str = METRIC,
    key: ModelKey | None = None,
    what: Literal["training", "sampling"] = "training",
) -> Drawing:
    """All checkpoints against compute on two log axes, their lower envelope and its power law.

    Args:
        table: rows of `analysis.frontier.checkpoints` or `sampled`.
        found: their envelope.
        metric: printed name of the metric.
        caption: how it was measured.
        column: of the metric.
        key: how the models of the study are drawn; by default that of these rows.
        what: the compute is that of training, or of sampling one image.
    """
    figure, (axes,) = style.new_figure()
    key = key or ModelKey.of(table)
    for look, run in key.runs(table.sort_values("compute", kind="stable")):
        axes.plot(run["compute"], run[column], color=look.colour, linewidth=0.6, alpha=0.5, zorder=1)
    draw_points(axes, table, "compute", column, key)
    compute = np.array([point.compute for point in found.points])
    axes.step(
        [*compute, table["compute"].max()], [*(p.metric for p in found.points), found.points[-1].metric],
        where="post", color="black", linewidth=0.9, zorder=2,
    )  # fmt: skip
    handles = [*key.handles(table), style.legend_entry("envelope", color="black", linewidth=0.9)]
    if found.law is not None:
        x = np.geomspace(*found.law.x_range, 50)
        axes.plot(x, found.law.coefficient * x**-found.law.exponent, color="#777777", linestyle="--", zorder=2)
        handles.append(style.legend_entry("its power law", color="#777777", linestyle="--"))
        style.typeset(axes, [style.power_law(metric, found.law.coefficient, found.law.exponent, "C")])
    style.log_scale(axes, "x", "y")
    axes.set(xlabel=_AXES[what], ylabel=style.lower(metric))
    return style.finish(figure, f"The compute-optimal frontier of {metric}, {what}", caption, handles)
