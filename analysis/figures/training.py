"""Curves over training steps and block designs side by side: the paper's Figures 5, 6 and 13."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from analysis.compare import BlockComparison
from analysis.conditions import require_comparable
from analysis.figures import style
from analysis.names import BLOCK_NAMES, METRIC, block_name, patch_name, patch_order, plural, size_order

_MOST_PANELS = 4


@style.styled
def block_bars(table: pd.DataFrame, metric: str, caption: str, comparisons: Sequence[BlockComparison] = ()) -> Figure:
    """The metric of the block designs at one shape and step: a bar for the mean, a dot for each seed; ±: one SD.

    Args:
        table: comparable rows of one shape, batch size and step, two or more blocks.
        metric: printed name of the metric.
        caption: how it was measured, and the shape and step.
        comparisons: their compute multipliers are printed after the values.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: fewer than two blocks.
    """
    rows = table[table[METRIC].notna()]
    require_comparable(rows)
    means = rows.groupby("block")[METRIC].mean().sort_values(ascending=False)
    if len(means) < 2:
        raise style.CannotDrawError("fewer than two block designs at one shape and step")
    colour = _block_colours(rows)
    multiplier = {c.block: c.multiplier for c in comparisons if c.multiplier is not None}
    figure, (axes,) = style.new_figure(height=1.6 + 0.38 * len(means))
    for index, (block, mean) in enumerate(means.items()):
        values = rows.loc[rows["block"] == block, METRIC]
        axes.barh(index, mean, color=colour[str(block)], height=0.62)
        if len(values) > 1:
            axes.plot(values, [index] * len(values), "o", color="white", markeredgecolor="black", markersize=4)
        spread = f" ± {values.std():.2g}" if len(values) > 1 else ""
        bought = f"  ({multiplier[str(block)]:.2f}× compute)" if str(block) in multiplier else ""
        text, end = f"{mean:.4g}{spread}{bought}", (max(mean, values.max()), index)
        axes.annotate(text, end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(means)), [block_name(str(block)) for block in means.index])
    axes.grid(False, axis="y")
    axes.set_xlim(0, rows[METRIC].max() * (1.55 if multiplier else 1.25))
    axes.set(xlabel=f"{metric} (lower is better)")
    return style.finish(figure, f"{metric} of the block designs", caption)


@style.styled
def over_steps(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    ylabel: str,
    heading: str,
    caption: str,
    log_axes: bool = False,
    panel: str = "patch_size",
) -> Figure:
    """Values over training steps, one line per cell, one panel per patch size or per size (paper's Figures 5, 6, 13).

    Cells with a value at a single step are not drawn.

    Colour shows the size (the patch size if each size has a panel), or the block if there is only one size. The line
    style shows the column, or else the block.

    Args:
        table: rows with cell, step, size, depth, width, block, patch_size and the columns; one value per cell and step.
        columns: column to its name in the legend, for example loss_heldout to "held-out".
        ylabel: label of the value axis, with its unit.
        heading: title of the figure.
        caption: how the values were measured.
        log_axes: two log axes, which show the early steps and the late values.
        panel: "patch_size", or "size" for one panel per size.

    Raises:
        CannotDrawError: no cell has a value at more than one step; or, for a panel per size, one size only or too many.
    """
    rows = table.dropna(subset=list(columns), how="all")
    rows = rows[rows["step"] > 0] if log_axes else rows
    rows = rows[rows.groupby("cell")["step"].transform("nunique") > 1]
    if rows.empty:
        raise style.CannotDrawError("no cell was measured at more than one training step")
    panels = _panels(rows, panel)
    figure, all_axes = style.new_figure(columns=len(panels))
    by, names, colour = _colour_key(rows, panel)
    blocks = list(dict.fromkeys(rows["block"])) if by != "block" else []
    styles = list(columns.values()) if len(columns) > 1 else [block_name(block) for block in blocks]
    for axes, (heading_above, cells) in zip(all_axes, panels, strict=True):
        for _, run in cells.sort_values("step").groupby("cell"):
            for index, column in enumerate(columns):
                values = run[["step", column]].dropna().groupby("step", as_index=False).mean()
                which = index if len(columns) > 1 else blocks.index(run["block"].iloc[0]) if blocks else 0
                ink = colour.get(str(run[by].iloc[0]), style.GREY)
                axes.plot(
                    values["step"], values[column], color=ink, linestyle=style.line_style(which), linewidth=1.1,
                    marker="o" if len(values) <= 12 else "", markersize=3, alpha=0.9,
                )  # fmt: skip
        axes.set(xlabel=style.STEPS, title=heading_above)
        if log_axes:
            axes.set_xscale("log")
            style.log_scale(axes, "y")
            first, last = int(cells["step"].min()), int(cells["step"].max())
            middle = min(cells["step"], key=lambda step: abs(np.log(step / np.sqrt(first * last))))
            ticks = sorted({first, int(middle), last})
            axes.set_xticks(ticks, [style.short(tick) for tick in ticks])
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_formatter(lambda value, _: style.short(value))
            axes.locator_params(axis="x", nbins=3 if len(panels) > 1 else 7)
    all_axes[0].set_ylabel(ylabel)
    handles = [style.legend_entry(names[key], color=colour[key]) for key in style.in_legend(list(names))]
    return style.finish(figure, heading, caption, handles + (style.style_entries(styles) if len(styles) > 1 else []))


@style.styled
def loss_with_zoom(table: pd.DataFrame, column: str, ylabel: str, caption: str) -> Figure:
    """A loss over training, all of it and its first tenth, linear axes (paper's Figure 13).

    Args:
        table: rows with cell, step, size, depth, width, patch_size and the column.
        column: of the loss.
        ylabel: label of the value axis.
        caption: how it was measured.

    Raises:
        CannotDrawError: fewer than three steps in the first tenth.
    """
    rows = table.dropna(subset=[column])
    last = int(rows["step"].max()) if len(rows) else 0
    early = rows[rows["step"] <= last / 10]
    if early["step"].nunique() < 3:
        raise style.CannotDrawError("fewer than three steps were logged in the first tenth of training")
    sizes, patches, colour = size_order(rows), patch_order(rows), style.colours(size_order(rows))
    styles = {patch: style.line_style(index) for index, patch in enumerate(patches)}
    figure, all_axes = style.new_figure(columns=2, sharey=False)
    for axes, part, heading in zip(all_axes, (rows, early), ("all of training", "its first tenth"), strict=True):
        for _, run in part.sort_values("step").groupby("cell"):
            look = {"color": colour[str(run["size"].iloc[0])], "linestyle": styles.get(run["patch_size"].iloc[0], "-")}
            axes.plot(run["step"], run[column], **look, linewidth=0.8)
        axes.set(xlabel=style.STEPS, title=heading)
        axes.xaxis.set_major_formatter(lambda value, _: style.short(value))
        axes.locator_params(axis="x", nbins=4)
    late = rows.loc[rows["step"] > last / 10, column]
    all_axes[0].set_ylim(late.min() * 0.98, late.max() * 1.02)
    all_axes[0].set_ylabel(ylabel)
    handles = [style.legend_entry(size, color=colour[size]) for size in style.in_legend(sizes)]
    handles += style.style_entries([*map(patch_name, patches)])
    return style.finish(figure, "Training loss, with an early zoom", caption, handles)


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


def _colour_key(rows: pd.DataFrame, panel: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """The column that the colours show, the printed names of its values, and their colours."""
    if panel == "size":
        names = {str(patch): patch_name(patch) for patch in patch_order(rows)}
        return "patch_size", names, style.colours(list(names))
    if rows["size"].nunique() > 1 or rows["block"].nunique() == 1:
        sizes = size_order(rows)
        return "size", {size: size for size in sizes}, style.colours(sizes)
    colour = _block_colours(rows)
    return "block", {block: block_name(block) for block in colour}, colour


def _block_colours(rows: pd.DataFrame) -> dict[str, str]:
    """The colours of the blocks; a block has the same colour in every figure."""
    known = [*BLOCK_NAMES, *sorted(set(rows["block"]) - set(BLOCK_NAMES))]
    return {block: colour for block, colour in style.colours(known).items() if block in set(rows["block"])}
