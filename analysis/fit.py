"""Fit a metric against compute, parameters and tokens. Fits return frozen dataclasses and never draw.

Everything is fitted in log space; intervals come from statsmodels' ordinary least squares (Student t, and HC3 where the
noise may differ between models). What a fit cannot tell is said in its `flags`, and a fit that the data cannot carry
raises `CannotFitError` with the reason, so that a report can state it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.table import METRIC, require_comparable

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
FEW_POINTS = 8  # below this the interval rests on very few degrees of freedom
NARROW_RANGE = 10.0  # largest over smallest compute: less than one decade shows little of a power law
FAR = 4.0  # forecast compute over the largest fitted compute
_CHI2_95 = 3.841  # 95 % quantile of chi-squared with one degree of freedom


class CannotFitError(ValueError):
    """The data cannot carry this fit; the message is the reason, fit to be printed."""


# --- correlation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correlation:
    """How closely a metric y follows compute x over n models."""

    n: int
    semilog: float  #: Pearson r(y, ln x); the correlation quoted with the paper's Figure 8
    loglog: float  #: Pearson r(ln y, ln x)
    linear: float  #: Pearson r(y, x)
    spearman: float  #: rank correlation


def correlate(x: Array, y: Array) -> Correlation:
    """Correlations of y with x > 0, both of shape [n].

    Raises:
        CannotFitError: fewer than three points, a value that is missing or not positive, or a constant x or y.
    """
    from scipy import stats

    x, y = _checked(x, y, least=3)
    return Correlation(
        n=len(x),
        semilog=float(stats.pearsonr(np.log(x), y).statistic),
        loglog=float(stats.pearsonr(np.log(x), np.log(y)).statistic),
        linear=float(stats.pearsonr(x, y).statistic),
        spearman=float(stats.spearmanr(x, y).statistic),
    )


# --- straight lines in log space -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LineFit:
    """y = intercept + slope ln x ("semi-log"), or ln y = intercept + slope ln x ("power law"), over n models."""

    form: str
    n: int
    intercept: float
    slope: float
    slope_t: tuple[float, float]  #: 95 % interval, Student t
    slope_hc3: tuple[float, float]  #: 95 % interval with HC3 standard errors
    sigma: float  #: residual standard deviation, of y or of ln y
    x_range: tuple[float, float]
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

    def predict(self, x: Array) -> pd.DataFrame:
        """The line at x, shape [k]: columns mean, mean_low, mean_high (of the line), low, high (of a new model), 95 %.

        In the unit of the metric; of a power law "mean" is the median.
        """
        frame = self._model.get_prediction(_line_design(np.asarray(x, float))).summary_frame(alpha=1 - CONFIDENCE)
        columns = {
            "mean": "mean",
            "mean_ci_lower": "mean_low",
            "mean_ci_upper": "mean_high",
            "obs_ci_lower": "low",
            "obs_ci_upper": "high",
        }
        out: pd.DataFrame = frame[list(columns)].rename(columns=columns)
        return out.map(np.exp) if self.log_response else out


def fit_line(x: Array, y: Array, form: str) -> LineFit:
    """Ordinary least squares of a line against ln x.

    Args:
        x: compute, shape [n], positive.
        y: the metric, shape [n], positive.
        form: "semi-log" (y is fitted) or "power law" (ln y is fitted).

    Raises:
        CannotFitError: fewer than four points (a slope with an honest interval needs two degrees of freedom), missing
            or non-positive values, or a constant x or y.
    """
    from statsmodels.regression.linear_model import OLS

    if form not in ("semi-log", "power law"):
        raise ValueError(f"form {form!r}; allowed: semi-log, power law")
    x, y = _checked(x, y, least=4)
    model = OLS(np.log(y) if form == "power law" else y, _line_design(x)).fit()
    interval = _pair(model.conf_int(alpha=1 - CONFIDENCE)[1])
    robust = _pair(model.get_robustcov_results("HC3").conf_int(alpha=1 - CONFIDENCE)[1])
    fit = LineFit(
        form=form,
        n=len(x),
        intercept=float(model.params[0]),
        slope=float(model.params[1]),
        slope_t=interval,
        slope_hc3=robust,
        sigma=float(np.sqrt(model.scale)),
        x_range=(float(x.min()), float(x.max())),
        flags=_range_flags(x),
        _model=model,
    )
    extra = []
    if interval[0] <= 0 <= interval[1]:
        extra.append("the slope's interval includes 0: no trend is shown")
    if np.isfinite(fit.zero_at):
        extra.append(f"turns negative above {fit.zero_at:.3g}: not to be extrapolated")
    return _with_flags(fit, extra)


def _with_flags(fit: LineFit, extra: list[str]) -> LineFit:
    from dataclasses import replace

    return replace(fit, flags=(*fit.flags, *extra))


# --- power law with a floor ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FloorFit:
    """y = coefficient * x^-exponent + floor with 0 <= floor < min(y), fitted to ln y."""

    n: int
    coefficient: float
    exponent: float
    floor: float
    floor_interval: tuple[float, float]  #: floors that a likelihood-ratio test at 5 % does not reject
    identified: bool  #: the data tell the floor from 0
    sigma: float  #: residual standard deviation of ln y
    x_range: tuple[float, float]
    flags: tuple[str, ...] = ()

    def predict(self, x: Array) -> Array:
        """The curve at x, shape [k], in the unit of the metric."""
        return np.asarray(self.coefficient * np.asarray(x, float) ** -self.exponent + self.floor)


def fit_floor(x: Array, y: Array, huber: float | None = None, profile: bool = True) -> FloorFit:
    """Power law with a floor: plain least squares on ln y from many starts, then Huber warm-started from the best.

    Args:
        x: compute, shape [n], positive.
        y: the metric, shape [n], positive.
        huber: residual of ln y from which the loss is linear; by default 1.5 robust standard deviations of the plain
            fit's residuals (once seeds exist: 1 to 2 seed standard deviations).
        profile: also find which floors fit as well; without it the interval is NaN and nothing is called identified.

    Raises:
        CannotFitError: fewer than five points for three parameters, missing or non-positive values, constant x or y.
    """
    x, y = _checked(x, y, least=5)
    log_x, log_y = np.log(x), np.log(y)
    plain = _floor_solution(log_x, log_y)
    residuals = _floor_residuals(plain, log_x, log_y)
    scale = 1.4826 * float(np.median(np.abs(residuals))) or 1e-6
    robust = _floor_solution(log_x, log_y, start=plain, huber=huber if huber is not None else 1.5 * scale)
    low, high = _floor_interval(log_x, log_y, plain) if profile else (np.nan, np.nan)
    least = float(y.min())
    floor = float(robust[2])
    on_bound = floor <= 1e-3 * least
    identified = low > 1e-3 * least and high < least * (1 - 1e-3)
    flags = list(_range_flags(x))
    if on_bound:
        floor = 0.0
        flags.append("the floor sits on its bound 0")
    if floor >= least * (1 - 1e-3):
        flags.append("the floor sits on its bound, the smallest value measured")
    if profile and not identified:
        flags.append(f"the floor is not identified: anything from {low:.3g} to {high:.3g} fits as well")
    if robust[1] <= 0:
        flags.append("the metric does not fall with compute")
    return FloorFit(
        n=len(x),
        coefficient=float(np.exp(robust[0])),
        exponent=float(robust[1]),
        floor=floor,
        floor_interval=(low, high),
        identified=identified,
        sigma=float(np.sqrt(np.sum(residuals**2) / (len(x) - 3))),
        x_range=(float(x.min()), float(x.max())),
        flags=tuple(flags),
    )


def floor_deviance(x: Array, y: Array, floor: float) -> float:
    """How much worse the data fit with this floor than with the best one: n ln(RSS(floor) / RSS(best)), on ln y.

    Above 3.84 the floor is rejected at 5 % (likelihood ratio, one degree of freedom).
    """
    x, y = _checked(x, y, least=5)
    log_x, log_y = np.log(x), np.log(y)
    best = _floor_rss(_floor_solution(log_x, log_y), log_x, log_y)
    return _deviance(_fixed_floor_rss(log_x, log_y, floor), best, len(x))


def _floor_residuals(parameters: Array, log_x: Array, log_y: Array) -> Array:
    log_a, b, floor = parameters
    power = np.exp(np.clip(log_a - b * log_x, -700, 700))
    return np.asarray(np.log(power + floor) - log_y)


def _floor_jacobian(parameters: Array, log_x: Array, log_y: Array) -> Array:
    log_a, b, floor = parameters
    power = np.exp(np.clip(log_a - b * log_x, -700, 700))
    return np.asarray(np.column_stack([power, -log_x * power, np.ones(len(log_x))]) / (power + floor)[:, None])


def _floor_rss(parameters: Array, log_x: Array, log_y: Array) -> float:
    return float(np.sum(_floor_residuals(parameters, log_x, log_y) ** 2))


def _floor_solution(log_x: Array, log_y: Array, start: Array | None = None, huber: float | None = None) -> Array:
    """The parameters (ln coefficient, exponent, floor) with the least loss over the starts."""
    from scipy.optimize import least_squares

    least = float(np.exp(log_y.min()))
    if start is None:
        starts = []
        for share in (0.01, 0.3, 0.6, 0.9):
            slope, level = np.polyfit(log_x, np.log(np.exp(log_y) - share * least * 0.999), 1)
            starts += [np.array([level, -slope * tilt, share * least]) for tilt in (0.7, 1.5)]
    else:
        starts = [np.clip(start, [-np.inf, -np.inf, 1e-9 * least], [np.inf, np.inf, (1 - 1e-9) * least])]
    bounds = ([-np.inf, -np.inf, 0.0], [np.inf, np.inf, least])
    kind: dict[str, Any] = {} if huber is None else {"loss": "huber", "f_scale": huber}
    solutions = [
        least_squares(
            _floor_residuals, at, _floor_jacobian, bounds=bounds, args=(log_x, log_y), x_scale=[1, 0.1, least], **kind
        )
        for at in starts
    ]
    return np.asarray(min(solutions, key=lambda solution: solution.cost).x)


def _fixed_floor_rss(log_x: Array, log_y: Array, floor: float) -> float:
    from scipy.optimize import least_squares

    slope, level = np.polyfit(log_x, log_y, 1)

    def residuals(line: Array) -> Array:
        return _floor_residuals(np.append(line, floor), log_x, log_y)

    def jacobian(line: Array) -> Array:
        return np.asarray(_floor_jacobian(np.append(line, floor), log_x, log_y)[:, :2])

    solution = least_squares(residuals, np.array([level, -slope]), jacobian, x_scale=[1, 0.1])
    return 2 * float(solution.cost)


def _deviance(rss: float, best: float, n: int) -> float:
    return n * float(np.log(max(rss, 1e-300) / max(best, 1e-300)))


def _floor_interval(log_x: Array, log_y: Array, best: Array) -> tuple[float, float]:
    """The floors that a likelihood-ratio test does not reject, by bisection on either side of the best one."""
    least, n = float(np.exp(log_y.min())), len(log_x)
    best_rss = max(_floor_rss(best, log_x, log_y), 1e-12)

    def rejected(floor: float) -> bool:
        return _deviance(_fixed_floor_rss(log_x, log_y, floor), best_rss, n) > _CHI2_95

    def edge(outside: float) -> float:
        if not rejected(outside):
            return outside
        inside = float(best[2])
        for _ in range(12):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return inside

    return edge(0.0), edge(least * (1 - 1e-6))


# --- parameters and tokens -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InteractionFit:
    """ln y = c0 + c1 ln N + c2 ln T + c3 ln N ln T, with N parameters and T tokens; natural logarithms."""

    n: int
    coefficients: tuple[float, float, float, float]
    intervals: tuple[tuple[float, float], ...]  #: 95 %, Student t, one per coefficient
    sigma: float  #: residual standard deviation of ln y
    flags: tuple[str, ...] = ()

    def predict(self, params: Array, tokens: Array) -> Array:
        """The form at N and T, shape [k] each, in the unit of the metric."""
        return np.asarray(np.exp(_interaction_design(params, tokens) @ np.array(self.coefficients)))


def fit_interaction(params: Array, tokens: Array, y: Array) -> InteractionFit:
    """Ordinary least squares of the params-and-tokens form; all arguments positive, shape [n].

    Raises:
        CannotFitError: fewer than six points for four parameters, missing or non-positive values, a constant metric,
            or parameters and tokens that do not vary independently.
    """
    from statsmodels.regression.linear_model import OLS

    params, y = _checked(params, y, least=6, what="parameters")
    tokens, _ = _checked(tokens, y, least=6, what="tokens")
    design = _interaction_design(params, tokens)
    if np.linalg.matrix_rank(design - design.mean(0) * (np.arange(4) > 0)) < 4:
        raise CannotFitError("parameters and tokens do not vary independently, so their effects cannot be told apart")
    model = OLS(np.log(y), design).fit()
    return InteractionFit(
        n=len(y),
        coefficients=tuple(float(c) for c in model.params),  # type: ignore[arg-type]
        intervals=tuple(_pair(row) for row in model.conf_int(alpha=1 - CONFIDENCE)),
        sigma=float(np.sqrt(model.scale)),
        flags=() if len(y) >= FEW_POINTS else (f"few points: {len(y)} for 4 parameters",),
    )


# --- bootstrap -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bootstrap:
    """95 % percentile interval of a power law's exponent by a hierarchical bootstrap."""

    interval: tuple[float, float]
    resamples: int
    levels: tuple[str, ...]  #: what was drawn again, outermost first


