"""Draws are functions of (seed, step, place) and (seed, step, sample index), and nothing else."""

from __future__ import annotations

import numpy as np
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from harness.data.draws import BLOCK, Normals, SampleStreams, sample_indices, step_draws, step_noise, stream
from harness.spec.seeds import Drawn

ZERO = Drawn(0, 0, 0)


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
    a, b = (step_draws(Drawn(3, 3, 3), 11, 8, uniform, 0.1) for _ in range(2))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_seeds_and_steps_differ() -> None:
    for seed, step in ((1, 0), (0, 1)):
        base, other = step_noise(0, 0)(0, 4096), step_noise(seed, step)(0, 4096)
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.1
        assert (
            step_draws(ZERO, 0, 64, uniform, 0.1).t != step_draws(Drawn(0, 0, seed), step, 64, uniform, 0.1).t
        ).any()


@given(st.integers(0, 2**40), st.integers(1, 400), st.integers(0, 400), st.integers(1, 400))
def test_a_stretch_of_noise_can_be_drawn_alone(first: int, count: int, offset: int, part: int) -> None:
    whole, normals = Normals("n", 1)(first, count + offset + part), Normals("n", 1)
    np.testing.assert_array_equal(normals(first + offset, part), whole[offset : offset + part])


def test_each_rank_draws_its_share_of_the_same_noise() -> None:
    shape = (3, 5, 5)  # no whole number of blocks
    assert np.prod(shape) % BLOCK
    whole = step_noise(4, 9).rows(slice(0, 12), shape)
    for world in (1, 2, 3, 4):
        each = 12 // world
        shares = [step_noise(4, 9).rows(slice(rank * each, (rank + 1) * each), shape) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_noise_is_normal() -> None:
    drawn = Normals("n", 0)(0, 2_000_000).astype(np.float64)
    n = len(drawn)
    assert abs(drawn.mean()) < 4 / np.sqrt(n)
    assert abs(drawn.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((drawn**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((drawn**4).mean() - 3) < 4 * np.sqrt(96 / n)
    for lag in (1, 2, BLOCK):
        assert abs((drawn[:-lag] * drawn[lag:]).mean()) < 4 / np.sqrt(n)
    assert scipy.stats.kstest(drawn[:200_000], "norm").pvalue > 1e-4


def test_shares() -> None:
    draws = [step_draws(ZERO, s, 256, uniform, 0.1) for s in range(200)]
    n = 256 * 200
    assert abs(np.mean([d.drop_label.mean() for d in draws]) - 0.1) < 4 * np.sqrt(0.09 / n)
    assert abs(np.mean([d.flip.mean() for d in draws]) - 0.5) < 4 * np.sqrt(0.25 / n)
    t = np.concatenate([d.t for d in draws])
    assert (t.min(), t.max()) == (0, 999)
    assert abs(t.mean() - 499.5) < 4 * 1000 / np.sqrt(12 * n)


def test_a_sample_is_the_same_in_any_batch() -> None:
    whole = SampleStreams(5, 0, 10, (1, 4, 4))
    labels, noise = whole.labels(10), [whole.noise(step).rows(whole.part, whole.shape) for step in range(3)]
    for first, count in ((0, 3), (3, 4), (7, 3)):
        part = SampleStreams(5, first, count, (1, 4, 4))
        np.testing.assert_array_equal(part.labels(10), labels[first : first + count])
        for step in range(3):
            mine = part.noise(step).rows(part.part, part.shape)
            np.testing.assert_array_equal(mine, noise[step][first : first + count])


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
        stream("timesteps", 0, 0).standard_normal(3, dtype=np.float32),
        [-0.9493451, -0.14683972, -0.69593865],
        rtol=1e-6,
    )
    np.testing.assert_allclose(step_noise(0, 0)(0, 3), [1.2375189, -0.1995075, -1.7017622], rtol=1e-6)
