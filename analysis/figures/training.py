"""Curves over training steps: the paper's Figures 6 and 13."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from analysis.figures import style
from analysis.figures.style import Drawing, ModelKey
from analysis.fit.common import Array
from analysis.names import patch_name, patch_order, plural, size_order

_MOST_PANELS = 4
_MOST_CURVES = 120  # of more cells some are drawn: lines that lie on each other show nothing
_NOISY = 40  # a curve of more points is smoothed, over a share of its points
_SMOOTHED = 0.06
_LOG_HALF = 1.12  # half of the window on a log axis, as a factor


@style.styled
def over_steps(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    ylabel: str,
    heading: str,
    caption: str,
    log_axes: bool = False,
    panel: str = "patch_size",
    key: ModelKey | None = None,
) -> Drawing:
    """Values over training steps, one line per cell, one panel per patch size or per size (paper's Figures 6, 13).

    Cells with a value at a single step are not drawn. Colours are those of the models; the line style shows the column,
    or else what the colour does not. A noisy curve is drawn faint, with its running mean.

    Args:
        table: rows with cell, step, size, depth, width, block, patch_size and the columns; one value per cell and step.
        columns: column to its name in the legend, for example loss_heldout to "held-out".
        ylabel: label of the value axis, with its unit.
        heading: title of the figure.
        caption: how the values were measured.
        log_axes: two log axes, which show the early steps and the late values.
        panel: "patch_size", or "size" for one panel per size.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        CannotDrawError: no cell has a value at more than one step; or, for a panel per size, one size only or too many.
    """
    rows = table.dropna(subset=list(columns), how="all")
    rows = rows[rows["step"] > 0] if log_axes else rows
    rows = rows[rows.groupby("cell")["step"].transform("nunique") > 1]
    if rows.empty:
        raise style.CannotDrawError("no cell was measured at more than one training step")
    rows, left_out = _thinned(rows)
    panels = _panels(rows, panel)
    figure, all_axes = style.new_panels(len(panels))
    key = key or ModelKey.of(rows)
    markers = panel == "size"  # then the patch sizes share a panel
    for axes, (above, cells) in zip(all_axes, panels, strict=True):
        for _, run in cells.sort_values("step").groupby("cell"):
            look = key.look(run)
            for index, column in enumerate(columns):
                values = run[["step", column]].dropna().groupby("step", as_index=False).mean()
                line = style.line_style(index) if len(columns) > 1 else look.line
                _curve(axes, values.set_axis(["step", "value"], axis=1), look, line, log_axes)
        axes.set_title(style.shortened(above, 28))
        axes.set_xlabel(style.STEPS)
        if log_axes:
            _log_steps(axes, cells)
        else:
            step_ticks(axes)
            style.linear_ticks(axes.yaxis)
    for axes in all_axes[::2]:
        axes.set_ylabel("\n".join(textwrap.wrap(ylabel, 24 if len(panels) > 2 else 34)))
    handles = key.handles(rows, markers)
    return style.finish(figure, heading, caption + left_out, handles + _column_entries(columns))


def _column_entries(columns: Mapping[str, str]) -> list[Any]:
    return style.style_entries(list(columns.values())) if len(columns) > 1 else []


def _curve(axes: Axes, values: pd.DataFrame, look: style.Look, line: Any, log_axes: bool = False) -> None:
    """Columns step and value: with markers if they are few; faint behind their running mean if they are many."""
    ink: Any = {"color": look.colour, "linestyle": line}
    steps, heights = values["step"].to_numpy(float), values["value"].to_numpy(float)
    if len(steps) <= _NOISY:
        few: Any = {**look.points, "markersize": 3} if len(steps) <= 12 else {}
        axes.plot(steps, heights, **{**few, **ink, "linewidth": 0.8})
        return
    axes.plot(steps, heights, color=look.colour, linewidth=0.4, alpha=0.25)
    axes.plot(steps, smoothed(steps, heights, log_axes), linewidth=0.8, **ink)


def smoothed(steps: Array, values: Array, log: bool = False) -> Array:
    """The running mean of values over a window that is equally wide everywhere on the axis; all of shape [n].

    Args:
        steps: rising.
        values: one a step.
        log: the axis is logarithmic.
    """
    half = _SMOOTHED / 2 * (steps[-1] - steps[0])
    ends = (steps / _LOG_HALF, steps * _LOG_HALF) if log else (steps - half, steps + half)
    first, last = np.searchsorted(steps, ends[0]), np.searchsorted(steps, ends[1], side="right")
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((total[last] - total[first]) / (last - first))


def step_ticks(axes: Axes) -> None:
    """Plain numbers of steps on a linear axis."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=3, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: style.short(value))


def _log_steps(axes: Axes, cells: pd.DataFrame) -> None:
    axes.set_xscale("log")
    style.log_scale(axes, "y")
    first, last = int(cells["step"].min()), int(cells["step"].max())
    decades = range(int(np.log10(first)), int(np.log10(last)) + 1)
    fit = [m * 10**power for power in decades for m in (1, 2, 5) if first <= m * 10**power <= last]
    ticks = [fit[i] for i in sorted({0, len(fit) // 2, len(fit) - 1})] if len(fit) > 1 else sorted({first, last})
    axes.set_xticks(ticks, [style.short(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())


@style.styled
def loss_with_zoom(table: pd.DataFrame, column: str, ylabel: str, caption: str, key: ModelKey | None = None) -> Drawing:
    """A loss over training, all of it and its first tenth, linear axes (paper's Figure 13); noisy curves smoothed.

    Args:
        table: rows with cell, step, size, depth, width, patch_size and the column.
        column: of the loss.
        ylabel: label of the value axis.
        caption: how it was measured.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        CannotDrawError: fewer than three steps in the first tenth.
    """
    rows = table.dropna(subset=[column])
    last = int(rows["step"].max()) if len(rows) else 0
    early = rows[rows["step"] <= last / 10]
    if early["step"].nunique() < 3:
        raise style.CannotDrawError("fewer than three steps were logged in the first tenth of training")
    rows, left_out = _thinned(rows)
    early = rows[rows["step"] <= last / 10]
    key, patches = key or ModelKey.of(rows), patch_order(rows)
    lines = {patch: style.line_style(index) for index, patch in enumerate(patches)}
    figure, all_axes = style.new_panels(2, sharey=False)
    for axes, part, heading in zip(all_axes, (rows, early), ("all of training", "its first tenth"), strict=True):
        for _, run in part.sort_values("step").groupby("cell"):
            values = run[["step", column]].set_axis(["step", "value"], axis=1)
            _curve(axes, values, key.look(run), lines.get(run["patch_size"].iloc[0], "-"))
        axes.set_title(heading)
        axes.set_xlabel(style.STEPS)
        step_ticks(axes)
        style.linear_ticks(axes.yaxis)
    late = rows.loc[rows["step"] > last / 10, column]
    all_axes[0].set_ylim(late.min() * 0.98, late.max() * 1.02)
    all_axes[0].set_ylabel(ylabel)
    handles = key.handles(rows, markers=False)
    handles += style.style_entries([*map(patch_name, patches)]) if len(patches) > 1 else []
    return style.finish(figure, "Training loss, with an early zoom", caption + left_out, handles)


def _thinned(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of at most `_MOST_CURVES` cells, and the end of the caption that says so.

    Of many cells one seed of each model is kept, and of many models some, evenly in the order of the table.
    """
    cells = rows.drop_duplicates("cell")
    if len(cells) <= _MOST_CURVES:
        return rows, ""
    one = cells.sort_values("seed", kind="stable").drop_duplicates(["depth", "width", "block", "patch_size"])
    one = one.sort_index()
    kept = one["cell"].iloc[np.unique(np.linspace(0, len(one) - 1, _MOST_CURVES).round().astype(int))]
    return rows[rows["cell"].isin(kept)], f"; {len(kept)} of {len(cells):,} cells are drawn, one seed a model"


def _panels(rows: pd.DataFrame, panel: str) -> list[tuple[str, pd.DataFrame]]:
    """Heading and rows of every panel."""
    names: dict[str, Any]
    if panel == "patch_size":
        names = {patch_name(patch): patch for patch in patch_order(rows)}
        if len(names) > _MOST_PANELS:
            return [(" and ".join(names), rows)]
    else:
        names = {size: size for size in size_order(rows)}
        if not 1 < len(names) <= _MOST_PANELS:
            raise style.CannotDrawError(f"{plural(len(names), 'size')}; panels by size need 2 to {_MOST_PANELS}")
    panels = [(name, rows[rows[panel] == value]) for name, value in names.items()]
    return panels + ([("no patches", rest)] if len(rest := rows[rows[panel].isna()]) else [])
