"""The distance against the guidance scale, with the scale that was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.figures import style
from analysis.figures.scaling import error_bars
from analysis.figures.style import Drawing, ModelKey
from analysis.guidance import Choice
from analysis.names import METRIC


@style.styled
def chosen_scales(found: Sequence[Choice], caption: str, key: ModelKey | None = None) -> Drawing:
    """A line per model on the seed that chose, a ring where it is least; crosses are means of the other seeds.

    Args:
        found: choices of one step, measured in one way.
        caption: how they were measured.
        key: how the models of the study are drawn; by default that of these rows.

    Raises:
        CannotDrawError: no choices.
    """
    if not found:
        raise style.CannotDrawError("no scale was chosen")
    metric, rows = found[0].metric, pd.concat([one.curve for one in found])
    key = key or ModelKey.of(rows)
    figure, (axes,) = style.new_figure()
    for one in found:
        look = key.look(one.curve)
        scales, distances = one.curve["guidance"].to_numpy(float), one.curve[METRIC].to_numpy(float)
        axes.plot(scales, distances, **{**look.points, "linestyle": look.line, "linewidth": 0.8, "markersize": 2.5})
        around: dict[str, Any] = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "color": look.colour}
        axes.plot([one.scale], [distances.min()], linestyle="", zorder=4, **around)
        means, spread = np.mean(one.reports, axis=0), np.zeros(2)
        if len(one.reports) > 1:
            spread = np.std(one.reports, axis=0, ddof=1)
        axes.plot([1, one.scale], means, linestyle="", marker="x", color=look.colour, zorder=5)
        error_bars(axes, [1, one.scale], means, spread, look.colour)
    axes.margins(x=0.08, y=0.12)
    style.linear_ticks(axes.xaxis)
    style.linear_ticks(axes.yaxis)
    axes.set(xlabel="Guidance scale (1: none)", ylabel=style.lower(metric))
    ring = style.legend_entry("chosen", color=style.GREY, linestyle="", marker="o", markerfacecolor="none")
    cross = style.legend_entry("other seeds", color=style.GREY, linestyle="", marker="x")
    return style.finish(figure, f"{metric} against guidance", caption, [*key.handles(rows), ring, cross])
