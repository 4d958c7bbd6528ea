"""Power law with a floor, by the estimator of the plain power law: least squares of ln y, here from many starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit.common import CONFIDENCE, Array, Pair, checked, floats, pair, range_flags, wild_noise

WILD_REFITS = 1000
_REFIT_STEPS = 200
_CHI2_95 = 3.841  # 95 % quantile of chi-squared with one degree of freedom
_BOUND = 1e-3  # share of the smallest value measured: a floor nearer to its bound than this sits on it


@dataclass(frozen=True)
class FloorFit:
    """y = coefficient * x^-exponent + floor with 0 <= floor <= max(y), fitted to ln y.

    With a floor of 0 it is the power law of `analysis.fit.lines.fit_line` to the last digit, under another name.
    """

    n: int
    coefficient: float
    exponent: float
    floor: float
    floor_interval: Pair  #: floors that a likelihood-ratio test at 5 % does not reject
    on_bound: bool  #: the floor is 0 or the largest value measured: no form of its own, but a power law or a constant
    identified: bool  #: the data tell the floor from 0 and from the largest value measured
    exponent_t: Pair  #: 95 % interval, Student t, first order; with the floor fixed if it sits on its bound
    exponent_hc3: Pair  #: the same with HC3 standard errors
    exponent_wild: Pair  #: 95 % interval, wild bootstrap
    floor_wild: Pair  #: 95 % interval, wild bootstrap
    sigma: float  #: residual standard deviation of ln y
    x_range: Pair
    flags: tuple[str, ...] = ()
    _covariance: Any = field(default=None, repr=False, compare=False)  #: of (ln coefficient, exponent, floor), [3, 3]

    def predict(self, x: Array) -> Array:
        """The curve at x, shape [k], in the unit of the metric."""
        return np.asarray(self.coefficient * np.asarray(x, float) ** -self.exponent + self.floor)

    @property
    def form(self) -> str:
        """Name of the form."""
        return "power law with floor"

    def fitted(self, rows: pd.DataFrame) -> Array:
        """The curve at the gmacs of the rows, shape [n], in the unit of the metric."""
        return self.predict(floats(rows, "gmacs"))

    def predicted(self, rows: pd.DataFrame) -> pd.DataFrame:
        """A new model at the gmacs of the rows: columns mean, low, high (95 %)."""
        return self.band(floats(rows, "gmacs"))[["mean", "low", "high"]]

    def jacobian(self, rows: pd.DataFrame) -> Array:
        """Derivatives of the curve's logarithm by its constants, shape [n, 3], or [n, 2] where the floor is 0."""
        parameters = np.array([np.log(self.coefficient), self.exponent, self.floor])
        return _jacobian(parameters, np.log(floats(rows, "gmacs")))[:, : 3 if self.floor > 0 else 2]

    def band(self, x: Array) -> pd.DataFrame:
        """The curve at x, shape [k], with 95 % intervals: columns as `LineFit.predict`, to first order."""
        parameters = np.array([np.log(self.coefficient), self.exponent, self.floor])
        log_x = np.log(np.asarray(x, float))
        slope = _jacobian(parameters, log_x)
        variance = np.einsum("ki,ij,kj->k", slope, self._covariance, slope)
        freedom = self.n - (2 if self.floor == 0 else 3)
        centre, quantile = np.log(self.predict(x)), _t_quantile(freedom)
        line, new = quantile * np.sqrt(variance), quantile * np.sqrt(variance + self.sigma**2)
        ends = {"mean_low": centre - line, "mean_high": centre + line, "low": centre - new, "high": centre + new}
        return pd.DataFrame({"mean": centre, **ends}).map(np.exp)


