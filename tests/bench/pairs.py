"""Pairs of measurements taken in turn, A B A B ..., and the rows that tell of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

#: Pairs of one row.
ROUNDS = 7

#: What is measured of one call: seconds, of the wall clock unless a row says otherwise.
Clock = Callable[[], float]


class Told(float):
    """Seconds that a work has measured itself, and returns."""


class Row(NamedTuple):
    """One line of the table; `a` and `b` are medians in milliseconds, the ratios are of pairs, b / a."""

    what: str
    name_a: str
    name_b: str
    a: float
    b: float
    median: float
    least: float
    most: float

    @property
    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        spread = f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"
        return self.what, self.name_a, self.name_b, f"{self.a:.4g} ms", f"{self.b:.4g} ms", spread


def wall() -> float:
    """Seconds of the wall clock, after the GPU has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], clock: Clock = wall) -> float:
    """What one call takes, or says that it took."""
    begun = clock()
    told = work()
    return told if isinstance(told, Told) else clock() - begun


def pair(
    what: str,
    a: tuple[str, Callable[[], object]],
    b: tuple[str, Callable[[], object]],
    *,
    calls: int = 1,
    rounds: int = ROUNDS,
    clock: Clock = wall,
) -> Row:
    """Time two works in turn, each after a warm-up; `calls` is how many steps one call of a work makes."""
    (name_a, work_a), (name_b, work_b) = a, b
    work_a(), work_b()
    pairs = [(seconds(work_a, clock), seconds(work_b, clock)) for _ in range(rounds)]
    ratios = sorted(second / first for first, second in pairs)
    median_a, median_b = (statistics.median(times) * 1e3 / calls for times in zip(*pairs, strict=True))
    return Row(what, name_a, name_b, median_a, median_b, statistics.median(ratios), ratios[0], ratios[-1])


def repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    """Many steps as one call."""

    def work() -> None:
        for _ in range(times):
            step()

    return work
