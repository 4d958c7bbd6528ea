"""How good the fits are: residuals by size and patch size, and errors on unseen models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import NullLocator

from analysis.figures.style import MARKERS, CannotDrawError, Drawing, colours, finish, legend_entry, new_figure, styled
from analysis.fit.residuals import Residuals
from analysis.heldout import HeldOut
from analysis.names import patch_order, size_order

_MOST_SIZES = 24  # of a map; of more some are shown

_MOST_TICKS = 6  # of the error axis, beside long names


@styled
def residual_maps(rows: pd.DataFrame, residuals: Sequence[Residuals], metric: str, caption: str) -> Drawing:
    """Residuals in percent by size and patch size, one map per form; a pattern shows what the form cannot describe.

    Args:
        rows: one per model, in the order of the residuals; columns size, depth, width, patch_size.
        residuals: up to four forms.
        metric: printed name of the metric.
        caption: how it was measured.

    Raises:
        CannotDrawError: no residuals, or models without a patch size.
    """
    import seaborn

    if not residuals:
        raise CannotDrawError("no form could be fitted")
    shown = list(residuals)[:4]
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    sizes, patches = size_order(rows), patch_order(rows)
    if not patches:
        raise CannotDrawError("the models have no patch size")
    if (many := len(sizes)) > _MOST_SIZES:
        sizes = [sizes[at] for at in np.linspace(0, many - 1, _MOST_SIZES).round().astype(int)]
        caption += f"; {_MOST_SIZES} of {many} sizes are shown, evenly from the smallest to the largest"
    figure, all_axes = new_figure(lines * (0.55 + 0.18 * len(sizes)), columns, lines)
    limit = max(abs(value) for fit in shown for value in fit.percent)
    for axes, fit in zip(all_axes, shown, strict=False):
        frame = pd.DataFrame({"size": rows["size"], "patch": rows["patch_size"], "percent": fit.percent})
        grid = frame.pivot_table(index="size", columns="patch", values="percent").reindex(index=sizes, columns=patches)
        whole = grid.astype(float).round() + 0.0  # no "-0"
        seaborn.heatmap(
            grid, ax=axes, cmap="vlag", center=0, vmin=-limit, vmax=limit, annot=whole, fmt="+.0f", cbar=False,
            linewidths=0.5, annot_kws={"fontsize": 6},
        )  # fmt: skip
        axes.set(title=fit.form, xlabel="Patch size", ylabel="")
        axes.tick_params(rotation=0, length=0)
    for axes in all_axes[len(shown) :]:
        axes.set_axis_off()
    return finish(figure, f"{metric} measured over fitted, %: above 0 it is worse than the fit", caption)


@styled
def held_out_errors(held: Sequence[HeldOut], metric: str, caption: str) -> Drawing:
    """Mean absolute error on models a form was not fitted to, one row per test, log axis.

    Args:
        held: tests of several forms.
        metric: printed name of the metric.
        caption: how it was measured.

    Raises:
        CannotDrawError: no tests.
    """
    if not held:
        raise CannotDrawError("no form could be tested on models it was not fitted to")
    schemes = list(dict.fromkeys(test.scheme for test in held))
    forms = list(dict.fromkeys(test.form for test in held))
    looks: dict[str, Any] = {
        form: {"color": colour, "marker": MARKERS[i % len(MARKERS)], "linestyle": ""}
        for i, (form, colour) in enumerate(colours(forms).items())
    }
    figure, (axes,) = new_figure(0.9 + 0.26 * len(schemes))
    for test in held:
        at = len(schemes) - 1 - schemes.index(test.scheme)
        axes.plot([max(test.mape, 0.1)], [at], markersize=4.5, **looks[test.form])
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    ticks = [value for value in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low <= value <= high]
    if len(ticks) > _MOST_TICKS:
        ticks = [value for value in ticks if f"{value:g}".strip("0.") == "1"]
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(np.arange(len(schemes)), list(reversed(schemes)))
    axes.set_ylim(-0.6, len(schemes) - 0.4)
    axes.set(xlabel="Mean absolute error, %")
    handles = [legend_entry(form, **look) for form, look in looks.items()]
    return finish(figure, f"Errors of {metric} on models left out", caption, handles)
