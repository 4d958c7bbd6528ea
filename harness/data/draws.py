"""The random draws: images, noise, timesteps, flips and label dropout of every step, labels and noise of every sample.

Training keeps no random state. Its draws are a function of (seed, step) for the whole global batch; each rank takes its
slice. The draws of sampling are a function of (seed, sample index), so they depend on neither batch size nor number of
GPUs. The generator is numpy's counter-based Philox; its key is 128 bits of sha256 over the stream's name and numbers.
torch's CPU generator keeps only 32 bits of a seed: the seeds of 50,000 samples would collide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


def stream(name: str, *numbers: int) -> np.random.Generator:
    """The random stream of this name and these numbers, always from its beginning."""
    digest = hashlib.sha256(":".join([name, *map(str, numbers)]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    return stream("order", seed, epoch).permutation(size)


def sample_indices(seed: int, step: int, batch_size: int, size: int) -> NDArray[np.int64]:
    """Indices (batch_size,) of the training images of `step`, from one permutation of all `size` images per epoch."""
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(positions, size)
    out = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = _permutation(seed, int(epoch), size)[offsets[here]]
    return out


class StepDraws(NamedTuple):
    """The random part of one training step, over the whole global batch of size N."""

    t: NDArray[Any]  # (N,), times as the objective draws them
    noise: NDArray[np.float32]  # (N, C, S, S), standard normal
    drop_label: NDArray[np.bool_]  # (N,)
    flip: NDArray[np.bool_]  # (N,)


def step_draws(
    seed: int,
    step: int,
    shape: tuple[int, int, int, int],
    draw_t: Callable[[np.random.Generator, int], NDArray[Any]],
    label_dropout: float,
) -> StepDraws:
    """The random draws of `step`. Each kind has its own stream, so that a change of one shifts no other.

    `draw_t` draws the diffusion times (`Objective.draw`).
    """
    n = shape[0]
    return StepDraws(
        t=draw_t(stream("timesteps", seed, step), n),
        noise=stream("noise", seed, step).standard_normal(shape, dtype=np.float32),
        drop_label=stream("label-dropout", seed, step).random(n) < label_dropout,
        flip=stream("flip", seed, step).random(n) < 0.5,
    )


class SampleStreams:
    """Label, initial noise and sampling noise of the samples `first` .. `first + count - 1` of one sampling seed.

    Every sample has its own stream, so it is the same in any batch.
    """

    def __init__(self, seed: int, first: int, count: int, shape: tuple[int, int, int]) -> None:
        self._noise = [stream("sample-noise", seed, first + i) for i in range(count)]
        self._labels = [stream("sample-label", seed, first + i) for i in range(count)]
        self._first, self._shape = first, shape

    def labels(self, classes: int, rule: str = "uniform", counts: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Labels (count,), each a function of the sampling seed and its sample's index.

        Args:
            classes: number of classes.
            rule: as `Evaluation.labels`. uniform: drawn evenly, as in the paper's protocol. balanced: the classes in
                turn for any seed, so that the first n samples are as balanced as possible. training: drawn in
                proportion to `counts`.
            counts: (classes,), images of each class in the train split.
        """
        if rule == "balanced":
            return np.arange(self._first, self._first + len(self._labels), dtype=np.int64) % classes
        if rule == "training":
            assert counts is not None
            assert len(counts) == classes
            upto = np.cumsum(counts)
            draws = np.array([generator.integers(0, upto[-1]) for generator in self._labels], dtype=np.int64)
            return np.searchsorted(upto, draws, side="right").astype(np.int64)
        return np.array([generator.integers(0, classes) for generator in self._labels], dtype=np.int64)

    def noise(self) -> NDArray[np.float32]:
        """The next standard normal noise (count, C, S, S) of every sample."""
        return np.stack([g.standard_normal(self._shape, dtype=np.float32) for g in self._noise])
