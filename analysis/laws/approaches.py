"""The three ways of Hoffmann et al. (2022) to the best size for a training budget, side by side.

1. Envelope: at every budget the model with the lowest loss, of those that reach it.
2. Parabolas: at every budget the bottom of a parabola of ln loss over ln size.
3. Parametric: from the constants of the law.

The exponents of the first two are slopes over the budgets at which the optimum is enclosed: a smaller and a larger
model were measured there and are worse. Without that the best size is the edge of what was trained, and its growth
says how the sweep was made. Both are biased by a wide or lopsided choice of sizes even without noise: docs/analysis.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analysis.fit.common import Array, Pair
from analysis.laws.budgets import LEAST_MODELS, Budgets, find_budgets, interpolated_budgets
from analysis.laws.parametric import LawFit
from analysis.laws.runs import OPERATIONS, Runs
from analysis.names import plural

_NEAR, _FACTOR = 3, 3.0  # models on either side of the best one, or all within a factor; beyond it is no parabola
_LEAST_OPTIMA = 3  # of different size, for a slope that is quoted
RESAMPLES = 300
_ENVELOPE_BUDGETS, _ENVELOPE_APART = 60, 1.05


@dataclass(frozen=True)
class Optimum:
    """The best size at one budget."""

    compute: float  #: operations
    size: float
    data: float
    loss: float
    size_interval: Pair | None  #: 95 %, of a parabola's bottom; None where there are too few models
    enclosed: bool  #: a smaller and a larger model were measured, and are worse; of a law: within sizes and data fitted
    models: int  #: at this budget
    curve: tuple[float, float, float] | None = None  #: ln loss = c0 (ln size)^2 + c1 ln size + c2
    span: Pair | None = None  #: sizes the curve was fitted to


#: Finds the optimum at the budget of an index; None where too few models reach it.
_Find = Callable[[Budgets, int], Optimum | None]


@dataclass(frozen=True)
class Approach:
    """How the best size and data grow with compute: M* = k C^a, I* = C / (6 M*)."""

    name: str
    optima: tuple[Optimum, ...]
    size_exponent: float | None
    size_interval: Pair | None  #: 95 %, bootstrap over models
    level: float | None  #: ln k
    why: str = ""  #: why there is no exponent, or what is to be said of it

    @property
    def data_exponent(self) -> float | None:
        """The exponent of I*."""
        return None if self.size_exponent is None else 1 - self.size_exponent

    @property
    def data_interval(self) -> Pair | None:
        """Its interval."""
        return None if self.size_interval is None else (1 - self.size_interval[1], 1 - self.size_interval[0])

    @property
    def enclosed(self) -> int:
        """Number of budgets whose optimum is enclosed."""
        return sum(optimum.enclosed for optimum in self.optima)

    def best_size(self, compute: Array | float) -> Array | None:
        """M*(C), shape as `compute`; None without an exponent."""
        if self.size_exponent is None or self.level is None:
            return None
        return np.asarray(np.exp(self.level + self.size_exponent * np.log(compute)))


def envelope(runs: Runs, resamples: int = RESAMPLES) -> Approach:
    """Approach 1, over budgets between the checkpoints; `resamples` draws of the models give the interval.

    Raises:
        CannotFitError: no three models span a common training compute.
    """
    return _approach("envelope", interpolated_budgets(runs, _ENVELOPE_BUDGETS, _ENVELOPE_APART), _lowest, resamples)


def parabolas(runs: Runs, resamples: int = RESAMPLES) -> Approach:
    """Approach 2, over all budgets of the runs, or where they have none over twelve between the checkpoints.

    Raises:
        CannotFitError: no three models at a common budget.
    """
    budgets = find_budgets(runs)
    found = _approach("parabolas", budgets, _parabola, resamples)
    optima = (_parabola(budgets, at, interval=True) for at in range(len(budgets.compute)))
    return replace(found, optima=tuple(optimum for optimum in optima if optimum is not None))


def parametric(fit: LawFit, compute: Array) -> Approach:
    """Approach 3: the law of `fit` at some budgets, shape [b]."""
    if min(fit.law.alpha, fit.law.beta) <= 0:
        return Approach("parametric", (), None, None, None, "the loss does not fall with both size and data")
    sizes, ends = fit.best_size(compute)
    data, losses = compute / OPERATIONS / sizes, fit.law.best_loss(compute, fit.tokens)
    optima = []
    for at, size, images, loss, low, high in zip(compute, sizes, data, losses, *ends, strict=True):
        inside = _within(size, fit.size_range) and _within(images, fit.data_range)
        optima.append(
            Optimum(float(at), float(size), float(images), float(loss), (float(low), float(high)), inside, fit.runs)
        )
    exponent = fit.law.size_exponent
    level = float(np.log(sizes[0]) - exponent * np.log(compute[0]))
    outside = "" if any(optimum.enclosed for optimum in optima) else "every optimum lies beyond the runs"
    return Approach("parametric", tuple(optima), exponent, fit.intervals.get("size exponent"), level, outside)


def _within(value: float, ends: Pair) -> bool:
    return ends[0] <= value <= ends[1]


def _approach(name: str, budgets: Budgets, optimum: _Find, resamples: int) -> Approach:
    optima = tuple(found for at in range(len(budgets.compute)) if (found := optimum(budgets, at)) is not None)
    line = _line(optima)
    if line is None:
        count = len({found.size for found in optima if found.enclosed})
        why = f"{plural(count, 'size')} enclosed as the best of a budget; an exponent needs {_LEAST_OPTIMA}"
        return Approach(name, optima, None, None, None, why)
    level, exponent = line
    return Approach(name, optima, exponent, _interval(budgets, optimum, exponent, resamples), level)


def _line(optima: tuple[Optimum, ...]) -> tuple[float, float] | None:
    """Ln k and exponent of M* = k C^a over the enclosed optima; None where those are too few, or of too few sizes."""
    enclosed = [found for found in optima if found.enclosed]
    if len({found.size for found in enclosed}) < _LEAST_OPTIMA:
        return None
    log_c = np.log([found.compute for found in enclosed])
    slope, level = np.polyfit(log_c, np.log([found.size for found in enclosed]), 1)
    return float(level), float(slope)


def _interval(budgets: Budgets, optimum: _Find, exponent: float, resamples: int) -> Pair | None:
    """95 % percentile interval of the exponent over draws of the models; None where few draws have one."""
    rng, names = np.random.default_rng(0), np.unique(budgets.model)
    found = []
    for _ in range(resamples):
        kept = budgets.of_models(np.isin(budgets.model, rng.choice(names, len(names))))
        optima = (optimum(kept, at) for at in range(len(kept.compute)))
        line = _line(tuple(one for one in optima if one is not None))
        found += [line[1]] if line is not None else []
    if not found or len(found) < resamples / 2:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return min(float(low), exponent), max(float(high), exponent)


def _lowest(budgets: Budgets, at: int) -> Optimum | None:
    column = budgets.log_loss[:, at]
    there = np.flatnonzero(np.isfinite(column))
    if len(there) < LEAST_MODELS:
        return None
    best = int(there[np.argmin(column[there])])
    size, compute = float(budgets.size[best]), float(budgets.compute[at])
    enclosed = budgets.size[there[0]] < size < budgets.size[there[-1]]
    data = compute / OPERATIONS / size
    return Optimum(compute, size, data, float(np.exp(column[best])), None, bool(enclosed), len(there))


def _parabola(budgets: Budgets, at: int, interval: bool = False) -> Optimum | None:
    column = budgets.log_loss[:, at]
    there = np.flatnonzero(np.isfinite(column))
    if len(there) < LEAST_MODELS:
        return None
    log_size, log_loss = np.log(budgets.size[there]), column[there]
    best = int(np.argmin(log_loss))
    near = _around(log_size, best)
    x, y = log_size[near], log_loss[near]
    if len(np.unique(x.round(9))) < LEAST_MODELS:
        return None  # models of equal compute count once
    curve = np.polyfit(x, y, 2)
    c0, c1, c2 = (float(value) for value in curve)
    bottom = -c1 / (2 * c0) if c0 > 0 else x[np.argmin(y)]
    enclosed = c0 > 0 and x[0] <= bottom <= x[-1] and 0 < best < len(there) - 1
    bottom = float(np.clip(bottom, x[0], x[-1]))
    size, compute = float(np.exp(bottom)), float(budgets.compute[at])
    return Optimum(
        compute, size, compute / OPERATIONS / size, float(np.exp(np.polyval(curve, bottom))),
        _bottom_interval(x, y, curve) if enclosed and interval else None, bool(enclosed), len(there),
        (c0, c1, c2), (float(np.exp(x[0])), float(np.exp(x[-1]))),
    )  # fmt: skip


def _around(log_size: Array, best: int) -> npt.NDArray[np.bool_]:
    """The models that a parabola is fitted to, [m]: as far below the best one as above, for lopsided ones bias it."""
    places, far = np.arange(len(log_size)), np.abs(log_size - log_size[best])
    near = (np.abs(places - best) <= _NEAR) | (far <= np.log(_FACTOR))
    if 0 < best < len(log_size) - 1:
        shorter = min(far[0], far[-1])
        near &= (far <= shorter + 1e-9) | (np.abs(places - best) <= 1)
    return np.asarray(near)


def _bottom_interval(x: Array, y: Array, curve: Array) -> Pair | None:
    """95 % interval of a parabola's bottom, in size, to first order; None for three models, which it meets exactly."""
    from scipy import stats

    freedom = len(x) - 3
    if freedom < 1:
        return None
    centred = x - x.mean()  # else the design is nearly singular
    c0, c1, _ = np.polyfit(centred, y, 2)
    design = np.column_stack([centred**2, centred, np.ones(len(x))])
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    covariance = np.linalg.inv(design.T @ design) * float(residuals @ residuals) / freedom
    slope = np.array([c1 / (2 * c0**2), -1 / (2 * c0), 0.0])
    half = float(stats.t.ppf(0.975, freedom) * np.sqrt(slope @ covariance @ slope))
    middle = float(x.mean() - c1 / (2 * c0))
    return float(np.exp(middle - half)), float(np.exp(middle + half))
