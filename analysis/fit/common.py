"""What all fits share: the error, checks of the data, flags that follow from the data, the wild bootstrap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.names import plural

Array = npt.NDArray[np.float64]
Pair = tuple[float, float]

CONFIDENCE = 0.95
FEW_POINTS = 8  # below this the interval rests on very few degrees of freedom
NARROW_RANGE = 10.0  # largest over smallest compute: less than one decade shows little of a power law
FAR = 4.0  # forecast compute over the largest fitted compute
WILD_RESAMPLES = 999


class CannotFitError(ValueError):
    """The data do not suffice for this fit; the message is the reason, fit to print."""


def pair(values: Any) -> Pair:
    """Two numbers as a tuple of floats."""
    low, high = values
    return float(low), float(high)


def floats(rows: pd.DataFrame, column: str) -> Array:
    """A column as floats, shape [n], NaN where empty."""
    return np.asarray(rows[column].to_numpy(dtype=float, na_value=np.nan))


def checked(x: Array, y: Array, least: int, what: str = "compute", logarithm: bool = True) -> tuple[Array, Array]:
    """Both as float arrays of shape [n] that a fit can use.

    Args:
        x: compute, parameters or tokens; must be positive.
        y: the metric.
        least: number of points that the fit needs.
        what: name of x, for the message.
        logarithm: the fit takes ln y, so y must be positive too.

    Raises:
        CannotFitError: too few points, a missing value, a value without a logarithm, or a constant x or y.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < least:
        raise CannotFitError(f"{plural(len(x), 'point')}; this needs at least {least}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise CannotFitError("a value is missing; leave such rows out by name first")
    for values in (x, y) if logarithm else (x,):
        if (values <= 0).any():
            raise CannotFitError(f"a value is not positive ({values.min():.4g}), so it has no logarithm")
    if np.ptp(np.log(x)) < 1e-9:
        raise CannotFitError(f"all points have the same {what}")
    if np.ptp(y) <= 1e-12 * np.abs(y).max():
        raise CannotFitError("the metric is constant")
    return x, y


def range_flags(x: Array) -> tuple[str, ...]:
    """Warnings that follow from the number and the range of the points."""
    flags = [f"few points: {len(x)}"] if len(x) < FEW_POINTS else []
    ratio = float(x.max() / x.min())
    flags += [f"narrow range: compute varies by a factor of {ratio:.3g} only"] if ratio < NARROW_RANGE else []
    return tuple(flags)


def wild_noise(residuals: Array, leverage: Array, resamples: int, seed: int = 0) -> Array:
    """Residuals to add to a fit in a wild bootstrap, shape [resamples, n].

    Each residual is divided by 1 - leverage, as in HC3, and given a random sign (Davidson & Flachaire 2008).
    """
    signs = np.random.default_rng(seed).integers(0, 2, size=(resamples, len(residuals))) * 2.0 - 1.0
    return np.asarray(signs * residuals / np.maximum(1 - leverage, 1e-6))


def wild_intervals(design: Array, response: Array, resamples: int = WILD_RESAMPLES) -> tuple[Pair, ...]:
    """95 % percentile intervals of least-squares coefficients by the wild bootstrap.

    Args:
        design: shape [n, k].
        response: shape [n].
        resamples: number of draws; the draws are always the same.

    Returns:
        k intervals. They allow for noise that differs between models; for their coverage see docs/analysis.md.
    """
    inverse = np.linalg.pinv(design)
    best = inverse @ response
    leverage = np.einsum("nk,kn->n", design, inverse)
    draws = best + wild_noise(response - design @ best, leverage, resamples) @ inverse.T
    return tuple(pair(column) for column in np.quantile(draws, [0.025, 0.975], axis=0).T)


@dataclass(frozen=True)
class Ols:
    """Ordinary least squares with three kinds of 95 % intervals, each one per coefficient."""

    model: Any  #: statsmodels' result
    t: tuple[Pair, ...]
    hc3: tuple[Pair, ...]  #: with HC3 standard errors; NaN where one point decides a coefficient
    wild: tuple[Pair, ...]  #: by the wild bootstrap


def least_squares(design: Array, response: Array, resamples: int = WILD_RESAMPLES) -> Ols:
    """Fit a response, shape [n], to the columns of a design, shape [n, k].

    Without `resamples`, where only predictions are asked for, the wild bootstrap's intervals are NaN.
    """
    from statsmodels.regression.linear_model import OLS

    model = OLS(response, design).fit()
    with np.errstate(divide="ignore", invalid="ignore"):
        robust = model.get_robustcov_results("HC3").conf_int(alpha=1 - CONFIDENCE)
    return Ols(
        model,
        tuple(pair(row) for row in model.conf_int(alpha=1 - CONFIDENCE)),
        tuple(pair(row) if np.isfinite(row).all() else (float("nan"), float("nan")) for row in robust),
        wild_intervals(design, response, resamples) if resamples else ((float("nan"),) * 2,) * design.shape[1],
    )
