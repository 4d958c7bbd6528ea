"""How far the distance can be trusted: its dependence on the number of samples, and signs of memorisation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from analysis.conditions import require_comparable
from analysis.figures import style
from analysis.figures.style import Drawing, ModelKey
from analysis.names import METRIC

#: Panels of the memorisation figure: column to name of its line, by the label of the axis they share.
MEMORY: Mapping[str, Mapping[str, str]] = {
    "distance": {"frechet_train": "to train images", "frechet_heldout": "to held-out images"},
    "copies": {"copies": "copies of train images"},
    "loss": {
        "loss_train": "on train images", "loss_heldout": "on held-out images",
        "loss_optimal_train": "optimal denoiser, train", "loss_optimal_heldout": "optimal denoiser, held-out",
    },
}  # fmt: skip
_INK = {"train": style.PALETTE[0], "heldout": style.PALETTE[1]}


@style.styled
def distance_against_samples(table: pd.DataFrame, metric: str, caption: str, key: ModelKey | None = None) -> Drawing:
    """The distance against 1/N over the first N samples of every model, and its extrapolation to infinitely many.

    Args:
        table: rows of `analysis.table.load_nested` with block, size, depth, width and patch_size, one evaluation per
            model, and frechet_infinity, the limit that was recorded with it (NaN without one).
        metric: printed name of the metric.
        caption: how it was measured.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        CannotDrawError: no model was measured at two counts or more.
    """
    rows = table[table[METRIC].notna()]
    rows = rows[rows.groupby("cell")["samples"].transform("nunique") > 1]
    if rows.empty:
        raise style.CannotDrawError("no model was measured at more than one number of samples")
    figure, (axes,) = style.new_figure()
    key = key or ModelKey.of(rows)
    for _, run in rows.sort_values("samples").groupby("cell", sort=False):
        look = key.look(run)
        ink, marker = look.colour, look.marker
        x, y = 1 / run["samples"].to_numpy(float), run[METRIC].to_numpy(float)
        axes.plot(x, y, color=ink, marker=marker, markersize=3, linestyle="", zorder=3)
        limit = float(run["frechet_infinity"].iloc[0])
        if np.isfinite(limit):
            late = x <= 2 * x.min()  # the larger counts, where the points lie on the line
            end = limit + x[late].max() * (y[late] - limit).mean() / x[late].mean()
            axes.plot([0, x[late].max()], [limit, end], color=ink, linewidth=0.7, linestyle="--", zorder=2)
            axes.plot([0], [limit], color=ink, marker=marker, markerfacecolor="white", clip_on=False, zorder=4)
    ticks = _spread_out(sorted({int(n) for n in rows["samples"]}, reverse=True))
    axes.set_xticks([0, *(1 / n for n in ticks)], ["∞", *(f"{n:,}" for n in ticks)])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    style.linear_ticks(axes.yaxis)
    axes.set(xlabel="Samples N (the axis is 1/N)", ylabel=style.lower(metric))
    limits = style.legend_entry("limit", color=style.GREY, linestyle="--", marker="o", markerfacecolor="white")
    return style.finish(figure, f"{metric} against the number of samples", caption, [*key.handles(rows), limits])


def _spread_out(counts: list[int]) -> list[int]:
    """Counts whose labels do not overlap on an axis of 1/N from the smallest count to infinity; largest first."""
    kept: list[int] = []
    least = 0.095 / min(counts)
    for count in counts:
        if 1 / count - (1 / kept[-1] if kept else 0) >= least:
            kept.append(count)
    return kept


@style.styled
def memorisation(table: pd.DataFrame, metric: str, caption: str) -> Drawing:
    """Train against held-out, model by model against compute: the distance, the share of copies, and the loss.

    Args:
        table: comparable rows of one training step, one per model, with gmacs and what `MEMORY` names; panels without
            values are left out.
        metric: printed name of the distance.
        caption: how it was measured.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: neither the distances to both splits, nor copies, nor the optimal denoiser were measured.
    """
    require_comparable(table)
    rows = table.sort_values("gmacs")
    known = [column for panel in MEMORY.values() for column in panel if column in rows]
    measured = {column for column in known if rows[column].notna().any()}
    needed = {"distance": {"frechet_train", "frechet_heldout"}, "copies": {"copies"}, "loss": {"loss_optimal_train"}}
    panels = [panel for panel, columns in needed.items() if columns <= measured]
    if not panels:
        raise style.CannotDrawError("the distance to both splits, copies and the optimal denoiser were not measured")
    figure, all_axes = style.new_figure(0.5 + 1.35 * len(panels), 1, len(panels), sharex=True, sharey=False)
    labels = {"distance": style.shortened(metric, 20), "copies": "Share of samples", "loss": "Denoising loss"}
    for axes, panel in zip(all_axes, panels, strict=True):
        for index, (column, name) in enumerate(MEMORY[panel].items()):
            if column not in measured:
                continue
            ink = _INK["heldout" if column.endswith("heldout") else "train"]
            values = rows[rows[column].notna()]
            if column.startswith("loss_optimal"):  # depends on the data alone, not on the model
                axes.axhline(values[column].mean(), color=ink, linestyle=style.LINES[2], label=name)
            else:
                axes.plot(values["gmacs"], values[column], style.MARKERS[index], color=ink, label=name, clip_on=False)
        style.log_scale(axes, "x")
        axes.set_ylabel(labels[panel])
        if panel == "loss":
            style.log_scale(axes, "y")
        else:
            style.linear_ticks(axes.yaxis, 4)
            axes.set_ylim(0, 1.1 * max(rows[column].max() for column in MEMORY[panel] if column in measured) or 0.05)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1, handletextpad=0.4)
    all_axes[-1].set_xlabel(style.GFLOPS)
    return style.finish(figure, "Memorisation: train against held-out images", caption)
