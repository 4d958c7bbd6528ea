"""Streaming moments: numpy's values, whatever the pieces, their order and their shifts."""

from __future__ import annotations

import numpy as np
import pytest

from harness.evaluation.statistics import Blocks, Moments, merged


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """A spectrum over four decades, far from the origin: what loses digits without a shift."""
    generator = np.random.default_rng(0)
    return generator.standard_normal((1003, 24)) @ np.diag(np.logspace(-2, 2, 24)) + 1e4 * generator.random(24)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_shards_merge_to_the_whole(shards: int, features: np.ndarray) -> None:
    whole = Moments.of(features)
    found = merged(Moments.of(part) for part in np.array_split(features, shards))  # every shard has its own shift
    assert found.count == 1003
    assert relative(found.mean, whole.mean) < 1e-12
    assert relative(found.covariance, whole.covariance) < 1e-12
    assert relative(found.mean, features.mean(0)) < 1e-13
    assert relative(found.covariance, np.cov(features, rowvar=False)) < 1e-12
    assert np.array_equal(found.covariance, found.covariance.T)


def test_order_of_merging_does_not_matter(features: np.ndarray) -> None:
    parts = [Moments.of(part) for part in np.array_split(features, 5)]
    assert relative(merged(parts[::-1]).covariance, merged(parts).covariance) < 1e-12
    assert relative((parts[0] + (parts[1] + parts[2])).covariance, (parts[0] + parts[1] + parts[2]).covariance) < 1e-12


def test_a_shard_of_one_sample(features: np.ndarray) -> None:
    found = Moments.of(features[:1]) + Moments.of(features[1:3])
    assert relative(found.covariance, np.cov(features[:3], rowvar=False)) < 1e-12
    with pytest.raises(ValueError, match="at least two samples, got 1"):
        _ = Moments.of(features[:1]).covariance


def test_what_is_left_without_a_part(features: np.ndarray) -> None:
    rest = Moments.of(features) - Moments.of(features[100:400])
    left = np.delete(features, range(100, 400), axis=0)
    assert rest.count == 703
    assert relative(rest.covariance, np.cov(left, rowvar=False)) < 1e-11
    with pytest.raises(ValueError, match="nothing is left of 3 features without 3"):
        _ = Moments.of(features[:3]) - Moments.of(features[:3])


def test_float32_features_are_summed_in_float64() -> None:
    x = (np.random.default_rng(1).standard_normal((9000, 3)) + 1000).astype(np.float32)  # more than one block
    wide = x.astype(np.float64)
    assert relative(Moments.of(x).covariance, np.cov(wide, rowvar=False)) < 1e-12
    assert relative(Moments.of(x).mean, wide.mean(0)) < 1e-15


def test_arrays_read_back(features: np.ndarray) -> None:
    whole = Moments.of(features)
    back = Moments.from_arrays(whole.arrays("pool_"), "pool_")
    assert back.count == whole.count
    assert np.array_equal(back.covariance, whole.covariance)
    with pytest.raises(KeyError):
        Moments.from_arrays(whole.arrays(), "x_")


@pytest.mark.parametrize("piece", [1, 37, 250, 1003])
def test_prefixes_and_folds_whatever_the_pieces(piece: int, features: np.ndarray) -> None:
    bounds = [100, 300, 301, 700, 1003]
    blocks = Blocks(bounds)
    for start in range(0, 1003, piece):
        blocks.add(features[start : start + piece])
    prefixes = list(blocks.prefixes())
    assert [m.count for m in prefixes] == bounds
    for bound, found in zip(bounds, prefixes, strict=True):
        assert relative(found.covariance, np.cov(features[:bound], rowvar=False)) < 1e-12
    assert np.array_equal(blocks.whole.outer, prefixes[-1].outer)
    folds = list(blocks.folds(2))
    assert [m.count for m in folds] == [300, 400]  # the fifth block fills none
    assert relative(folds[1].covariance, np.cov(features[300:700], rowvar=False)) < 1e-11


def test_blocks_know_how_many_samples_there_are(features: np.ndarray) -> None:
    blocks = Blocks([10, 20])
    blocks.add(features[:15])
    with pytest.raises(ValueError, match="15 features of 20 samples are there"):
        blocks.prefixes()
    with pytest.raises(ValueError, match="21 features for 20 samples"):
        blocks.add(features[:6])
    for bounds in ([], [0], [5, 5], [7, 3]):
        with pytest.raises(ValueError, match="must ascend"):
            Blocks(bounds)


def test_other_features_are_refused(features: np.ndarray) -> None:
    for bad in (np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0))):
        with pytest.raises(ValueError, match="shape"):
            Moments.of(bad)
    for value in (np.nan, np.inf):
        bad = features[:5].copy()
        bad[3, 2] = value
        with pytest.raises(ValueError, match="not finite"):
            Moments.of(bad)
    with pytest.raises(ValueError, match="24 and of 3 dimensions"):
        _ = Moments.of(features) + Moments.of(features[:, :3])


def test_no_array_is_as_long_as_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides the memory: pieces go in, and d x d sums stay."""
    blocks = Blocks([5000 * k for k in range(1, 11)])
    for _ in range(200):
        blocks.add(np.ones((250, 4), dtype=np.float32))
    held = sum(value.size for moments in blocks._blocks if moments for value in moments.arrays().values())
    assert held == 10 * (1 + 4 + 4 + 16)
