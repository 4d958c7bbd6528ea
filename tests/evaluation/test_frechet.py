import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from harness.evaluation.frechet import FrechetTarget, extrapolate, frechet_distance, statistics
from harness.evaluation.statistics import Moments


def gaussian(rng: np.random.Generator, d: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    return statistics(rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d))


def test_identity_against_four_times_identity_is_sixteen() -> None:
    assert frechet_distance(np.zeros(8), np.eye(8), np.ones(8), 4 * np.eye(8)) == pytest.approx(16, abs=1e-12)


def test_equal_covariances_leave_the_means() -> None:
    rng = np.random.default_rng(0)
    mu, sigma = gaussian(rng, 16, 100)
    shift = rng.standard_normal(16)
    assert frechet_distance(mu, sigma, mu + shift, sigma) == pytest.approx(shift @ shift, rel=1e-10)


def test_commuting_covariances() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    one, other = rng.uniform(0.1, 5, 12), rng.uniform(0.1, 5, 12)
    found = frechet_distance(np.zeros(12), basis * one @ basis.T, np.zeros(12), basis * other @ basis.T)
    assert found == pytest.approx(((np.sqrt(one) - np.sqrt(other)) ** 2).sum(), rel=1e-10)


def test_fewer_samples_than_dimensions_is_a_nuclear_norm() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((7, 40)), 2 * rng.standard_normal((9, 40)) + 1
    xc, yc = x - x.mean(0), y - y.mean(0)
    root = np.linalg.norm(xc @ yc.T, "nuc") / np.sqrt(6 * 8)
    traces = (xc**2).sum() / 6 + (yc**2).sum() / 8
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + traces - 2 * root
    assert frechet_distance(*statistics(x), *statistics(y)) == pytest.approx(expected, rel=1e-9)


def test_terms_add_up_and_are_each_ones_own() -> None:
    rng = np.random.default_rng(4)
    (m1, s1), (m2, s2) = gaussian(rng, 16, 100), gaussian(rng, 16, 60)
    found = FrechetTarget(m1, s1).terms(m2, s2)
    assert found.mean == pytest.approx((m1 - m2) @ (m1 - m2), rel=1e-12)
    assert found.covariance == pytest.approx(frechet_distance(m1, s1, m1, s2), rel=1e-10)
    assert found.distance == frechet_distance(m1, s1, m2, s2)
    x = rng.standard_normal((60, 16))
    of_moments = FrechetTarget(m1, s1).terms_of(Moments.of(x))
    assert of_moments.distance == pytest.approx(frechet_distance(m1, s1, *statistics(x)), rel=1e-12)


@pytest.mark.parametrize("other", [False, True])
def test_bias_of_finite_samples_is_as_simulated(other: bool) -> None:
    """Real against model Gaussian, the same one or another: the mean excess over 300 draws of N, within 10 %."""
    rng = np.random.default_rng(5)
    d, n = 12, 600
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    spectrum = np.logspace(0, -1.5, d)
    model = basis * spectrum[:: -1 if other else 1] @ basis.T if other else np.diag(spectrum)
    target = FrechetTarget(np.zeros(d), np.diag(spectrum))
    exact = target.terms(np.zeros(d), model)
    root = np.linalg.cholesky(model)
    scores = [target.terms(*statistics(rng.standard_normal((n, d)) @ root.T)).distance for _ in range(300)]
    assert np.mean(scores) - exact.distance == pytest.approx(exact.bias(n), rel=0.1)
    assert exact.bias(2 * n) == pytest.approx(exact.bias(n) / 2)
    if not other:  # the formula for equal covariances
        pairs = np.outer(spectrum, spectrum) / np.add.outer(spectrum, spectrum)
        assert exact.bias(n) == pytest.approx((1.25 * spectrum.sum() + pairs.sum() / 2) / n, rel=1e-9)


def test_extrapolation_takes_the_bias_away() -> None:
    rng = np.random.default_rng(6)
    d = 8
    target = FrechetTarget(np.zeros(d), np.eye(d))
    counts = [40 * 2**k for k in range(6)]
    limits, last = [], []
    for _ in range(60):
        x = 1.2 * rng.standard_normal((counts[-1], d))
        scores = [target.terms(*statistics(x[:n])).distance for n in counts]
        found = extrapolate(counts, scores, d)
        assert found is not None
        limits.append(found.limit)
        last.append(scores[-1])
    truth = d * 0.2**2
    assert abs(np.mean(limits) - truth) < 0.5 * abs(np.mean(last) - truth)


