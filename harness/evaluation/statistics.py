"""Mean and covariance of features that come in pieces, from their count, sum and sum of outer products in float64.

The mean of the first block, the shift, is subtracted from the features before the summing, so that no large numbers
cancel. Pieces with different shifts merge exactly: ranks and parts of a run add up to the result of a single pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.errors import NonFiniteError

#: Rows that are centred and multiplied at once.
_BLOCK = 4096


@dataclass(frozen=True)
class Moments:
    """The sums of n features of d dimensions.

    Attributes:
        count: n.
        shift: (d,), subtracted from every feature.
        total: (d,), sum of the shifted features.
        outer: (d, d), sum of their outer products.
    """

    count: int
    shift: NDArray[np.float64]
    total: NDArray[np.float64]
    outer: NDArray[np.float64]

    @classmethod
    def of(cls, features: ArrayLike, shift: NDArray[np.float64] | None = None) -> Self:
        """The sums of features (n, d) of any real type, n at least 1; by default the shift is their mean.

        Raises:
            ValueError: not two axes, or no rows.
            NonFiniteError: values that are not finite, or whose squares are not.
        """
        x = np.asarray(features)
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"features must have shape (N, d), got {x.shape}")
        if shift is None:
            shift = x[:_BLOCK].mean(axis=0, dtype=np.float64)
        total, outer = np.zeros(x.shape[1]), np.zeros((x.shape[1], x.shape[1]))
        with np.errstate(invalid="ignore", over="ignore"):  # of infinities, which are refused below
            for start in range(0, len(x), _BLOCK):
                block = x[start : start + _BLOCK].astype(np.float64)
                block -= shift
                total += block.sum(axis=0)
                outer += block.T @ block
        if not (np.isfinite(shift).all() and np.isfinite(outer).all()):
            bad = np.count_nonzero(~np.isfinite(x))
            raise NonFiniteError(
                f"the statistics of {len(x)} features are not finite: {bad} of {x.size} values are not"
                + ("" if bad else ", but their squares are too large")
            )
        return cls(len(x), shift, total, outer)

    def __add__(self, other: Moments) -> Moments:
        """The sums of both, with the shift of `self`.

        Raises:
            ValueError: features of another dimension.
        """
        total, outer = other._shifted_to(self.shift)
        return Moments(self.count + other.count, self.shift, self.total + total, self.outer + outer)

    def __sub__(self, part: Moments) -> Moments:
        """The sums without the features of `part`, which must be among these.

        Raises:
            ValueError: features of another dimension, or none is left.
        """
        if part.count >= self.count:
            raise ValueError(f"nothing is left of {self.count} features without {part.count}")
        total, outer = part._shifted_to(self.shift)
        return Moments(self.count - part.count, self.shift, self.total - total, self.outer - outer)

    def _shifted_to(self, shift: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if shift.shape != self.shift.shape:
            raise ValueError(f"features of {len(shift)} and of {len(self.shift)} dimensions do not mix")
        by = self.shift - shift
        if not by.any():
            return self.total, self.outer
        cross = np.outer(self.total, by)
        return self.total + self.count * by, self.outer + cross + cross.T + self.count * np.outer(by, by)

    @property
    def mean(self) -> NDArray[np.float64]:
        """(d,)."""
        return self.shift + self.total / self.count

    @property
    def covariance(self) -> NDArray[np.float64]:
        """(d, d), unbiased (divisor n - 1).

        Raises:
            ValueError: fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two samples, got {self.count}")
        covariance = (self.outer - np.outer(self.total, self.total) / self.count) / (self.count - 1)
        return (covariance + covariance.T) / 2

    def arrays(self, prefix: str = "") -> dict[str, NDArray[Any]]:
        """The fields as arrays by name, for a file; `from_arrays` reads them."""
        return {prefix + name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str = "") -> Self:
        """The moments from the arrays that the method `arrays` gave.

        Raises:
            KeyError: an array is missing.
        """
        shift, total, outer = (arrays[prefix + name] for name in ("shift", "total", "outer"))
        return cls(int(arrays[prefix + "count"]), shift, total, outer)


def merged(parts: Iterable[Moments]) -> Moments:
    """The sums of all parts; at least one part is needed."""
    first, *rest = parts
    return sum(rest, first)


class Blocks:
    """The moments of consecutive blocks of samples, filled in the order of the samples' indices.

    One pass over the features gives the moments of nested prefixes and of disjoint folds.
    """

    def __init__(self, bounds: list[int]) -> None:
        """`bounds`: ascending sample counts at which a block ends; the last is N."""
        if not bounds or any(low >= high for low, high in itertools.pairwise([0, *bounds])):
            raise ValueError(f"bounds must ascend from above 0, got {bounds}")
        self.bounds = bounds
        self.count = 0
        self._blocks: list[Moments | None] = [None] * len(bounds)

    def add(self, features: NDArray[Any]) -> None:
        """The features (n, d) of the next n samples.

        Raises:
            ValueError: more than N in all.
            NonFiniteError: values that are not finite.
        """
        if self.count + len(features) > self.bounds[-1]:
            raise ValueError(f"{self.count + len(features)} features for {self.bounds[-1]} samples")
        while len(features):
            number = next(i for i, bound in enumerate(self.bounds) if bound > self.count)
            here, features = np.split(features, [self.bounds[number] - self.count])
            before = self._blocks[number]
            shift = next((block.shift for block in self._blocks if block is not None), None)
            new = Moments.of(here, shift)
            self._blocks[number] = new if before is None else before + new
            self.count += len(here)

    @property
    def whole(self) -> Moments:
        """Moments of all samples."""
        return merged(self._whole())

    def prefixes(self) -> Iterator[Moments]:
        """Moments of the first `bounds[0]`, `bounds[1]`, ... samples, one at a time, up to all samples."""
        return itertools.accumulate(self._whole())

    def folds(self, size: int) -> Iterator[Moments]:
        """Moments of disjoint folds of `size` consecutive blocks; blocks that do not fill a fold are left out."""
        blocks = self._whole()
        return (merged(blocks[i : i + size]) for i in range(0, len(blocks) - size + 1, size))

    def _whole(self) -> list[Moments]:
        blocks = [block for block in self._blocks if block is not None]
        if self.count != self.bounds[-1]:
            raise ValueError(f"{self.count} features of {self.bounds[-1]} samples are there")
        return blocks
