"""Fit the law of size and data by log-sum-exp and a summed Huber loss, with a bootstrap over models."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.fit.common import Array, CannotFitError, Pair, pair
from analysis.laws.law import CONSTANTS, Law, log_best_size, log_loss, logs_of
from analysis.laws.minimise import DRAW_SETTLED, costs_of, follow, minimum, minimum_from
from analysis.laws.runs import LEAST_VALUES, Runs, Words, of_one_size, require_law

DELTA = 1e-3  # of Hoffmann et al. (2022); for runs whose noise is not known
RESAMPLES = 1000
FEW_MODELS = 8  # below this a bootstrap over models tells little
_SEED_SDS = 1.5  # delta of runs whose noise is known, in standard deviations of ln loss
_NO_FLOOR = 1e-3  # share of the lowest loss below which E is 0
_LEAST_DELTA = 1e-6
_RUN_AWAY = 700.0  # ln A or ln B whose exponential is no number any more


@dataclass(frozen=True)
class LawFit:
    """The law of some runs, with what a bootstrap over their models says of it."""

    law: Law
    runs: int
    models: int
    with_tokens: bool
    delta: float  #: residual of ln loss from which the objective is linear
    delta_from: str  #: why it has that value
    objective: float  #: summed Huber loss over delta^2, at its minimum
    sigma: float  #: standard deviation of the residuals of ln loss
    intervals: dict[str, Pair]  #: 95 %: of the constants, and of "size exponent" and "data exponent"
    size_range: Pair
    data_range: Pair
    flags: tuple[str, ...]
    tokens: float = 1.0  #: of an image, median over the runs; where gamma is 0 it changes nothing
    draws: Array = field(default_factory=lambda: np.zeros((0, 5)), repr=False, compare=False)  #: parameters, [b, p]
    residuals: Array = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)  #: of ln loss, [n]

    @property
    def constants(self) -> dict[str, float]:
        """The constants by their name, unrounded."""
        return {name: getattr(self.law, name) for name in (CONSTANTS if self.with_tokens else CONSTANTS[:-1])}

    def predict(self, size: Array, data: Array, tokens: Array | float | None = None) -> pd.DataFrame:
        """The loss at size and data, shape [k], with 95 % intervals.

        Returns:
            Columns mean, mean_low, mean_high (of the law), low, high (of a new run): the draws of the bootstrap, and
            these with residuals drawn to them. The intervals hold only if the law does.
        """
        logs = logs_of(size, data, self.tokens if tokens is None else tokens)
        centre = log_loss(self.law.theta, logs)[0]
        off = log_loss(self.draws, logs)[0] - centre
        rng = np.random.default_rng(0)
        noise = rng.choice(self.residuals, off.shape) * np.sqrt(self.runs / (self.runs - self.draws.shape[1]))
        line, new = (_spread(drawn, self.models) for drawn in (off, off + noise))
        ends = {"mean_low": line[0], "mean_high": line[1], "low": new[0], "high": new[1]}
        return pd.DataFrame({"mean": centre} | {name: centre + end for name, end in ends.items()}).map(np.exp)

    def best_size(self, compute: Array) -> tuple[Array, Array]:
        """M*(C) of the law, shape as `compute`, and its 95 % interval, shape [2, ...]."""
        best, drawn = (log_best_size(theta, compute, self.tokens) for theta in (self.law.theta, self.draws))
        return np.exp(best), np.exp(best + _spread(drawn - best, self.models))


def fit_law(
    runs: Runs,
    words: Words | None = None,
    *,
    delta: float | None = None,
    with_tokens: bool = False,
    resamples: int = RESAMPLES,
) -> LawFit:
    """The law of the runs.

    Args:
        runs: of several sizes and several amounts of data.
        words: what size and data are called in messages.
        delta: of the Huber loss, in ln loss; by default 1.5 standard deviations: of the seeds where those repeat,
            otherwise of the residuals of a least-squares fit, robustly.
        with_tokens: fit gamma, the exponent of the tokens of an image.
        resamples: draws of the bootstrap; 0 for none, as in tests on runs left out.

    Raises:
        CannotFitError: the runs do not carry such a law; the message is the reason.
    """
    require_law(runs, 6 if with_tokens else 5, words or Words())
    if with_tokens and (runs.tokens is None or len(np.unique(runs.tokens)) < 2):
        raise CannotFitError("all runs have as many tokens")
    log_y = np.log(runs.loss)
    logs = logs_of(runs.size, runs.data, 1.0 if runs.tokens is None else runs.tokens)
    why, start = "given", None
    if delta is None and runs.seed_sd:
        delta, why = _SEED_SDS * runs.seed_sd, f"{_SEED_SDS} standard deviations between seeds"
    if delta is None:  # least squares first: its residuals show the noise, and the Huber loss begins where it ends
        start = minimum(logs, log_y, np.inf, with_tokens)
        spread = 1.4826 * float(np.median(np.abs(costs_of(start, logs, log_y, np.inf)[1])))
        delta, why = _SEED_SDS * spread, f"{_SEED_SDS} robust standard deviations of least-squares residuals"
    delta = max(delta, _LEAST_DELTA)
    theta = minimum(logs, log_y, delta, with_tokens) if start is None else minimum_from(start, logs, log_y, delta)
    no_floor = bool(np.exp(theta[0]) < _NO_FLOOR * runs.loss.min())
    if no_floor:
        theta = minimum(logs, log_y, delta, with_tokens, floor=False)
    if max(theta[1], theta[3]) > _RUN_AWAY:
        raise CannotFitError("the runs do not determine the law: a constant runs away")
    cost, residuals, _ = costs_of(theta, logs, log_y, delta)
    draws = _bootstrap(theta, runs, logs, log_y, delta, resamples)
    law = Law.of(theta)
    return LawFit(
        law=law,
        runs=len(log_y),
        models=runs.models,
        with_tokens=with_tokens,
        delta=float(delta),
        delta_from=why,
        objective=float(cost),
        sigma=float(np.sqrt(np.sum(residuals**2) / (len(log_y) - len(theta)))),
        intervals=_intervals(theta, draws, runs.models) if len(draws) else {},
        size_range=(float(runs.size.min()), float(runs.size.max())),
        data_range=(float(runs.data.min()), float(runs.data.max())),
        flags=_flags(law, runs, no_floor),
        tokens=1.0 if runs.tokens is None else float(np.median(runs.tokens)),
        draws=draws,
        residuals=residuals,
    )


def _bootstrap(theta: Array, runs: Runs, logs: Array, log_y: Array, delta: float, resamples: int) -> Array:
    """The parameters of tables whose models are drawn anew, from the best fit on, shape [b, p].

    Draws that do not determine the law, because they hold too few sizes, are left out.
    """
    _, model = np.unique(runs.model, return_inverse=True)
    count = int(model.max()) + 1
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    weights = drawn[:, model].astype(float)
    sizes = of_one_size(runs.size)
    kinds = np.array(
        [(drawn_runs[:, None] * (sizes[:, None] == np.unique(sizes))).any(axis=0).sum() for drawn_runs in weights]
    )
    start = theta.copy()
    if not np.isfinite(start[0]):
        start[0] = np.log(10 * _NO_FLOOR * runs.loss.min())
    return follow(start, logs, log_y, weights[kinds >= LEAST_VALUES], delta, DRAW_SETTLED)


def _spread(off: Array, models: int) -> Array:
    """2.5 and 97.5 % of the draws' distances from the fit, shape [b, ...] -> [2, ...].

    Few models make a percentile interval too narrow; Student's t over the normal quantile widens it.
    """
    from scipy import stats

    wider = stats.t.ppf(0.975, max(models - 1, 1)) / stats.norm.ppf(0.975)
    return np.asarray(wider * np.nanquantile(off, [0.025, 0.975], axis=0))


def _intervals(theta: Array, draws: Array, models: int) -> dict[str, Pair]:
    """95 % intervals of the constants, and of the exponents of the best size and the best amount of data."""

    def values(at: Array) -> dict[str, Array]:
        columns = dict(zip(CONSTANTS, at.T, strict=False))
        with np.errstate(all="ignore"):
            columns["size exponent"] = columns["beta"] / (columns["alpha"] + columns["beta"])
        return columns

    best, found = values(theta[None]), {}
    for name, drawn in values(draws).items():
        centre = float(best[name][0])
        if np.isfinite(centre):
            low, high = centre + _spread(drawn - centre, models)
        else:  # E is 0: its logarithm has no distance
            low, high = -np.inf, float(np.nanquantile(drawn, 0.975))
        found[name] = pair(np.exp([low, high]) if name in ("E", "A", "B") else (low, high))
    low, high = found["size exponent"]
    return found | {"data exponent": (1 - high, 1 - low)}


def _flags(law: Law, runs: Runs, no_floor: bool) -> tuple[str, ...]:
    flags = {
        "E is on its bound 0: this is the law without a floor": no_floor,
        "the loss does not fall with size": law.alpha <= 0,
        "the loss does not fall with data": law.beta <= 0,
        f"few models: {runs.models}, so the intervals are rough": runs.models < FEW_MODELS,
    }
    return tuple(flag for flag, holds in flags.items() if holds)
