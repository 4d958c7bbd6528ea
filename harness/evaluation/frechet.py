"""Frechet distance between two Gaussians (Dowson & Landau 1982; for images: Heusel et al. 2017), in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ASYMMETRY = 1e-6
_NEGATIVE = 1e-6


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
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"features must have shape (N, d), got {x.shape}")
    if len(x) < 2:
        raise ValueError(f"a covariance needs at least two samples, got {len(x)}")
    _require_finite(x, "features")
    mean = x.mean(axis=0)
    centred = x - mean
    covariance = centred.T @ centred / (len(x) - 1)
    return mean, (covariance + covariance.T) / 2


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """Squared Frechet (2-Wasserstein) distance |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The trace of the root is that of (R S2 R)^(1/2) with R = S1^(1/2): symmetric, so two symmetric eigenvalue problems
    give it exactly even for singular covariances, where a general matrix root returns noise or complex values.

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
    m1, m2 = np.asarray(mu1, dtype=np.float64), np.asarray(mu2, dtype=np.float64)
    s1, s2 = np.asarray(sigma1, dtype=np.float64), np.asarray(sigma2, dtype=np.float64)
    if m1.ndim != 1 or m1.shape != m2.shape:
        raise ValueError(f"means must have the same shape (d,), got {m1.shape} and {m2.shape}")
    square = (len(m1), len(m1))
    if s1.shape != square or s2.shape != square:
        raise ValueError(f"covariances must have shape {square}, got {s1.shape} and {s2.shape}")
    for name, array in (("mu1", m1), ("sigma1", s1), ("mu2", m2), ("sigma2", s2)):
        _require_finite(array, name)
    for name, matrix in (("sigma1", s1), ("sigma2", s2)):
        if np.abs(matrix - matrix.T).max(initial=0.0) > _ASYMMETRY * np.abs(matrix).max(initial=0.0):
            raise ValueError(f"{name} is not symmetric")

    values, vectors = np.linalg.eigh(s1)
    root = vectors * np.sqrt(_nonnegative(values, "sigma1"))  # (d, d), root @ root.T = S1
    product = root.T @ s2 @ root  # has the eigenvalues of S1 S2
    products = _nonnegative(np.linalg.eigvalsh((product + product.T) / 2), "sigma2")
    difference = m1 - m2
    distance = difference @ difference + np.trace(s1) + np.trace(s2) - 2.0 * np.sqrt(products).sum()
    return max(float(distance), 0.0)  # rounding can leave -1e-14 where the two agree


def _nonnegative(eigenvalues: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    """Set what is rounding noise to 0 - its square root would not be small; refuse what is negative in earnest."""
    largest = max(eigenvalues.max(initial=0.0), 0.0)
    if eigenvalues.min(initial=0.0) < -_NEGATIVE * largest:
        raise ValueError(f"{name} is no covariance: it has a negative eigenvalue {eigenvalues.min():.3g}")
    noise = len(eigenvalues) * np.finfo(np.float64).eps * largest  # as numpy.linalg.matrix_rank
    return np.where(eigenvalues > noise, eigenvalues, 0.0)


def _require_finite(array: NDArray[np.float64], name: str) -> None:
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite")
