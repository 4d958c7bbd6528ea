"""Every metric of the generated images against compute: the paper's Figure 12."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.conditions import require_comparable
from analysis.figures.scaling import draw_points
from analysis.figures.style import (
    CannotDrawError,
    Drawing,
    ModelKey,
    finish,
    linear_ticks,
    log_scale,
    new_figure,
    shortened,
    styled,
)
from analysis.fit.lines import Correlation
from analysis.names import METRIC
from analysis.slices import per_shape


@styled
def all_metrics(
    checkpoints: pd.DataFrame,
    models: pd.DataFrame,
    names: Mapping[str, str],
    caption: str,
    correlations: Mapping[str, Correlation] | None = None,
    key: ModelKey | None = None,
) -> Drawing:
    """A row per metric: against training compute (all checkpoints, left) and Gflops (one step, right), log x axes.

    Seeds are averaged; a bar is one standard deviation to either side.

    Args:
        checkpoints: comparable rows of one block with train_gmacs and the metrics, at every step.
        models: those of one step, with gmacs.
        names: column to printed name; columns without a value are left out.
        caption: how they were measured.
        correlations: by column, the correlation of the metric with the models' compute; the semi-log r is printed.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: no metric but the Frechet distance has values.
    """
    require_comparable(checkpoints)
    shown = [column for column in names if column in checkpoints and checkpoints[column].notna().any()]
    if set(shown) <= {METRIC}:
        raise CannotDrawError("no metric but the Fréchet distance was measured")
    figure, all_axes = new_figure(0.6 + 0.95 * len(shown), 2, len(shown), sharex=True, sharey=False)
    key = key or ModelKey.of(checkpoints)
    trained = checkpoints[checkpoints["train_gmacs"] > 0]
    for row, column in enumerate(shown):
        left, right = all_axes[2 * row : 2 * row + 2]
        for axes, rows, x in ((left, trained, "train_gmacs"), (right, models, "gmacs")):
            draw_points(axes, per_shape(rows[rows[column].notna()], column), x, column, key)
        left.set_ylabel(shortened(names[column], 16))
        if correlations and column in correlations:
            right.set_title(f"r = {correlations[column].semilog:.2f}", loc="right", fontsize=6)
    for axes in all_axes:
        log_scale(axes, "x", narrow=True)
        linear_ticks(axes.yaxis, 4)
    all_axes[-2].set_xlabel("Training Gflops")
    all_axes[-1].set_xlabel("Gflops")
    return finish(figure, "Metrics against compute", caption, key.handles(checkpoints))
