"""Laws of size and data: loss against compute, models at equal compute, and the best size for a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.figures import style
from analysis.figures.style import Drawing
from analysis.laws.approaches import Approach
from analysis.laws.budgets import Budgets
from analysis.laws.parametric import LawFit
from analysis.laws.runs import OPERATIONS, Runs, Words

_SCALE = "viridis"
_MOST_CURVES = 6  # sizes whose loss the law draws
_LOOKS: dict[str, dict[str, Any]] = {
    "envelope": {"color": style.PALETTE[1], "marker": "o"},
    "parabolas": {"color": style.PALETTE[0], "marker": "s"},
    "parametric": {"color": style.PALETTE[6], "marker": ""},
}


@style.styled
def law_against_compute(runs: Runs, fit: LawFit, words: Words, caption: str) -> Drawing:
    """Loss against training compute on two log axes, coloured by size, with the law at some sizes and at the best size.

    Args:
        runs: what was fitted.
        fit: the law.
        words: what size, data and loss are called.
        caption: what the runs are.
    """
    figure, (axes,) = style.new_figure(2.5)
    colours = _by_size(runs.size)
    axes.scatter(runs.compute, runs.loss, c=[colours(size) for size in runs.size], s=7, linewidth=0, zorder=3)
    shown = np.geomspace(runs.size.min(), runs.size.max(), _MOST_CURVES)
    tokens = fit.tokens
    compute = np.geomspace(runs.compute.min(), runs.compute.max(), 60)
    for size in shown:
        data = compute / OPERATIONS / size
        inside = _between(data, fit.data_range)
        losses = fit.law.predict(np.array([size]), data, tokens)
        axes.plot(compute[inside], losses[inside], color=colours(size), linewidth=0.7, zorder=2)
    handles = [style.legend_entry(f"{words.size} = {style.plain(float(f'{s:.2g}'))}", color=colours(s)) for s in shown]
    if min(fit.law.alpha, fit.law.beta) > 0:
        inside = _between(fit.law.best_size(compute, tokens), fit.size_range)
        inside &= _between(fit.law.best_data(compute, tokens), fit.data_range)
        if inside.any():
            best = fit.law.best_loss(compute[inside], tokens)
            axes.plot(compute[inside], best, color="black", linestyle="--", zorder=4)
            handles.append(style.legend_entry(f"best {words.size}", color="black", linestyle="--"))
    low, high = float(runs.loss.min()), float(runs.loss.max())
    style.log_scale(axes, "x", "y")
    axes.set_ylim(low / (high / low) ** 0.08, high * (high / low) ** 0.08)
    style.log_scale(axes, "y")
    axes.set(xlabel=words.compute, ylabel=style.lower(words.loss))
    of_size = f"{words.size}^\\alpha"
    of_size = f"({of_size}\\,T^{{{fit.law.gamma:.3g}}})" if fit.with_tokens else of_size
    equation = f"E = {fit.law.E:.4g},\\ \\alpha = {fit.law.alpha:.3f},\\ \\beta = {fit.law.beta:.3f}"
    style.typeset(axes, [f"$E + A/{of_size} + B/{words.data}^\\beta$:  ${equation}$"])
    return style.finish(figure, f"The law of {words.loss} in {words.size} and {words.data}", caption, handles)


@style.styled
def isoflops(panels: Mapping[str, tuple[Budgets, Approach]], words: Words, caption: str) -> Drawing:
    """Loss against size at equal training compute: a parabola per budget, its bottom marked where it is enclosed.

    Args:
        panels: title to the losses and their parabolas.
        words: what size, data and loss are called.
        caption: what the runs are.

    Raises:
        CannotDrawError: no panel.
    """
    if not panels:
        raise style.CannotDrawError("no three models at a common budget")
    figure, all_axes = style.new_panels(len(panels))
    computes = sorted({float(f"{at:.2g}") for budgets, _ in panels.values() for at in budgets.compute})
    colour = style.colours([f"{at:.2g}" for at in computes])
    for axes, (title, (budgets, approach)) in zip(all_axes, panels.items(), strict=True):
        for place, compute in enumerate(budgets.compute):
            ink = colour[f"{compute:.2g}"]
            axes.plot(
                budgets.size, np.exp(budgets.log_loss[:, place]), color=ink, marker=".", markersize=3, linestyle=""
            )
        for optimum in approach.optima:
            if optimum.curve is None or optimum.span is None:
                continue
            ink, x = colour[f"{optimum.compute:.2g}"], np.geomspace(*optimum.span, 60)
            axes.plot(x, np.exp(np.polyval(optimum.curve, np.log(x))), color=ink, linewidth=0.8)
            if optimum.enclosed:
                edge: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.5}
                axes.plot([optimum.size], [optimum.loss], color=ink, marker="*", markersize=7, zorder=4, **edge)
        style.log_scale(axes, "x", narrow=len(panels) > 1)
        style.log_scale(axes, "y")
        axes.set(xlabel=words.size_title if len(panels) == 1 else words.size, title=title if len(panels) > 1 else "")
    for axes in all_axes[::2]:
        axes.set_ylabel(style.lower(words.loss))
    names = style.in_legend(list(colour))
    handles = [style.legend_entry(style.plain(float(name)), color=colour[name]) for name in names]
    handles.append(style.legend_entry("optimum", color="#777777", marker="*", markersize=6, linestyle=""))
    return style.finish(figure, f"{words.loss} at equal training compute", caption, handles, words.compute)


@style.styled
def best_sizes(approaches: Sequence[Approach], words: Words, caption: str) -> Drawing:
    """The best size against training compute in the three ways.

    A hollow point is an optimum that is not enclosed, a dotted line goes beyond those that are.

    Args:
        approaches: of one set of runs.
        words: what size and data are called.
        caption: what the runs are.

    Raises:
        CannotDrawError: none of them has an optimum.
    """
    if not any(approach.optima for approach in approaches):
        raise style.CannotDrawError("no approach finds a best size")
    figure, (axes,) = style.new_figure(2.4)
    handles = []
    for approach in approaches:
        look = _LOOKS[approach.name]
        compute = np.array([optimum.compute for optimum in approach.optima])
        if not len(compute):
            continue
        for optimum in approach.optima if look["marker"] else ():
            fill = look["color"] if optimum.enclosed else "white"
            point: dict[str, Any] = {"markerfacecolor": fill, "markeredgecolor": look["color"], "markersize": 3.5}
            axes.plot([optimum.compute], [optimum.size], **look, **point, linestyle="", zorder=3)
            if optimum.size_interval:
                axes.plot([optimum.compute] * 2, optimum.size_interval, color=look["color"], linewidth=0.7)
        line, name = approach.best_size(compute), approach.name
        if line is not None:
            inside = np.array([optimum.enclosed for optimum in approach.optima])
            for part, kind in ((inside, "-"), (np.full(len(inside), True), ":")):
                axes.plot(compute[part], line[part], color=look["color"], linestyle=kind, linewidth=1, zorder=2)
            name += f": C^{approach.size_exponent:.3f}"
        if not look["marker"]:
            ends = np.array([optimum.size_interval for optimum in approach.optima], float)
            axes.fill_between(compute, *ends.T, color=look["color"], alpha=0.12, linewidth=0)
        handles.append(style.legend_entry(name, **look, linestyle="-" if line is not None else ""))
    style.log_scale(axes, "x", "y")
    axes.set(xlabel=words.compute, ylabel=f"{words.size_title}: best")
    hollow = any(
        not optimum.enclosed
        for approach in approaches
        for optimum in approach.optima
        if _LOOKS[approach.name]["marker"]
    )
    if hollow:
        handles.append(
            style.legend_entry("not enclosed", color="#777777", marker="o", markerfacecolor="white", linestyle="")
        )
    return style.finish(figure, f"The best {words.size} for a training budget", caption, handles)


def _between(values: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    return (ends[0] <= values) & (values <= ends[1])


def _by_size(sizes: np.ndarray) -> Any:
    """A colour for a size, dark to light."""
    import matplotlib as mpl

    low, high = np.log(sizes.min()), np.log(sizes.max())
    scale = mpl.colormaps[_SCALE]
    return lambda size: mpl.colors.to_hex(scale(0.9 * (np.log(size) - low) / max(high - low, 1e-12)))
