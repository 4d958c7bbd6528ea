"""The Frechet distance by eigenvalues, against the matrix square root of other code."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from harness.evaluation.frechet import frechet_distance
from tests.bench.pairs import ROUNDS, Row, pair


def sqrtm_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """Compute the Frechet distance by scipy's matrix square root, as most FID code does."""
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return float((mu1 - mu2) @ (mu1 - mu2) + np.trace(sigma1 + sigma2) - 2 * np.trace(root.real))


def frechet_row(dims: int) -> Row:
    """Ours against scipy's square root on random covariances of full rank."""
    generator = np.random.default_rng(0)
    stats = []
    for _ in range(2):
        x = generator.standard_normal((2 * dims, dims)) * np.linspace(0.1, 2, dims)
        stats += [x.mean(0), np.cov(x, rowvar=False)]
    return pair(
        f"Frechet distance, d = {dims}",
        ("eigh", lambda: frechet_distance(*stats)),
        ("scipy sqrtm", lambda: sqrtm_distance(*stats)),
        rounds=2 if dims > 1000 else ROUNDS,
    )
