"""Residuals of a fit by model, size and patch size: they show where a law is systematically wrong."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.fit.common import floats
from analysis.fit.floor import FloorFit
from analysis.fit.lines import LineFit
from analysis.fit.surface import InteractionFit
from analysis.names import METRIC, patch_order, size_order

Fit = LineFit | FloorFit | InteractionFit


@dataclass(frozen=True)
class Residuals:
    """Measured over fitted, minus 1, in percent; positive where the metric is worse than the fit."""

    form: str
    percent: tuple[float, ...]  #: in the order of the rows
    by_model: dict[str, float]  #: by the model's name
    by_size: dict[str, float]  #: mean over the models of a size
    by_patch: dict[int, float]  #: mean over the models of a patch size


def fit_residuals(fit: Fit, rows: pd.DataFrame, metric: str = METRIC) -> Residuals:
    """Residuals of a fit on the rows it was fitted to.

    Args:
        fit: fitted to these rows.
        rows: one per model, columns name, size, depth, width, patch_size, gmacs, params, tokens and the metric.
        metric: its column.
    """
    percent = pd.Series((floats(rows, metric) / fit.fitted(rows) - 1) * 100, index=rows.index)
    return Residuals(
        form=fit.form,
        percent=tuple(map(float, percent)),
        by_model=dict(zip(map(str, rows["name"]), map(float, percent), strict=True)),
        by_size={size: float(percent[rows["size"] == size].mean()) for size in size_order(rows)},
        by_patch={patch: float(percent[rows["patch_size"] == patch].mean()) for patch in patch_order(rows)[::-1]},
    )