def test_extrapolation_of_a_line_is_exact_and_needs_three_points() -> None:
    counts = [100, 320, 640, 960, 1500]
    scores = [3 + 50 / n for n in counts]
    scores[0] = 1e6  # fewer than 5 samples a dimension: not on the line, and left out
    found = extrapolate(counts, scores, 64)
    assert found is not None
    assert found.limit == pytest.approx(3)
    assert found.standard_error == pytest.approx(0, abs=1e-12)
    assert extrapolate(counts[:3], scores[:3], 64) is None
    bent = extrapolate(counts, [*scores[:-1], scores[-1] + 0.1], 64)
    assert bent is not None
    x = 1 / np.array(counts[1:])  # by the covariance matrix of least squares
    design = np.stack([np.ones(4), x], axis=1)
    y = np.array([*scores[1:-1], scores[-1] + 0.1])
    solution, residual, *_ = np.linalg.lstsq(design, y)
    covariance = np.linalg.inv(design.T @ design) * residual[0] / 2
    assert bent.limit == pytest.approx(solution[0])
    assert bent.standard_error == pytest.approx(np.sqrt(covariance[0, 0]))


@pytest.mark.parametrize("d", [1, 2, 64])
def test_agrees_with_scipy_and_torch_fidelity(d: int) -> None:
    rng = np.random.default_rng(d)
    (m1, s1), (m2, s2) = gaussian(rng, d, 4 * d + 2), gaussian(rng, d, 4 * d + 2)
    found = frechet_distance(m1, s1, m2, s2)
    root = scipy.linalg.sqrtm(s1 @ s2)
    assert found == pytest.approx((m1 - m2) @ (m1 - m2) + np.trace(s1 + s2 - 2 * root.real), rel=1e-9)
    theirs = fid_statistics_to_metric({"mu": m1, "sigma": s1}, {"mu": m2, "sigma": s2}, False)
    assert found == pytest.approx(theirs[KEY_METRIC_FID], rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), d=st.integers(1, 12), scale=st.floats(1e-3, 1e3), n=st.integers(2, 30))
def test_is_symmetric_nonnegative_and_scales_by_the_square(seed: int, d: int, scale: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    (m1, s1), (m2, s2) = gaussian(rng, d, n), gaussian(rng, d, n)
    size = float(np.trace(s1 + s2))  # rounding is relative to this, and its root where a covariance is singular
    forth, back = frechet_distance(m1, s1, m2, s2), frechet_distance(m2, s2, m1, s1)
    assert forth >= 0
    assert forth == pytest.approx(back, rel=1e-6, abs=1e-6 * size)
    scaled = frechet_distance(scale * m1, scale**2 * s1, scale * m2, scale**2 * s2)
    assert scaled == pytest.approx(scale**2 * forth, rel=1e-6, abs=1e-6 * scale**2 * size)
    assert frechet_distance(m1, s1, m1, s1) == pytest.approx(0, abs=1e-6 * size)


def test_statistics_are_numpys() -> None:
    x = (np.random.default_rng(3).standard_normal((50, 5)) + 1000).astype(np.float32)
    mu, sigma = statistics(x)
    assert mu.dtype == sigma.dtype == np.float64
    np.testing.assert_allclose(mu, x.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(sigma, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-12)
    assert np.array_equal(sigma, sigma.T)
    assert statistics([[1.0], [3.0]])[1].tolist() == [[2.0]]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 3)), "at least two samples, got 1"),
        (np.zeros((0, 3)), "at least two samples, got 0"),
        (np.zeros(3), "shape"),
        (np.zeros((3, 0)), "shape"),
        (np.array([[0.0, np.nan], [1.0, 2.0]]), "not finite"),
        (np.array([[0.0, np.inf], [1.0, 2.0]]), "not finite"),
    ],
)
def test_statistics_refuse(features: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        statistics(features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mu2": np.zeros(3)}, "means must have the same shape"),
        ({"mu1": np.zeros((2, 1))}, "means must have the same shape"),
        ({"sigma1": np.eye(3)}, "covariances must have shape"),
        ({"sigma2": np.ones(2)}, "covariances must have shape"),
        ({"mu1": np.array([np.nan, 0])}, "mu1 holds values that are not finite"),
        ({"sigma2": np.array([[1.0, np.inf], [np.inf, 1.0]])}, "sigma2 holds values that are not finite"),
        ({"sigma1": np.array([[1.0, 1.0], [0.0, 1.0]])}, "sigma1 is not symmetric"),
        ({"sigma1": np.diag([1.0, -1.0])}, "sigma1 is no covariance"),
        ({"sigma2": np.diag([1.0, -1.0])}, "sigma2 is no covariance"),
    ],
)
def test_distance_refuses(change: dict[str, np.ndarray], message: str) -> None:
    good = {"mu1": np.zeros(2), "sigma1": np.eye(2), "mu2": np.zeros(2), "sigma2": np.eye(2)}
    with pytest.raises(ValueError, match=message):
        frechet_distance(**{**good, **change})