def bootstrap_exponent(table: pd.DataFrame, metric: str = METRIC, resamples: int = 4000, seed: int = 0) -> Bootstrap:
    """Bootstrap the exponent over models, then training seeds, then sampling seeds, as far as a level has repeats.

    With one seed per model this is the pairs bootstrap, whose coverage at 12 models is .905 rather than .95: it says
    how much the fit rests on single models, the t interval stays the one to quote.

    Args:
        table: comparable rows with gmacs, block, depth, width, patch_size, seed, sampling_seed and the metric > 0.
        metric: its column.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        CannotFitError: fewer than four models, or missing or non-positive values.
        InputError: rows that were measured differently.
    """
    require_comparable(table)
    x, y = _checked(table["gmacs"].to_numpy(float), table[metric].to_numpy(float), least=4)
    rng = np.random.default_rng(seed)
    keys = [table[column] for column in ("block", "depth", "width", "patch_size", "step") if column in table]
    models = table.groupby(keys, sort=False).ngroup().to_numpy()
    seeds = table["seed"].fillna(-1).to_numpy(int)
    count = int(models.max()) + 1
    if count < 4:
        raise CannotFitError(f"{count} models; a bootstrap over models needs at least 4")
    log_x = np.array([np.log(x[models == m][0]) for m in range(count)])
    values = [[np.log(y[(models == m) & (seeds == s)]) for s in np.unique(seeds[models == m])] for m in range(count)]
    drawn = rng.integers(count, size=(resamples, count))
    log_y = np.empty(drawn.shape)
    for m in range(count):
        at = drawn == m
        log_y[at] = _nested_means(values[m], int(at.sum()), rng)
    levels: tuple[str, ...] = ("model",)
    if any(len(runs) > 1 for runs in values):
        levels = (*levels, "training seed")
    if any(len(samples) > 1 for runs in values for samples in runs):
        levels = (*levels, "sampling seed")
    return Bootstrap(_pair(np.nanquantile(_exponents(log_x[drawn], log_y), [0.025, 0.975])), resamples, levels)


