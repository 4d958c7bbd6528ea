"""Order and noise are functions of (seed, step) and (seed, sample index), and nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from harness.data.draws import SampleStreams, sample_indices, step_draws, stream


def uniform(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.integers(0, 1000, size=count)


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 50))
def test_every_epoch_is_a_permutation(seed: int, batch: int, size: int) -> None:
    steps = -(-3 * size // batch)
    drawn = np.concatenate([sample_indices(seed, s, batch, size) for s in range(steps)])
    for epoch in range(3):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_the_same_whenever_asked() -> None:
    first = [sample_indices(1, s, 7, 30).copy() for s in range(20)]
    for s in reversed(range(20)):
        np.testing.assert_array_equal(sample_indices(1, s, 7, 30), first[s])
    a, b = (step_draws(3, 11, (8, 1, 4, 4), uniform, 0.1) for _ in range(2))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_seeds_and_steps_differ() -> None:
    base = step_draws(0, 0, (64, 1, 8, 8), uniform, 0.1)
    for other in (step_draws(1, 0, (64, 1, 8, 8), uniform, 0.1), step_draws(0, 1, (64, 1, 8, 8), uniform, 0.1)):
        assert abs(np.corrcoef(base.noise.ravel(), other.noise.ravel())[0, 1]) < 0.1
        assert (base.t != other.t).any()


def test_shares() -> None:
    draws = [step_draws(0, s, (256, 1, 1, 1), uniform, 0.1) for s in range(200)]
    n = 256 * 200
    assert abs(np.mean([d.drop_label.mean() for d in draws]) - 0.1) < 4 * np.sqrt(0.09 / n)
    assert abs(np.mean([d.flip.mean() for d in draws]) - 0.5) < 4 * np.sqrt(0.25 / n)
    t = np.concatenate([d.t for d in draws])
    assert (t.min(), t.max()) == (0, 999)
    assert abs(t.mean() - 499.5) < 4 * 1000 / np.sqrt(12 * n)


def test_a_sample_is_the_same_in_any_batch() -> None:
    whole = SampleStreams(5, 0, 10, (1, 4, 4))
    labels, noise = whole.labels(10), [whole.noise() for _ in range(3)]
    for first, count in ((0, 3), (3, 4), (7, 3)):
        part = SampleStreams(5, first, count, (1, 4, 4))
        np.testing.assert_array_equal(part.labels(10), labels[first : first + count])
        for step in range(3):
            np.testing.assert_array_equal(part.noise(), noise[step][first : first + count])


def test_labels_in_turn_and_as_in_training() -> None:
    shape, counts = (1, 1, 1), np.array([10, 0, 30, 60])
    streams = SampleStreams(0, 0, 4000, shape)
    np.testing.assert_array_equal(streams.labels(4, "balanced")[:6], [0, 1, 2, 3, 0, 1])
    trained = streams.labels(4, "training", counts)
    shares = np.bincount(trained, minlength=4) / 4000
    np.testing.assert_allclose(shares, counts / 100, atol=4 * np.sqrt(0.25 / 4000))
    assert shares[1] == 0
    part = SampleStreams(0, 1001, 3, shape)
    np.testing.assert_array_equal(part.labels(4, "balanced"), [1, 2, 3])
    np.testing.assert_array_equal(part.labels(4, "training", counts), trained[1001:1004])


def test_streams_are_pinned() -> None:
    """Another numpy that drew otherwise would silently make other runs of the same cells."""
    np.testing.assert_array_equal(stream("order", 0, 0).permutation(8), [7, 5, 6, 0, 3, 1, 2, 4])
    np.testing.assert_allclose(
        stream("noise", 0, 0).standard_normal(3, dtype=np.float32), [0.48589495, -1.791389, -0.08760626], rtol=1e-6
    )
