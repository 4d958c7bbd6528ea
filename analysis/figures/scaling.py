"""The metric against compute: the paper's Figures 2, 8, 9 and 10."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.conditions import require_comparable
from analysis.designs import passes_of
from analysis.figures import style
from analysis.figures.style import Drawing, ModelKey
from analysis.fit.common import floats
from analysis.fit.lines import Correlation, LineFit
from analysis.names import METRIC, SHAPE, patch_name, size_order

_LARGEST_BUBBLE = 320.0  # points squared
_BUBBLE_AXES = 190.0  # points, width of the bubble chart's axes
_MOST_BUBBLES = 36
_SHORT = 20  # characters of a metric's name that leaves room beside its law
_MOST_NAMED = 3  # models whose points have a label each
_FLOOR_SHOWN = 3.0  # a floor this much below the best model would squeeze a log axis


@style.styled
def metric_against_gflops(
    table: pd.DataFrame,
    metric: str,
    caption: str,
    fit: LineFit | None = None,
    correlation: Correlation | None = None,
    column: str = METRIC,
    key: ModelKey | None = None,
    others: pd.DataFrame | None = None,
) -> Drawing:
    """Metric against compute of one forward pass, log x axis (paper's Figure 8).

    Args:
        table: comparable rows with gmacs, size, depth, width, patch_size and the metric, in its own unit.
        metric: printed name of the metric.
        caption: how it was measured (N, extractor, ...).
        fit: drawn as a line with a 95 % prediction band; the metric axis is log for a power law, linear otherwise.
        correlation: its r is printed; on a linear axis that is the semi-log r.
        column: of the metric. For a distance, the floor (`frechet_floor`) is drawn if it was measured.
        key: how the models of the study are drawn; by default that of these rows.
        others: rows that are drawn too but were not fitted: those of the other block designs.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: no rows with the metric.
    """
    rows = measured_rows(table, column)
    figure, (axes,) = style.new_figure()
    shown = rows if others is None else pd.concat([rows, measured_rows(others, column)])
    key = key or ModelKey.of(shown)
    draw_points(axes, shown, "gmacs", column, key)
    notes = []
    log_metric = fit is not None and fit.log_response
    if fit is not None:
        x = np.geomspace(rows["gmacs"].min() / 1.25, rows["gmacs"].max() * 1.25, 200)
        band = fit.predict(x)
        axes.fill_between(x, band["low"], band["high"], color="#999999", alpha=0.2, linewidth=0)
        axes.plot(x, band["mean"], color=style.GREY, zorder=1)
        law = style.power_law(metric, fit.coefficient, fit.exponent, "G") if log_metric else _semi_log(fit, metric)
        band_note = "band: 95 % prediction"
        notes += [f"{law}; {band_note}"] if len(metric) <= _SHORT else [law, band_note]
    if correlation is not None:
        what, r = (f"ln {metric}", correlation.loglog) if log_metric else (metric, correlation.semilog)
        notes.append(f"r({style.escaped(style.shortened(what, 24))}, ln G) = {r:.3f}")
    handles = key.handles(shown)
    if column == METRIC and "frechet_floor" in rows and rows["frechet_floor"].notna().any():
        floor = float(rows["frechet_floor"].mean())
        notes.append(f"floor {floor:.3g}: as many real images against other real ones")
        if not log_metric or floor > shown[column].min() / _FLOOR_SHOWN:
            handles.append(axes.axhline(floor, color="#777777", linestyle=":", linewidth=1.2, label="floor"))
    style.log_scale(axes, "x")
    if log_metric:
        style.log_scale(axes, "y")
    elif column == METRIC:  # zero means something for a distance, not for a loss
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if not log_metric:
        style.linear_ticks(axes.yaxis)
    axes.set(xlabel=style.GFLOPS, ylabel=style.lower(metric))
    style.typeset(axes, notes)
    return style.finish(figure, f"{metric} against compute", caption, handles)


def _semi_log(fit: LineFit, metric: str) -> str:
    sign = "+" if fit.slope >= 0 else "−"
    name = style.escaped(style.shortened(metric, 20))
    return f"{name} = {style.plain(fit.intercept)} {sign} {style.plain(abs(fit.slope))} ln G"


@style.styled
def training_compute(table: pd.DataFrame, metric: str, caption: str, key: ModelKey | None = None) -> Drawing:
    """Metric against training compute, log x axis; checkpoints of one model are joined (paper's Figure 9).

    Args:
        table: comparable rows of one block, one per model and step (`analysis.slices.per_shape`), with train_gmacs,
            step, size, patch_size and the metric.
        metric: printed name of the metric.
        caption: how it was measured.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: no rows with both values.
    """
    rows = measured_rows(table, METRIC, "train_gmacs")
    rows = rows[rows["train_gmacs"] > 0]
    if rows.empty:
        raise style.CannotDrawError("no training compute is recorded")
    figure, (axes,) = style.new_figure()
    key = key or ModelKey.of(rows)
    for look, run in key.runs(rows.sort_values("step")):
        if len(run) > 1:
            axes.plot(run["train_gmacs"], run[METRIC], color=look.colour, linewidth=0.8, alpha=0.6, zorder=1)
    draw_points(axes, rows, "train_gmacs", METRIC, key)
    style.log_scale(axes, "x")
    axes.set(xlabel=style.TRAINING_COMPUTE, ylabel=style.lower(metric))
    axes.set_ylim(bottom=0)
    style.linear_ticks(axes.yaxis)
    return style.finish(figure, f"{metric} against training compute", caption, key.handles(rows))


@style.styled
def bubbles(table: pd.DataFrame, metric: str, caption: str, key: ModelKey | None = None) -> Drawing:
    """The metric of every model, by patch size and size, with bubble area proportional to compute (Figure 2 left).

    Args:
        table: comparable rows, one per model, with gmacs, size, patch_size and the metric.
        metric: printed name of the metric.
        caption: how it was measured.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: no rows with the metric, one model only, or too many.
    """
    rows = measured_rows(table, METRIC)
    if len(rows) < 2:
        raise style.CannotDrawError("a bubble chart of one model shows nothing")
    if len(rows) > _MOST_BUBBLES:
        raise style.CannotDrawError(
            f"{len(rows)} models; more than {_MOST_BUBBLES} bubbles in a row cannot be told apart"
        )
    key = key or ModelKey.of(rows)
    order = {name: index for index, name in enumerate(size_order(rows))}
    rows = rows.assign(_size=rows["size"].map(order)).sort_values(["patch_size", "_size"], ascending=[False, True])
    figure, (axes,) = style.new_figure()
    slot = _BUBBLE_AXES / (len(rows.drop_duplicates(SHAPE)) + 0.8 * rows["patch_size"].nunique(dropna=False))
    diameter = min(np.sqrt(_LARGEST_BUBBLE), 1.6 * slot)
    scale = diameter**2 / rows["gmacs"].max()
    ticks, labels, at = [], [], 0.0
    for patch, group in rows.groupby("patch_size", sort=False, dropna=False):
        start = at
        for size, cells in group.groupby("size", sort=False):
            axes.scatter(
                [at] * len(cells), cells[METRIC], s=cells["gmacs"] * scale, color=key.look(cells).colour,
                alpha=0.75, edgecolor="#222222", linewidth=0.4, zorder=2,
            )  # fmt: skip
            ticks.append(at)
            labels.append(style.shortened(str(size), 20))
            at += 1
        axes.text(
            (start + at - 1) / 2,
            1.01,
            patch_name(patch),
            transform=axes.get_xaxis_transform(),
            ha="center",
            fontsize=6.5,
        )
        if at < len(rows):
            axes.axvline(at - 0.1, color="#bbbbbb", linewidth=0.6)
        at += 0.8
    long = max(len(label) for label in labels) * len(labels) > 24
    axes.set_xticks(ticks, labels, rotation=90 if long else 0)
    axes.grid(False, axis="x")
    axes.set_xlim(-0.8, ticks[-1] + max(0.8, 0.6 * diameter / slot))
    axes.margins(y=0.12)
    axes.set(ylabel=style.lower(metric), xlabel="Size")
    low, high = min(0.0, axes.get_ylim()[0]), float(rows[METRIC].max())
    axes.set_ylim(low, high + 0.1 * (high - low))  # room for half a bubble
    style.linear_ticks(axes.yaxis)
    grey: Any = {"color": "#bbbbbb", "edgecolor": "#222222", "linewidth": 0.4}
    values = _bubble_key(rows["gmacs"])
    handles = [axes.scatter([], [], s=value * scale, label=f"{style.plain(value)} Gflops", **grey) for value in values]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, borderpad=0.7, columnspacing=1.5)
    return style.finish(figure, f"{metric} by patch size and size", f"Bubble area proportional to Gflops. {caption}")


@style.styled
def baselines(
    model: pd.DataFrame, others: pd.DataFrame, metric: str, caption: str, key: ModelKey | None = None
) -> Drawing:
    """A model against other published models by compute, without guidance (paper's Figure 2 right).

    Args:
        model: one row with name, gmacs and the metric.
        others: rows with model, gmacs and the metric; those without gmacs are not drawn.
        metric: printed name of the metric.
        caption: how it was measured.
        key: how the models of the study are drawn; by default that of the model.

    Raises:
        CannotDrawError: none of the others has a compute.
    """
    others = others[others["gmacs"].notna()]
    if others.empty or model.empty:
        raise style.CannotDrawError("no baseline with known Gflops")
    own = (key or ModelKey.of(model)).look(model).colour
    points = [
        (str(name), float(gmacs), float(value), colour)
        for rows, column, colour in ((others, "model", "#999999"), (model, "name", own))
        for name, gmacs, value in zip(rows[column], rows["gmacs"], rows[METRIC], strict=True)
    ]
    figure, (axes,) = style.new_figure()
    scale = _LARGEST_BUBBLE / max(gmacs for _, gmacs, _, _ in points)
    for name, gmacs, value, colour in points:
        axes.scatter(gmacs, value, s=gmacs * scale, color=colour, alpha=0.75, edgecolor="#222222", linewidth=0.4)
        below = any(m > value and abs(np.log(g / gmacs)) < np.log(1.6) for _, g, m, _ in points)  # keep labels apart
        offset = np.sqrt(gmacs * scale) / 2 + 3
        axes.annotate(
            f"{style.shortened(name, 20)}: {value:.3g}", (gmacs, value), xytext=(0, -offset if below else offset),
            textcoords="offset points", ha="center", va="top" if below else "bottom", fontsize=6,
        )  # fmt: skip
    axes.set_xlim(min(p[1] for p in points) / 1.8, max(p[1] for p in points) * 1.8)
    style.log_scale(axes, "x")
    axes.margins(y=0.25)
    axes.set_ylim(0, max(p[2] for p in points) * 1.25)
    style.linear_ticks(axes.yaxis)
    axes.set(xlabel=style.GFLOPS, ylabel=style.lower(metric))
    return style.finish(figure, "Against other diffusion models, bubble area proportional to Gflops", caption)


@style.styled
def sampling_compute(table: pd.DataFrame, metric: str, caption: str, key: ModelKey | None = None) -> Drawing:
    """Metric against the compute of sampling one image (paper's Figure 10): gmacs * forward passes.

    Seeds are averaged: a point is their mean, a bar one standard deviation to either side.

    Args:
        table: rows of one training step that differ in sampling_steps but are otherwise comparable, with gmacs, block,
            size, patch_size and the metric.
        metric: printed name of the metric.
        caption: how it was measured.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        InputError: rows that were measured differently in other ways than the sampler steps.
        CannotDrawError: fewer than two values of the sampling compute.
    """
    rows = table[table[METRIC].notna()]
    require_comparable(rows, vary=["sampling_steps"])
    rows = rows.assign(passes=passes_of(rows))
    if rows["sampling_steps"].nunique() < 2:
        raise style.CannotDrawError("all values were sampled with the same number of steps")
    keys = ["block", *SHAPE, *(column for column in ("batch_size", "recipe") if column in rows)]
    models = rows.sort_values("gmacs", kind="stable").groupby(keys, dropna=False, sort=False)
    counts = sorted({int(count) for count in rows["sampling_steps"]})
    same = (models["sampling_steps"].nunique() == len(counts)).all()  # steps of each model
    ratios = set(rows["passes"] / rows["sampling_steps"].astype(float))
    figure, (axes,) = style.new_figure()
    key = key or ModelKey.of(rows)
    for _, run in models:
        look = key.look(run)
        by_steps = run.assign(compute=run["gmacs"] * run["passes"]).groupby("sampling_steps")
        seeds, compute = by_steps[METRIC].agg(["mean", "std"]), by_steps["compute"].mean()
        axes.plot(compute, seeds["mean"], **{**look.points, "linestyle": look.line, "linewidth": 0.8})
        error_bars(axes, compute, seeds["mean"], seeds["std"], look.colour)
        for steps, x, y in zip(seeds.index, compute, seeds["mean"], strict=True):
            if not same and len(models) <= _MOST_NAMED:
                axes.annotate(f"{steps} steps", (x, y), (0, 5), textcoords="offset points", ha="center", fontsize=6)
    style.log_scale(axes, "x")
    axes.margins(x=0.12, y=0.2)
    axes.set_ylim(bottom=0)
    style.linear_ticks(axes.yaxis)
    names = {(1.0,): "GMACs × sampler steps", (2.0,): "2 × GMACs × sampler steps"}
    product = names.get(tuple(ratios), "GMACs × forward passes")
    axes.set(xlabel=f"Compute per image, Gflops ({product})", ylabel=style.lower(metric))
    if same or len(models) > _MOST_NAMED:
        text = f"Points of a line, left to right: {'' if same else 'of '}{', '.join(map(str, counts))} sampler steps"
        axes.set_title(text, loc="left", fontsize=6)
    return style.finish(figure, f"{metric} against sampling compute", caption, key.handles(rows))


@style.styled
def guidance(table: pd.DataFrame, metric: str, caption: str, key: ModelKey | None = None) -> Drawing:
    """Metric against the guidance scale, one line per model; seeds are averaged, with bars of one standard deviation.

    Args:
        table: rows of one training step that differ in guidance (1: none) but are otherwise comparable.
        metric: printed name of the metric.
        caption: how it was measured.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        InputError: rows that were measured differently in other ways than the guidance.
        CannotDrawError: fewer than two guidance scales.
    """
    rows = table[table[METRIC].notna()]
    require_comparable(rows, vary=["guidance", "guidance_channels"])
    if rows["guidance"].nunique() < 2:
        raise style.CannotDrawError("all values were sampled with the same guidance")
    figure, (axes,) = style.new_figure()
    key = key or ModelKey.of(rows)
    keys = ["block", *SHAPE, *(column for column in ("batch_size", "recipe") if column in rows)]
    for _, run in rows.groupby(keys, dropna=False, sort=False):
        look, seeds = key.look(run), run.groupby("guidance")[METRIC].agg(["mean", "std"])
        axes.plot(seeds.index, seeds["mean"], **{**look.points, "linestyle": look.line, "linewidth": 0.8})
        error_bars(axes, seeds.index, seeds["mean"], seeds["std"], look.colour)
    axes.margins(x=0.08, y=0.12)
    axes.set_ylim(bottom=0)
    style.linear_ticks(axes.xaxis)
    style.linear_ticks(axes.yaxis)
    axes.set(xlabel="Guidance scale (1: none)", ylabel=style.lower(metric))
    return style.finish(figure, f"{metric} against guidance", caption, key.handles(rows))


def measured_rows(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows that have all these columns.

    Raises:
        InputError: rows that were measured differently.
        CannotDrawError: there are none.
    """
    rows = table.dropna(subset=list(columns))
    if rows.empty:
        raise style.CannotDrawError(f"no rows with {', '.join(columns)}")
    require_comparable(rows)
    return rows


def draw_points(axes: Axes, rows: pd.DataFrame, x: str, y: str, key: ModelKey) -> None:
    """Column y against column x, a model as its key says; bars of `spread` where rows are means."""
    across, up = floats(rows, x), floats(rows, y)
    for look, places in key.looks(rows):
        axes.plot(across[places], up[places], zorder=3, **look.points)
    if "spread" in rows:
        error_bars(axes, rows[x], rows[y], rows["spread"], "#444444")


def error_bars(axes: Axes, x: Any, mean: Any, deviation: Any, ink: str) -> None:
    """Bars of one standard deviation to either side of the points that have one; they never reach zero."""
    have = np.asarray(deviation, float) > 0
    if have.any():
        x, mean, deviation = (np.asarray(values, float)[have] for values in (x, mean, deviation))
        below = np.minimum(deviation, 0.95 * np.abs(mean))
        axes.errorbar(x, mean, yerr=[below, deviation], fmt="none", ecolor=ink, elinewidth=0.7, capsize=1.5, zorder=2.5)


def _bubble_key(gmacs: pd.Series[float]) -> Sequence[float]:
    """Three round values that span the bubbles."""
    low, high = float(gmacs.min()), float(gmacs.max())
    values = [high, np.sqrt(low * high), low] if high > 2 * low else [high]
    return list(dict.fromkeys(float(f"{value:.1g}") for value in values))