def _nested_means(runs: list[Array], count: int, rng: np.random.Generator) -> Array:
    """`count` means over runs drawn again, each a mean over its samples drawn again; shape [count]."""
    chosen = rng.integers(len(runs), size=(count, len(runs)))
    means = np.empty(chosen.shape)
    for index, samples in enumerate(runs):
        at = chosen == index
        again = rng.integers(len(samples), size=(int(at.sum()), len(samples)))
        means[at] = samples[again].mean(axis=1)
    return np.asarray(means.mean(axis=1))


def _exponents(log_x: Array, log_y: Array) -> Array:
    """Power-law exponents of rows of points, shapes [b, n] -> [b]; NaN where all x of a row are equal."""
    dx = log_x - log_x.mean(axis=1, keepdims=True)
    spread = np.sum(dx**2, axis=1)
    spread[spread < 1e-12] = np.nan
    return np.asarray(-np.sum(dx * log_y, axis=1) / spread)


# --- helpers -------------------------------------------------------------------------------------------------------


def _line_design(x: Array) -> Array:
    return np.column_stack([np.ones(len(x)), np.log(x)])


def _interaction_design(params: Array, tokens: Array) -> Array:
    n, t = np.log(np.asarray(params, float)), np.log(np.asarray(tokens, float))
    return np.column_stack([np.ones(len(n)), n, t, n * t])


def _pair(values: Any) -> tuple[float, float]:
    low, high = values
    return float(low), float(high)


def _checked(x: Array, y: Array, least: int, what: str = "compute") -> tuple[Array, Array]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) < least:
        raise CannotFitError(f"{len(x)} point{'s' * (len(x) != 1)}; this needs at least {least}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise CannotFitError("a value is missing; leave such rows out by name first")
    if (x <= 0).any() or (y <= 0).any():
        raise CannotFitError("a value is not positive, so it has no logarithm")
    if np.ptp(np.log(x)) < 1e-9:
        raise CannotFitError(f"all points have the same {what}")
    if np.ptp(np.log(y)) < 1e-12:
        raise CannotFitError("the metric is constant")
    return x, y


def _range_flags(x: Array) -> tuple[str, ...]:
    flags = []
    if len(x) < FEW_POINTS:
        flags.append(f"few points: {len(x)}")
    ratio = float(x.max() / x.min())
    if ratio < NARROW_RANGE:
        flags.append(f"narrow range: compute varies by a factor of {ratio:.3g} only")
    return tuple(flags)
