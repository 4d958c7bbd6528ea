"""The compute-optimal frontier and slices at equal training compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.figures import style
from analysis.figures.scaling import draw_points, measured_rows
from analysis.figures.style import Drawing, ModelKey
from analysis.frontier import Frontier, IsoFlop
from analysis.names import METRIC, patch_name


@style.styled
def frontier(
    table: pd.DataFrame,
    found: Frontier,
    metric: str,
    caption: str,
    column: str = METRIC,
    key: ModelKey | None = None,
) -> Drawing:
    """All checkpoints against training compute on two log axes, their lower envelope and its power law.

    Args:
        table: comparable rows, see `analysis.frontier.checkpoints`.
        found: their envelope.
        metric: printed name of the metric.
        caption: how it was measured.
        column: of the metric.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: no rows with both values.
    """
    rows = measured_rows(table, column, "train_gmacs")
    figure, (axes,) = style.new_figure()
    key = key or ModelKey.of(rows)
    for look, run in key.runs(rows):
        axes.plot(run["train_gmacs"], run[column], color=look.colour, linewidth=0.6, alpha=0.5, zorder=1)
    draw_points(axes, rows, "train_gmacs", column, key)
    compute = np.array([point.train_gmacs for point in found.points])
    axes.step(
        [*compute, rows["train_gmacs"].max()], [*(p.metric for p in found.points), found.points[-1].metric],
        where="post", color="black", linewidth=0.9, zorder=2,
    )  # fmt: skip
    handles = [*key.handles(rows), style.legend_entry("envelope", color="black", linewidth=0.9)]
    if found.law is not None:
        x = np.geomspace(compute[0], compute[-1], 50)
        axes.plot(x, found.law.coefficient * x**-found.law.exponent, color="#777777", linestyle="--", zorder=2)
        handles.append(style.legend_entry("its power law", color="#777777", linestyle="--"))
        style.typeset(axes, [style.power_law(metric, found.law.coefficient, found.law.exponent, "C")])
    style.log_scale(axes, "x", "y")
    axes.set(xlabel=style.TRAINING_COMPUTE, ylabel=style.lower(metric))
    return style.finish(figure, f"The compute-optimal frontier of {metric}", caption, handles)


@style.styled
def isoflops(slices: Sequence[IsoFlop], metric: str, caption: str) -> Drawing:
    """The metric against compute of one forward pass at equal training compute: a curve per budget, a panel per patch.

    Args:
        slices: from `analysis.frontier.isoflop_slices`; the bottom of a curve is marked where the models enclose it.
        metric: printed name of the metric.
        caption: how it was measured.

    Raises:
        CannotDrawError: no slices.
    """
    if not slices:
        raise style.CannotDrawError("no slices at equal training compute")
    patches = sorted({piece.patch_size for piece in slices}, key=lambda patch: -(patch or 0))
    figure, all_axes = style.new_panels(len(patches))
    budgets = sorted({piece.train_gmacs for piece in slices})
    colour = style.colours([f"{budget:.12g}" for budget in budgets])
    for axes, patch in zip(all_axes, patches, strict=True):
        for piece in (piece for piece in slices if piece.patch_size == patch):
            ink = colour[f"{piece.train_gmacs:.12g}"]
            axes.plot(piece.gmacs, piece.metric, color=ink, marker=style.MARKERS[0], linestyle="")
            x = np.geomspace(*piece.span, 60)
            axes.plot(x, np.exp(np.polyval(piece.curve, np.log(x))), color=ink, linewidth=0.8)
            if piece.optimum is not None:
                bottom = np.exp(np.polyval(piece.curve, np.log(piece.optimum)))
                axes.plot(
                    [piece.optimum],
                    [bottom],
                    color=ink,
                    marker="*",
                    markersize=7,
                    markeredgecolor="black",
                    markeredgewidth=0.5,
                )
        style.log_scale(axes, "x", narrow=len(patches) > 1)
        style.log_scale(axes, "y")
        axes.set(xlabel=style.GFLOPS if len(patches) == 1 else "Gflops", title=patch_name(patch))
    for axes in all_axes[::2]:
        axes.set_ylabel(style.lower(metric))
    handles = [style.legend_entry(style.plain(float(f"{b:.2g}")), color=colour[f"{b:.12g}"]) for b in budgets]
    handles.append(style.legend_entry("optimum", color="#777777", marker="*", markersize=6, linestyle=""))
    return style.finish(figure, f"{metric} at equal training compute", caption, handles, "Training Gflops")
