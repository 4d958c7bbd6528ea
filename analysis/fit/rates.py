"""The best learning rate at each width, and the law through them: what `dit-harness pilot` prints.

Near its minimum the logarithm of the loss is taken for a parabola in the logarithm of the rate, so the best rate may
lie between two that were tried. The spread over seeds says how well it is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit.common import CONFIDENCE, CannotFitError, Pair
from analysis.fit.lines import LineFit, fit_line

_DIGITS = 3  # of a rate that is proposed


@dataclass(frozen=True)
class BestRate:
    """The best rate at one width."""

    width: int
    losses: dict[float, float]  #: rate -> geometric mean of the held-out loss over seeds; inf where a seed diverged
    tried: float  #: the rate with the lowest loss
    by_seed: tuple[float, ...]  #: bottom of each seed's parabola
    edge: str  #: "lowest" or "highest" where the best rate is the end of those tried; otherwise empty
    interval: Pair | None = None  #: 95 %, of the rate; by the spread over seeds, pooled over widths

    @property
    def rate(self) -> float:
        """Geometric mean over the seeds."""
        return math.exp(float(np.mean(np.log(self.by_seed))))


@dataclass(frozen=True)
class RateLaw:
    """rate = base * (width / reference)^-exponent."""

    base: float
    width: int
    exponent: float
    interval: Pair  #: 95 %, of the exponent; Student t over widths and seeds
    line: LineFit

    @property
    def text(self) -> str:
        """As a sweep file has it."""
        return f"learning_rate = {{ base = {self.base:g}, width = {self.width}, exponent = {self.exponent:.2f} }}"


def best_rates(trials: pd.DataFrame) -> tuple[BestRate, ...]:
    """The best rate of every width, the smallest first.

    Args:
        trials: columns width, learning_rate, seed and loss; a loss that is not finite is a training that diverged.

    Raises:
        CannotFitError: a width has fewer than three rates, or every training of it diverged.
    """
    logs = trials.assign(loss=np.log(trials["loss"].where(np.isfinite(trials["loss"]), np.inf)))
    found = [
        _best(width, logs[logs["width"] == width]) for width in sorted(logs["width"].astype(int).unique().tolist())
    ]
    spread, freedom = _pooled(best.by_seed for best in found if len(set(best.by_seed)) > 1)
    return tuple(_with_interval(best, spread, freedom) for best in found)


def rate_law(found: Iterable[BestRate]) -> RateLaw:
    """The power law through the best rates; every seed of every width is a point.

    Raises:
        CannotFitError: a best rate lies at the end of those tried, or the points are too few.
    """
    found = list(found)
    if odd := [f"the {best.edge} tried is the best at width {best.width}" for best in found if best.edge]:
        raise CannotFitError("; ".join(odd))
    if len({rate for best in found for rate in best.by_seed}) == 1:
        raise CannotFitError(f"the best rate is the same at every width, {found[0].tried:g}")
    points = [(best.width, rate) for best in found for rate in best.by_seed]
    widths, rates = np.array(points, dtype=float).T
    line = fit_line(widths, rates, "power law")
    centre = math.exp(float(np.log(widths).mean()))
    reference = min((best.width for best in found), key=lambda width: abs(math.log(width / centre)))
    base = float(f"{line.coefficient * reference**line.slope:.{_DIGITS}g}")
    return RateLaw(base, reference, line.exponent, (-line.slope_t[1], -line.slope_t[0]), line)


def _best(width: int, rows: pd.DataFrame) -> BestRate:
    """The best rate of one width; `rows` have the logarithm of the loss."""
    table = rows.pivot_table(index="learning_rate", columns="seed", values="loss", dropna=False).sort_index()
    means = table.mean(axis=1, skipna=False).fillna(np.inf)
    if len(means) < 3:
        raise CannotFitError(f"width {width} has {len(means)} rates; a parabola needs three")
    if not np.isfinite(means).any():
        raise CannotFitError(f"every training of width {width} diverged; lower rates are needed")
    at = int(np.argmin(means.to_numpy()))
    rates, last = means.index.to_numpy(float), len(means) - 1
    edge = "lowest" if at == 0 else "highest" if at == last else ""
    losses = dict(zip(rates.tolist(), np.exp(means.to_numpy(float)).tolist(), strict=True))
    near = slice(at - 1, at + 2)
    if edge or not np.isfinite(means.iloc[near]).all():  # no parabola beside a training that diverged
        by_seed = (float(rates[at]),) * table.shape[1]
    else:
        by_seed = tuple(_bottom(rates[near], table.iloc[near][seed].to_numpy(float)) for seed in table)
    return BestRate(width, losses, float(rates[at]), by_seed, edge)


def _bottom(rates: Any, log_loss: Any) -> float:
    """The rate at the bottom of the parabola through three points, within their range."""
    x = np.log(rates)
    c2, c1, _ = np.polyfit(x - x[1], log_loss, 2)
    at = -c1 / (2 * c2) if c2 > 0 else math.copysign(math.inf, -c1)
    return float(np.exp(x[1] + np.clip(at, x[0] - x[1], x[2] - x[1])))


def _pooled(groups: Iterable[tuple[float, ...]]) -> tuple[float, int]:
    """Standard deviation of the logarithm of a rate between the seeds of a width, and its degrees of freedom."""
    logs = [np.log(group) for group in groups]
    freedom = sum(len(values) - 1 for values in logs)
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in logs)
    return (math.sqrt(squares / freedom) if freedom else 0.0), freedom


def _with_interval(best: BestRate, spread: float, freedom: int) -> BestRate:
    from scipy import stats

    if best.edge or not freedom or not spread:
        return best
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * spread / math.sqrt(len(best.by_seed))
    ends = best.rate * math.exp(-reach), best.rate * math.exp(reach)
    return BestRate(best.width, best.losses, best.tried, best.by_seed, best.edge, ends)
