"""The random draws: images, noise, timesteps, flips and label dropout of every step, labels and noise of every sample.

Training keeps no random state. Its draws are a function of (seed, step, place in the global batch), by the seed of its
order or of its noise (`harness.spec.seeds`), those of sampling of (seed, step, sample index): they depend on neither
batch size nor number of ranks, and each rank draws the noise of its own share only. The generator is numpy's
counter-based Philox4x64-10; its key is 128 bits of sha256 over the stream's name and numbers. torch's CPU generator
keeps only 32 bits of a seed: the seeds of 50,000 samples would collide.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.spec.seeds import Drawn

#: Version of these values, in conditions, records and tables. Version 1 drew the whole batch's noise in one stream.
DRAWS = 2

#: Normal numbers of one block of Philox4x64: four words of 64 bits, each of which gives two.
BLOCK = 8

#: Normal numbers made at once, so that they stay in the processor's cache.
_CHUNK = 1 << 15


def _key(name: str, numbers: tuple[int, ...]) -> int:
    digest = hashlib.sha256(":".join([name, *map(str, numbers)]).encode()).digest()
    return int.from_bytes(digest[:16], "little")


def stream(name: str, *numbers: int) -> np.random.Generator:
    """The random stream of this name and these numbers, always from its beginning."""
    return np.random.Generator(np.random.Philox(key=_key(name, numbers)))


class Normals:
    """Standard normal numbers of a name and numbers, any stretch of which can be drawn alone.

    Number i comes from word i // 2 of Philox4x64-10, whose low and high halves are u and v: it is
    sqrt(-2 ln((u + 1/2) / 2^32)) times the cosine (even i) or the sine (odd i) of 2 pi v / 2^32 (Box and Muller 1958).
    So every number takes the same number of draws, and a GPU can make the same ones (`harness.data.noise`).
    """

    def __init__(self, name: str, *numbers: int) -> None:
        self.key = _key(name, numbers)

    def rows(self, part: slice, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Rows `part.start` to `part.stop` of an array of this row shape without end, (n, *shape)."""
        each = math.prod(shape)
        return self(part.start * each, (part.stop - part.start) * each).reshape(-1, *shape)

    def __call__(self, first: int, count: int) -> NDArray[np.float32]:
        """Numbers `first` to `first + count - 1`, (count,)."""
        begin = first // BLOCK
        blocks = -(-(first + count) // BLOCK) - begin
        words = np.random.Philox(key=self.key, counter=begin).random_raw(blocks * BLOCK // 2)  # lets go of the GIL
        halves = words.astype("<u8", copy=False).view("<u4")
        out = np.empty(blocks * BLOCK, dtype=np.float32)
        for at in range(0, len(out), _CHUNK):
            u, v = (halves[at + odd : at + _CHUNK : 2].astype(np.float32) for odd in (0, 1))
            u += np.float32(0.5)
            u *= np.float32(2.0**-32)
            np.log(u, out=u)
            u *= np.float32(-2)
            np.sqrt(u, out=u)
            v *= np.float32(math.pi * 2.0**-31)
            np.multiply(u, np.cos(v), out=out[at : at + _CHUNK : 2])
            np.multiply(u, np.sin(v, out=v), out=out[at + 1 : at + _CHUNK : 2])
        skip = first - begin * BLOCK
        return out[skip : skip + count]


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
    drop_label: NDArray[np.bool_]  # (N,)
    flip: NDArray[np.bool_]  # (N,)


def step_draws(
    seeds: Drawn, step: int, n: int, draw_t: Callable[[np.random.Generator, int], NDArray[Any]], label_dropout: float
) -> StepDraws:
    """The random draws of `step` but for the noise. Each kind has its own stream, so a change of one shifts no other.

    `draw_t` draws the diffusion times (`Objective.draw_training`).
    """
    return StepDraws(
        t=draw_t(stream("timesteps", seeds.noise, step), n),
        drop_label=stream("label-dropout", seeds.order, step).random(n) < label_dropout,
        flip=stream("flip", seeds.order, step).random(n) < 0.5,
    )


def step_noise(seed: int, step: int) -> Normals:
    """The noise of `step`: a row of the model's input for each place in the global batch."""
    return Normals("noise", seed, step)


def posterior_noise(seed: int, step: int) -> Normals:
    """The noise by which the latents of `step` are sampled, as `step_noise`."""
    return Normals("posterior", seed, step)


class SampleStreams:
    """Label, initial noise and sampling noise of the samples `first` .. `first + count - 1` of one sampling seed.

    Every sample has its own stream, so it is the same in any batch.
    """

    def __init__(self, seed: int, first: int, count: int, shape: tuple[int, int, int]) -> None:
        self._labels = [stream("sample-label", seed, first + i) for i in range(count)]
        self._seed, self._first, self.shape = seed, first, shape

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

    @property
    def part(self) -> slice:
        """The samples' indices."""
        return slice(self._first, self._first + len(self._labels))

    def noise(self, step: int) -> Normals:
        """Noise of a step of the sampler, one row a sample index; step 0 is what sampling begins with."""
        return Normals("sample-noise", self._seed, step)
