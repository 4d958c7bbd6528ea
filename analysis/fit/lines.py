"""Correlation, and straight lines against the logarithm of compute: semi-log and power law."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit.common import CONFIDENCE, WILD_RESAMPLES, Array, Pair, checked, floats, least_squares, range_flags


@dataclass(frozen=True)
class Correlation:
    """How closely a metric y follows compute x over n models."""

    n: int
    semilog: float  #: Pearson r(y, ln x); the paper's Figure 8 quotes this one
    loglog: float  #: Pearson r(ln y, ln x)
    linear: float  #: Pearson r(y, x)
    spearman: float  #: rank correlation


def correlate(x: Array, y: Array) -> Correlation:
    """Correlations of y with x > 0, both of shape [n].

    Raises:
        CannotFitError: fewer than three points, a value that is missing or not positive, or a constant x or y.
    """
    from scipy import stats

    x, y = checked(x, y, least=3)
    return Correlation(
        n=len(x),
        semilog=float(stats.pearsonr(np.log(x), y).statistic),
        loglog=float(stats.pearsonr(np.log(x), np.log(y)).statistic),
        linear=float(stats.pearsonr(x, y).statistic),
        spearman=float(stats.spearmanr(x, y).statistic),
    )


@dataclass(frozen=True)
class LineFit:
    """y = intercept + slope ln x ("semi-log"), or ln y = intercept + slope ln x ("power law"), over n models."""

    form: str
    n: int
    intercept: float
    slope: float
    slope_t: Pair  #: 95 % interval, Student t
    slope_hc3: Pair  #: 95 % interval with HC3 standard errors
    slope_wild: Pair  #: 95 % interval, wild bootstrap
    sigma: float  #: residual standard deviation, of y or of ln y
    x_range: Pair
    flags: tuple[str, ...] = ()
    _model: Any = field(default=None, repr=False, compare=False)

    @property
    def log_response(self) -> bool:
        """Whether ln y was fitted."""
        return self.form == "power law"

    @property
    def coefficient(self) -> float:
        """Of a power law y = coefficient * x^-exponent: y at x = 1."""
        return float(np.exp(self.intercept))

    @property
    def exponent(self) -> float:
        """Of a power law y = coefficient * x^-exponent."""
        return -self.slope

    @property
    def zero_at(self) -> float:
        """Where a falling semi-log line crosses zero, in the unit of x; infinite where it never does."""
        if self.log_response or self.slope >= 0:
            return float("inf")
        return float(np.exp(-self.intercept / self.slope))

    def equation(self, metric: str = "y") -> str:
        """The fit in words; G is compute, in the unit of x."""
        if self.log_response:
            return f"{metric} = {self.coefficient:.5g} G^{self.slope:+.4f}"
        return f"{metric} = {self.intercept:.5g} {'+' if self.slope >= 0 else '−'} {abs(self.slope):.4g} ln G"

    def fitted(self, rows: pd.DataFrame) -> Array:
        """The line at the gmacs of the rows, shape [n], in the unit of the metric."""
        value = self.intercept + self.slope * np.log(floats(rows, "gmacs"))
        return np.asarray(np.exp(value) if self.log_response else value)

    def predicted(self, rows: pd.DataFrame) -> pd.DataFrame:
        """A new model at the gmacs of the rows: columns mean, low, high (95 %), in the unit of the metric."""
        return self.predict(floats(rows, "gmacs"))[["mean", "low", "high"]]

    def jacobian(self, rows: pd.DataFrame) -> Array:
        """Derivatives of the response by intercept and slope, shape [n, 2]."""
        return _line_design(floats(rows, "gmacs"))

    def predict(self, x: Array) -> pd.DataFrame:
        """The line at x, shape [k], with 95 % intervals, in the unit of the metric.

        The columns are mean, mean_low, mean_high (of the line), and low, high (of a new model). For a power law "mean"
        is the median.
        """
        frame = self._model.get_prediction(_line_design(np.asarray(x, float))).summary_frame(alpha=1 - CONFIDENCE)
        out: pd.DataFrame = frame[["mean", "mean_ci_lower", "mean_ci_upper", "obs_ci_lower", "obs_ci_upper"]]
        out.columns = ["mean", "mean_low", "mean_high", "low", "high"]
        return out.map(np.exp) if self.log_response else out


def fit_line(x: Array, y: Array, form: str, resamples: int = WILD_RESAMPLES) -> LineFit:
    """Ordinary least squares of a line against ln x.

    Args:
        x: compute, shape [n], positive.
        y: the metric, shape [n]; positive for a power law.
        form: "semi-log" (y is fitted) or "power law" (ln y is fitted).
        resamples: of the wild bootstrap; 0 leaves its interval NaN.

    Raises:
        CannotFitError: fewer than four points (a slope with an honest interval needs two degrees of freedom), missing
            or non-positive values, or a constant x or y.
    """
    if form not in ("semi-log", "power law"):
        raise ValueError(f"form {form!r}; allowed: semi-log, power law")
    x, y = checked(x, y, least=4, logarithm=form == "power law")
    response, design = np.log(y) if form == "power law" else y, _line_design(x)
    ols = least_squares(design, response, resamples)
    fit = LineFit(
        form=form,
        n=len(x),
        intercept=float(ols.model.params[0]),
        slope=float(ols.model.params[1]),
        slope_t=ols.t[1],
        slope_hc3=ols.hc3[1],
        slope_wild=ols.wild[1],
        sigma=float(np.sqrt(ols.model.scale)),
        x_range=(float(x.min()), float(x.max())),
        flags=range_flags(x),
        _model=ols.model,
    )
    level = fit.slope_t[0] <= 0 <= fit.slope_t[1]
    flags = ["the slope's interval includes 0: no trend is shown"] if level else []
    flags += [f"turns negative above {fit.zero_at:.3g}: not to be extrapolated"] if np.isfinite(fit.zero_at) else []
    return replace(fit, flags=(*fit.flags, *flags))


def _line_design(x: Array) -> Array:
    return np.column_stack([np.ones(len(x)), np.log(x)])
