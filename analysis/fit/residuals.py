"""What a fit leaves over, model by model, by size and by patch size: where a law goes wrong systematically."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit.common import Array
from analysis.fit.floor import FloorFit
from analysis.fit.lines import LineFit
from analysis.fit.surface import InteractionFit
from analysis.table import METRIC, size_order


@dataclass(frozen=True)
class Residuals:
    """Measured over fitted, minus 1, in percent; positive where the metric is worse than the fit."""

    form: str
    names: tuple[str, ...]
    percent: tuple[float, ...]
    by_size: dict[str, float]  #: mean over the models of a size
    by_patch: dict[int, float]  #: mean over the models of a patch size


def fit_residuals(fit: LineFit | FloorFit | InteractionFit, rows: pd.DataFrame, metric: str = METRIC) -> Residuals:
    """Residuals of a fit on the rows it was fitted to.

    Args:
        fit: of these rows.
        rows: one per model, columns name, size, depth, width, patch_size, gmacs, params, tokens and the metric.
        metric: its column.
    """
    percent = pd.Series((_floats(rows[metric]) / fitted_values(fit, rows) - 1) * 100, index=rows.index)
    return Residuals(
        form=form_name(fit),
        names=tuple(str(name) for name in rows["name"]),
        percent=tuple(float(value) for value in percent),
        by_size={size: float(percent[rows["size"] == size].mean()) for size in size_order(rows)},
        by_patch={
            int(patch): float(percent[rows["patch_size"] == patch].mean()) for patch in sorted(set(rows["patch_size"]))
        },
    )


def fitted_values(fit: LineFit | FloorFit | InteractionFit, rows: pd.DataFrame) -> Array:
    """A fit at rows with gmacs, params and tokens, shape [n], in the unit of the metric."""
    if isinstance(fit, InteractionFit):
        return fit.predict(_floats(rows["params"]), _floats(rows["tokens"]))
    if isinstance(fit, FloorFit):
        return fit.predict(_floats(rows["gmacs"]))
    return _floats(fit.predict(_floats(rows["gmacs"]))["mean"])


def form_name(fit: LineFit | FloorFit | InteractionFit) -> str:
    """Name of a fit's form, as in `analysis.heldout.FORMS`."""
    if isinstance(fit, LineFit):
        return fit.form
    return "power law with floor" if isinstance(fit, FloorFit) else "params and tokens"


def _floats(column: pd.Series[Any]) -> Array:
    return np.asarray(column.to_numpy(dtype=float, na_value=np.nan))
