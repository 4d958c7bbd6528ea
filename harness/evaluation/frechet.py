"""Frechet distance between two Gaussians (Dowson & Landau 1982; for images: Heusel et al. 2017), in float64.

Also its first-order bias at a finite number of samples, and its extrapolation to infinitely many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import NonFiniteError
from harness.evaluation.statistics import Moments

_ASYMMETRY = 1e-6

_NEGATIVE = 1e-6

#: A line needs at least this many points for an error estimate.
_LEAST_PREFIXES = 3

#: From this many samples per feature dimension on, the distance is a line in 1 / N.
SAMPLES_PER_DIMENSION = 5


def statistics(features: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and unbiased covariance (divisor N - 1).

    Args:
        features: (N, d), one row per image, any real type.

    Returns:
        Mean (d,) and covariance (d, d), float64.

    Raises:
        ValueError: not two axes, fewer than two rows, or a value that is not finite.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim == 2 and x.shape[1] and len(x) < 2:
        raise ValueError(f"a covariance needs at least two samples, got {len(x)}")
    moments = Moments.of(x)
    return moments.mean, moments.covariance


@dataclass(frozen=True)
class Terms:
    """A Frechet distance in its parts, in squared units of the features.

    Attributes:
        mean: |mu1 - mu2|^2.
        covariance: tr(S1 + S2 - 2 (S1 S2)^(1/2)), never negative.
        trace: tr(S2), of the samples.
        roots: (rank of S1,), square roots of the eigenvalues of S1 S2, without those that must be 0.
    """

    mean: float
    covariance: float
    trace: float
    roots: NDArray[np.float64]

    @property
    def distance(self) -> float:
        """The squared distance."""
        return self.mean + self.covariance

    def bias(self, samples: int) -> float:
        """How much higher `samples` images drawn from the second Gaussian score than the Gaussian itself.

        To first order in 1 / N and for Gaussian features: (1/N) (tr S2 + 1/2 sum_ij si sj / (si + sj) + 1/4 sum_i si)
        with s the roots above. The first term is the noise of the mean; the others come from the second derivative of
        the covariance term, taken over the noise of a Wishart matrix. With S1 = S2 the s are the eigenvalues.
        """
        s = self.roots[self.roots > 0]
        pairs = np.outer(s, s) / np.add.outer(s, s)
        return float(self.trace + pairs.sum() / 2 + s.sum() / 4) / samples


class FrechetTarget:
    """A Gaussian that others are compared with; the root of its covariance is computed once.

    The trace of the root equals that of (R S2 R)^(1/2) with R = S1^(1/2), which is symmetric. So two symmetric
    eigenvalue problems give it, even for singular covariances, where a general matrix root gives noise or complex
    values.
    """

    def __init__(self, mu: ArrayLike, sigma: ArrayLike) -> None:
        """Mean (d,), and covariance (d, d), symmetric and positive semidefinite.

        Raises:
            ValueError: as `frechet_distance`.
        """
        self.mu, self.sigma = _checked(mu, sigma, 1)
        values, vectors = np.linalg.eigh(self.sigma)
        values = _nonnegative(values, "sigma1")
        kept = values > 0  # the root of a singular covariance has fewer columns
        self._root = vectors[:, kept] * np.sqrt(values[kept])  # (d, rank), root @ root.T = S1

    def terms(self, mu: ArrayLike, sigma: ArrayLike) -> Terms:
        """The distance to another Gaussian.

        Raises:
            ValueError: as `frechet_distance`.
        """
        m2, s2 = _checked(mu, sigma, 2, len(self.mu))
        product = self._root.T @ s2 @ self._root  # has the eigenvalues of S1 S2
        roots = np.sqrt(_nonnegative(np.linalg.eigvalsh((product + product.T) / 2), "sigma2"))
        difference = self.mu - m2
        covariance = np.trace(self.sigma) + np.trace(s2) - 2.0 * roots.sum()
        # rounding can leave -1e-14 where the two agree
        return Terms(float(difference @ difference), max(float(covariance), 0.0), float(np.trace(s2)), roots)

    def terms_of(self, moments: Moments) -> Terms:
        """The distance to the Gaussian of samples, from their moments."""
        return self.terms(moments.mean, moments.covariance)


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """Squared Frechet (2-Wasserstein) distance |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    Args:
        mu1: mean (d,).
        sigma1: covariance (d, d), symmetric and positive semidefinite.
        mu2: as mu1.
        sigma2: as sigma1.

    Returns:
        The distance, in squared units of the features, never negative.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or no covariance matrices.
    """
    return FrechetTarget(mu1, sigma1).terms(mu2, sigma2).distance


@dataclass(frozen=True)
class Extrapolation:
    """A straight line in 1 / N (Chong & Forsyth 2020).

    Attributes:
        limit: its value at 1 / N = 0.
        standard_error: of the limit, by least squares. Nested prefixes share samples, so it tells how straight the line
            is, not how much another set of samples would differ.
    """

    limit: float
    standard_error: float


def extrapolate(counts: Sequence[int], distances: Sequence[float], dims: int) -> Extrapolation | None:
    """The distance at infinitely many samples, from the distances of nested prefixes.

    Args:
        counts: N of each prefix.
        distances: of each prefix.
        dims: of the features; prefixes with fewer than 5 samples per dimension are left out: they are not on the line.

    Returns:
        None if fewer than three prefixes are left.
    """
    kept = [(1 / n, d) for n, d in zip(counts, distances, strict=True) if n >= SAMPLES_PER_DIMENSION * dims]
    if len(kept) < _LEAST_PREFIXES:
        return None
    x, y = np.array(kept).T
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * y).sum() / spread
    limit = y.mean() - slope * x.mean()
    variance = ((y - limit - slope * x) ** 2).sum() / (len(x) - 2)
    return Extrapolation(float(limit), float(np.sqrt(variance * (1 / len(x) + x.mean() ** 2 / spread))))


def _checked(
    mu: ArrayLike, sigma: ArrayLike, number: int, dims: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    m, s = np.asarray(mu, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    if m.ndim != 1 or (dims is not None and len(m) != dims):
        wanted = "(d,)" if dims is None else f"({dims},)"
        raise ValueError(f"means must have the same shape (d,): mu{number} has {m.shape}, wanted {wanted}")
    square = (len(m), len(m))
    if s.shape != square:
        raise ValueError(f"covariances must have shape {square}, got {s.shape}")
    for name, array in ((f"mu{number}", m), (f"sigma{number}", s)):
        if not np.isfinite(array).all():
            bad = np.count_nonzero(~np.isfinite(array))
            raise NonFiniteError(f"{name} holds values that are not finite ({bad} of {array.size})")
    _require_symmetric(s, f"sigma{number}")
    return m, s


def require_covariance(sigma: NDArray[np.float64], name: str) -> None:
    """Check that a matrix (d, d) of finite values is a covariance: symmetric and positive semidefinite.

    Raises:
        ValueError: it is not; the message has its `name`.
    """
    _require_symmetric(sigma, name)
    _nonnegative(np.asarray(np.linalg.eigvalsh(sigma), dtype=np.float64), name)


def _require_symmetric(sigma: NDArray[np.float64], name: str) -> None:
    if np.abs(sigma - sigma.T).max(initial=0.0) > _ASYMMETRY * np.abs(sigma).max(initial=0.0):
        raise ValueError(f"{name} is not symmetric")


def _nonnegative(eigenvalues: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Set rounding noise to 0, since its square root is not small; refuse clearly negative values."""
    largest = max(eigenvalues.max(initial=0.0), 0.0)
    if eigenvalues.min(initial=0.0) < -_NEGATIVE * largest:
        raise ValueError(f"{name} is no covariance: it has a negative eigenvalue {eigenvalues.min():.3g}")
    noise = len(eigenvalues) * np.finfo(np.float64).eps * largest  # as numpy.linalg.matrix_rank
    return np.where(eigenvalues > noise, eigenvalues, 0.0)