def fit_floor(x: Array, y: Array, profile: bool = True, resamples: int = WILD_REFITS) -> FloorFit:
    """Power law with a floor: least squares on ln y, the best of many starts.

    It nests the power law and shares its estimator, so the two differ by what the floor does and by nothing else.

    Args:
        x: compute, shape [n], positive.
        y: the metric, shape [n], positive.
        profile: also find the interval of the floor and the wild bootstrap's; without it these intervals are NaN, and
            the floor does not count as identified.
        resamples: refits of the wild bootstrap.

    Raises:
        CannotFitError: fewer than five points for three parameters, missing or non-positive values, constant x or y.
    """
    x, y = checked(x, y, least=5)
    log_x, log_y = np.log(x), np.log(y)
    best = _floor_solution(log_x, log_y)
    least, most = float(y.min()), float(y.max())
    if best[2] <= _BOUND * least:
        slope, level = np.polyfit(log_x, log_y, 1)
        best = np.array([level, -slope, 0.0])
    low, high = _floor_interval(log_x, log_y, best) if profile else (np.nan, np.nan)
    identified = bool(low > _BOUND * least and high < most * (1 - _BOUND))
    sigma = float(np.sqrt(np.sum(_residuals(best, log_x, log_y) ** 2) / (len(x) - (3 if best[2] > 0 else 2))))
    exponent_t, exponent_hc3, covariance, leverage = _delta_intervals(best, log_x, log_y, sigma)
    wild = np.full((1, 3), np.nan)
    if profile:
        centre = log_y + _residuals(best, log_x, log_y)
        noise = wild_noise(centre - log_y, leverage, resamples)
        wild = refit_floors(np.broadcast_to(log_x, noise.shape), centre + noise, best)
    return FloorFit(
        n=len(x),
        coefficient=float(np.exp(best[0])),
        exponent=float(best[1]),
        floor=float(best[2]),
        floor_interval=(low, high),
        on_bound=not 0 < best[2] < most * (1 - _BOUND),
        identified=identified,
        exponent_t=exponent_t,
        exponent_hc3=exponent_hc3,
        exponent_wild=pair(np.quantile(wild[:, 1], [0.025, 0.975])),
        floor_wild=pair(np.quantile(wild[:, 2], [0.025, 0.975])),
        sigma=sigma,
        x_range=(float(x.min()), float(x.max())),
        flags=range_flags(x) + _floor_flags(best, most, (low, high), profile and not identified),
        _covariance=covariance,
    )


def refit_floors(log_x: Array, log_y: Array, start: Array) -> Array:
    """Fit all rows of points at once, by projected Levenberg-Marquardt.

    Args:
        log_x: rows of points, shape [b, n].
        log_y: shape [b, n].
        start: ln coefficient, exponent and floor, shape [3] (in a bootstrap: the fit of the original points) or [b, 3].

    Returns:
        ln coefficient, exponent and floor of every row, shape [b, 3].
    """
    most = np.exp(log_y.max(axis=1))
    at = np.broadcast_to(start, (len(log_y), 3)).copy()
    at[:, 2] = np.clip(at[:, 2], 0, most)
    damping, settled = np.full(len(at), 1e-3), np.zeros(len(at), bool)
    residuals = _residuals(at, log_x, log_y)
    cost = np.sum(residuals**2, axis=1)
    for _ in range(_REFIT_STEPS):
        jacobian = _jacobian(at, log_x)
        jacobian[:, :, 2] *= most[:, None]  # in units of the largest value
        gradient = np.einsum("bnk,bn->bk", jacobian, residuals)
        stuck = ((at[:, 2] <= 0) & (gradient[:, 2] > 0)) | ((at[:, 2] >= most) & (gradient[:, 2] < 0))
        gradient[stuck, 2] = 0
        square = np.einsum("bnk,bnl->bkl", jacobian, jacobian)
        square[stuck, 2, :2] = square[stuck, :2, 2] = 0
        diagonal = np.einsum("bkk->bk", square)
        diagonal += damping[:, None] * diagonal + 1e-12
        step = np.linalg.solve(square, gradient[:, :, None])[:, :, 0]
        new = at - step * np.stack([np.ones_like(most), np.ones_like(most), most], axis=1)
        new[:, 2] = np.clip(new[:, 2], 0, most)
        new_residuals = _residuals(new, log_x, log_y)
        new_cost = np.sum(new_residuals**2, axis=1)
        better = new_cost <= cost
        settled |= (damping > 1e6) | (better & (cost - new_cost <= 1e-10 * cost))
        at[better], residuals[better], cost[better] = new[better], new_residuals[better], new_cost[better]
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-9, 1e9)
        if settled.all():
            break
    return at


def _floor_flags(best: Array, most: float, interval: Pair, unknown: bool) -> tuple[str, ...]:
    span = f"{interval[0]:.3g} to {interval[1]:.3g}"
    flags = {
        "the floor sits on its bound 0": best[2] == 0,
        "the floor sits on its bound, the largest value measured": best[2] >= most * (1 - _BOUND),
        f"the floor is not identified: anything from {span} fits as well": unknown,
        "the metric does not fall with compute": best[1] <= 0,
    }
    return tuple(flag for flag, holds in flags.items() if holds)


