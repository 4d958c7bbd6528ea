"""The law L = E + A / (M^alpha T^gamma) + B / I^beta: what it predicts, and how it spends a training budget."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np

from analysis.fit.common import Array
from analysis.laws.runs import OPERATIONS

#: The constants in the order of a parameter vector, and their logarithms where the vector holds those.
CONSTANTS = ("E", "A", "alpha", "B", "beta", "gamma")


@dataclass(frozen=True)
class Law:
    """Hoffmann et al. (2022, arXiv:2203.15556), equation 2; with `gamma` the tokens T of an image count, too."""

    E: float  #: loss of an infinite model after infinitely many images
    A: float
    alpha: float
    B: float
    beta: float
    gamma: float = 0.0

    @classmethod
    def of(cls, theta: Array) -> Law:
        """From (ln E, ln A, alpha, ln B, beta) or these and gamma, shape [5] or [6]."""
        e, a, alpha, b, beta, *rest = map(float, theta)
        return cls(float(np.exp(e)), float(np.exp(a)), alpha, float(np.exp(b)), beta, *rest)

    @property
    def theta(self) -> Array:
        """(ln E, ln A, alpha, ln B, beta, gamma), shape [6]."""
        E, A, alpha, B, beta, gamma = astuple(self)
        with np.errstate(divide="ignore"):
            return np.array([np.log(E), np.log(A), alpha, np.log(B), beta, gamma])

    def predict(self, size: Array, data: Array, tokens: Array | float = 1.0) -> Array:
        """The loss at size and data, shape [k]."""
        return np.asarray(np.exp(log_loss(self.theta, logs_of(size, data, tokens))[0]))

    def jacobian(self, size: Array, data: Array, tokens: Array | float = 1.0) -> Array:
        """Derivatives of ln loss by (ln E, ln A, alpha, ln B, beta, gamma), shape [k, 6]: for the design of runs."""
        return log_loss(self.theta, logs_of(size, data, tokens))[1]

    @property
    def size_exponent(self) -> float:
        """The best size grows as C to this power, beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def data_exponent(self) -> float:
        """The best amount of data grows as C to this power, alpha / (alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)

    def best_size(self, compute: Array, tokens: float = 1.0) -> Array:
        """The size M*(C) that a budget of C = 6 M I operations is best spent on, shape as `compute`.

        NaN where the loss does not fall with both size and data.
        """
        return np.exp(log_best_size(self.theta, np.asarray(compute, float), tokens))

    def best_data(self, compute: Array, tokens: float = 1.0) -> Array:
        """The data I*(C), shape as `compute`."""
        return np.asarray(np.asarray(compute, float) / OPERATIONS / self.best_size(compute, tokens))

    def best_loss(self, compute: Array, tokens: float = 1.0) -> Array:
        """The loss at M*(C) and I*(C), shape as `compute`."""
        return self.predict(self.best_size(compute, tokens), self.best_data(compute, tokens), tokens)


def logs_of(size: Array, data: Array, tokens: Array | float = 1.0) -> Array:
    """Ln M, ln I and ln T, shape [k, 3]."""
    columns = (np.log(np.asarray(values, float)) for values in (size, data, tokens))
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def log_best_size(theta: Array, compute: Array, tokens: float = 1.0) -> Array:
    """The best size, ln M*(C) = (ln(alpha A / (beta B T^gamma)) + beta ln(C / 6)) / (alpha + beta).

    Args:
        theta: as `log_loss`, shape [..., p].
        compute: operations, shape [k] or a number.
        tokens: of an image.

    Returns:
        Shape [..., k]; NaN where alpha or beta is not positive.
    """
    a, alpha, b, beta = (theta[..., index, None] for index in range(1, 5))
    gamma = theta[..., 5, None] if theta.shape[-1] > 5 else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        known = np.where((alpha > 0) & (beta > 0), 1.0, np.nan)
        ratio = np.log(alpha * known) + a - np.log(beta * known) - b - gamma * np.log(tokens)
        found = (ratio + beta * np.log(np.atleast_1d(compute) / OPERATIONS)) / (alpha + beta)
    return np.asarray(found.reshape(theta.shape[:-1] + np.shape(compute)))


def log_loss(theta: Array, logs: Array) -> tuple[Array, Array]:
    """Ln loss by log-sum-exp, and its derivatives.

    Args:
        theta: (ln E, ln A, alpha, ln B, beta) and gamma where tokens count, shape [..., p].
        logs: ln M, ln I, ln T of the runs, shape [n, 3].

    Returns:
        ln loss, shape [..., n], and its derivatives by theta, shape [..., n, p].
    """
    size, data, tokens = logs.T
    e, a, alpha, b, beta = (theta[..., index, None] for index in range(5))
    of_size = a - alpha * size
    if theta.shape[-1] > 5:
        of_size = of_size - theta[..., 5, None] * tokens
    terms = np.stack(np.broadcast_arrays(e, of_size, b - beta * data))
    most = terms.max(axis=0)
    shares = np.exp(terms - most)
    total = shares.sum(axis=0)
    shares /= total
    slopes = [shares[0], shares[1], -size * shares[1], shares[2], -data * shares[2]]
    if theta.shape[-1] > 5:
        slopes.append(-tokens * shares[1])
    return most + np.log(total), np.stack(slopes, axis=-1)
