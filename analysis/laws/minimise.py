"""The summed Huber loss of ln L and its minimum: many starts at once, many weightings at once.

Besiroglu et al. (2024, arXiv:2404.10102) show what goes wrong otherwise: an objective that is averaged, or of small
numbers, meets the optimiser's tolerance early. Here it is summed, and divided by delta^2, which moves no minimum.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from analysis.fit.common import Array
from analysis.laws.law import log_loss

_LEVELS, _EXPONENTS = (0, 5, 10, 15, 20, 25), (0, 0.5, 1, 1.5, 2)

#: Initial values of Hoffmann et al. (2022), section D.2; the levels e, a and b for losses whose median is e.
_GRID = np.array(list(product((-1, -0.5, 0, 0.5, 1), _LEVELS, _EXPONENTS, _LEVELS, _EXPONENTS)), dtype=float)
_KEPT = 40  # starts that are followed to their minimum
_LOOKED_AT = 60  # runs, about, on which all starts are compared; the best are followed on all runs
_STEPS = 200
_SETTLED = 1e-10  # relative fall of the objective below which a minimum is reached

#: The same for a draw of a bootstrap, whose quantiles have three digits; where constants are hardly determined, the
#: draws creep along a valley.
DRAW_SETTLED = 1e-8


def minimum(logs: Array, log_y: Array, delta: float, with_tokens: bool = False, floor: bool = True) -> Array:
    """The parameters with the least summed Huber loss.

    All 4,500 starts of Hoffmann et al. are looked at, the best followed by L-BFGS to its full tolerance.

    Args:
        logs: ln M, ln I and ln T of the runs, shape [n, 3].
        log_y: ln loss, shape [n].
        delta: residual of ln loss from which the loss is linear; infinite for least squares.
        with_tokens: fit gamma, too.
        floor: fit E; otherwise it is 0.

    Returns:
        (ln E, ln A, alpha, ln B, beta) and gamma with tokens.
    """
    starts = _GRID + (float(np.median(log_y)) - 1) * np.array([1, 1, 0, 1, 0])
    if not floor:
        starts[:, 0] = -np.inf
        starts = np.unique(starts, axis=0)
    if with_tokens:
        starts = np.column_stack([starts, np.zeros(len(starts))])
    some = slice(None, None, -(-len(log_y) // _LOOKED_AT))
    costs = costs_of(starts, logs[some], log_y[some], delta)[0]
    kept = starts[np.argsort(costs, kind="stable")[:_KEPT]]
    ends = follow(kept, logs, log_y, np.ones((len(kept), len(log_y))), delta)
    best = ends[np.argmin(costs_of(ends, logs, log_y, delta)[0])]
    return minimum_from(best, logs, log_y, delta)


def minimum_from(start: Array, logs: Array, log_y: Array, delta: float) -> Array:
    """The minimum that L-BFGS reaches from a start, shapes as `minimum`."""
    from scipy.optimize import minimize

    free = np.isfinite(start)

    def objective(part: Any) -> tuple[float, Any]:
        theta = start.copy()
        theta[free] = part
        cost, residuals, slopes = costs_of(theta, logs, log_y, delta)
        gradient = np.clip(residuals, -delta, delta) @ slopes / _scale(delta) ** 2
        return float(cost), gradient[free]

    options: Any = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-16, "gtol": 1e-10}
    first: Any = start[free]
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
    theta = start.copy()
    theta[free] = found.x if np.isfinite(found.fun) else start[free]
    return theta


def costs_of(theta: Array, logs: Array, log_y: Array, delta: float, weights: Array | float = 1.0) -> tuple[Array, ...]:
    """The summed Huber loss over delta^2, [...], the residuals, [..., n], and their derivatives, [..., n, p]."""
    predicted, slopes = log_loss(theta, logs)
    residuals = predicted - log_y
    size = np.abs(residuals)
    with np.errstate(invalid="ignore"):
        cost = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
    return np.sum(weights * cost, axis=-1) / _scale(delta) ** 2, residuals, slopes


def _scale(delta: float) -> float:
    return delta if np.isfinite(delta) else 1.0


def follow(start: Array, logs: Array, log_y: Array, weights: Array, delta: float, settled: float = _SETTLED) -> Array:
    """The minima from all starts: Newton's method on the residuals within delta, damped as in Levenberg-Marquardt.

    Args:
        start: parameters, shape [p] or [b, p].
        logs: ln M, ln I and ln T, shape [n, 3].
        log_y: shape [n].
        weights: how often each run counts, shape [b, n]: a row of ones, or what a bootstrap has drawn.
        delta: as in `minimum`.
        settled: relative fall of the objective below which a minimum is reached.

    Returns:
        Shape [b, p].
    """
    at = np.broadcast_to(start, (len(weights), np.shape(start)[-1])).copy()
    damping, active = np.full(len(at), 1e-3), np.arange(len(at))
    cost, residuals, slopes = costs_of(at, logs, log_y, delta, weights)
    diagonal = np.arange(at.shape[1])
    for _ in range(_STEPS):
        own, within = weights[active], np.abs(residuals) <= delta
        gradient = np.einsum("bn,bnk->bk", own * np.clip(residuals, -delta, delta), slopes)
        square = np.matmul((slopes * (own * (within + 1e-3))[:, :, None]).transpose(0, 2, 1), slopes)
        square[:, diagonal, diagonal] *= 1 + damping[active, None]
        square[:, diagonal, diagonal] += 1e-14 + 1e-12 * square.max(axis=(1, 2))[:, None]
        new = at[active] - np.linalg.solve(square, gradient[:, :, None])[:, :, 0]
        with np.errstate(over="ignore", invalid="ignore"):
            new_cost, new_residuals, new_slopes = costs_of(new, logs, log_y, delta, own)
        better = new_cost <= cost
        done = better & (cost - new_cost <= settled * cost) | (damping[active] > 1e8)
        at[active[better]] = new[better]
        for old, newer in ((cost, new_cost), (residuals, new_residuals), (slopes, new_slopes)):
            old[better] = newer[better]
        damping[active] = np.clip(np.where(better, damping[active] / 4, damping[active] * 4), 1e-9, 1e9)
        active, cost, residuals, slopes = active[~done], cost[~done], residuals[~done], slopes[~done]
        if not len(active):
            break
    return at