def _delta_intervals(parameters: Array, log_x: Array, log_y: Array, sigma: float) -> tuple[Pair, Pair, Array, Array]:
    """First-order 95 % intervals of the exponent (t, HC3), the covariance [3, 3] and the leverage [n]."""
    kept = 3 if parameters[2] > 0 else 2
    jacobian = _jacobian(parameters, log_x)[:, :kept]
    bread = np.linalg.pinv(jacobian.T @ jacobian)
    leverage = np.einsum("ni,ij,nj->n", jacobian, bread, jacobian)
    scaled = jacobian * (_residuals(parameters, log_x, log_y) / np.maximum(1 - leverage, 1e-6))[:, None]
    quantile = _t_quantile(len(log_x) - kept)
    intervals = []
    for covariance in (sigma**2 * bread, bread @ scaled.T @ scaled @ bread):
        half = quantile * float(np.sqrt(covariance[1, 1]))
        intervals.append((float(parameters[1]) - half, float(parameters[1]) + half))
    full = np.zeros((3, 3))
    full[:kept, :kept] = sigma**2 * bread
    return intervals[0], intervals[1], full, leverage


def _t_quantile(freedom: int) -> float:
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def _power(at: Array, log_x: Array) -> Array:
    """The curve without its floor: parameters [..., 3], ln x [..., n] -> [..., n]."""
    return np.asarray(np.exp(np.clip(at[..., :1] - at[..., 1:2] * log_x, -700, 700)))


def _residuals(at: Array, log_x: Array, log_y: Array) -> Array:
    """Fitted minus measured ln y, shapes as `_power`."""
    return np.asarray(np.log(_power(at, log_x) + at[..., 2:]) - log_y)


def _jacobian(at: Array, log_x: Array, _: Array | None = None) -> Array:
    """Derivatives of ln y by ln coefficient, exponent and floor: shapes as `_power`, -> [..., n, 3]."""
    power = _power(at, log_x)
    slopes = np.stack([power, -log_x * power, np.ones_like(power)], axis=-1)
    return np.asarray(slopes / (power + at[..., 2:])[..., None])


def _floor_solution(log_x: Array, log_y: Array) -> Array:
    """The parameters (ln coefficient, exponent, floor) with the least squared error, from the best of many starts."""
    from scipy.optimize import least_squares

    least, most = float(np.exp(log_y.min())), float(np.exp(log_y.max()))
    starts = []
    for share in (0.01, 0.3, 0.6, 0.9):
        slope, level = np.polyfit(log_x, np.log(np.exp(log_y) - share * least * 0.999), 1)
        starts += [np.array([level, -slope * tilt, share * least]) for tilt in (0.7, 1.5)]
    rows_x, rows_y = (np.broadcast_to(values, (len(starts), len(log_x))) for values in (log_x, log_y))
    ends = refit_floors(rows_x, rows_y, np.array(starts))
    best = ends[np.argmin(np.sum(_residuals(ends, rows_x, rows_y) ** 2, axis=1))]
    solution = least_squares(
        _residuals,
        np.clip(best, [-np.inf, -np.inf, 1e-9 * least], [np.inf, np.inf, (1 - 1e-9) * most]),
        _jacobian,
        bounds=([-np.inf, -np.inf, 0.0], [np.inf, np.inf, most]),
        args=(log_x, log_y),
        x_scale=[1, 0.1, least],
    )
    return np.asarray(solution.x)


def _deviance(log_x: Array, log_y: Array, floor: float, best: Array) -> float:
    """The cost of fixing the floor, against the best parameters: n times the log of the ratio of squared errors."""
    from scipy.optimize import least_squares

    def residuals(line: Array) -> Array:
        return _residuals(np.append(line, floor), log_x, log_y)

    def jacobian(line: Array) -> Array:
        return _jacobian(np.append(line, floor), log_x)[:, :2]

    slope, level = np.polyfit(log_x, log_y, 1)
    solution = least_squares(residuals, np.array([level, -slope]), jacobian, x_scale=[1, 0.1])
    least = max(float(np.sum(_residuals(best, log_x, log_y) ** 2)), 1e-12)
    return len(log_x) * float(np.log(max(2 * float(solution.cost), 1e-300) / least))


def _floor_interval(log_x: Array, log_y: Array, best: Array) -> Pair:
    """The floors that a likelihood-ratio test does not reject, by bisection on either side of the best one."""

    def rejected(floor: float) -> bool:
        return _deviance(log_x, log_y, floor, best) > _CHI2_95

    def edge(outside: float) -> float:
        if not rejected(outside):
            return outside
        inside = float(best[2])
        for _ in range(14):
            steep = min(inside, outside) > 0 and max(inside, outside) > 4 * min(inside, outside)
            middle = (inside * outside) ** 0.5 if steep else (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return inside

    return edge(0.0), edge(float(np.exp(log_y.max())) * (1 - 1e-6))
