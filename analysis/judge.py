"""What the seeds of two designs show about their ratio: in pairs of one seed where they share seeds.

Values are logarithms, for noise goes with the size of a distance; a difference of them is a ratio of what was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.fit.common import Array, Pair, pair
from analysis.names import plural

_ALIKE = 1e-9  # differences of pairs that differ by less are equal


@dataclass(frozen=True)
class Judgement:
    """A verdict on a difference of ln."""

    verdict: str  #: "better", "worse" (than the baseline) or "inconclusive"
    reason: str
    interval: Pair | None = None  #: 95 % of the difference


@dataclass(frozen=True)
class Sides:
    """Ln of the metric of two designs, one value a training, its samplings averaged."""

    own: Array
    base: Array
    paired: bool  #: the values of both stand in the order of their seeds

    @classmethod
    def of(cls, own: pd.Series[float], base: pd.Series[float]) -> Sides:
        """The values to compare, from those of all trainings (`analysis.trainings.training_of`).

        They are pairs where all trainings of the side with fewer of them, and two or more, share their draws with one
        of the other side, whose others are then left out. Pairs that all differ alike tell nothing of their noise.
        """
        values, others = (np.asarray(side, dtype=np.float64) for side in (own, base))
        shared, mine, theirs = np.intersect1d(own.index, base.index, assume_unique=True, return_indices=True)
        if len(shared) == min(len(own), len(base)) >= 2:
            one, other = values[mine], others[theirs]
            if np.ptp(one - other) > _ALIKE:
                return cls(one, other, True)
        return cls(values, others, False)

    @property
    def turned(self) -> Sides:
        """The same with the designs in each other's place."""
        return Sides(self.base, self.own, self.paired)

    @property
    def difference(self) -> float:
        """Mean of the design minus that of the baseline."""
        return float(self.own.mean() - self.base.mean())

    @property
    def seed_sd(self) -> float | None:
        """The standard deviation between seeds, pooled over both sides; None where both have one seed."""
        free = len(self.own) + len(self.base) - 2
        squares = sum(float(((side - side.mean()) ** 2).sum()) for side in (self.own, self.base))
        return math.sqrt(squares / free) if free > 0 else None

    @property
    def pair_sd(self) -> float | None:
        """The standard deviation of the pairs' differences; None without pairs."""
        return float((self.own - self.base).std(ddof=1)) if self.paired else None

    def judge(self, seed_sigma: float | None) -> Judgement:
        """The verdict by a t interval of the pairs, else by a Welch interval.

        Args:
            seed_sigma: standard deviation between training seeds, known from elsewhere, for where a side has one seed.
        """
        from scipy import stats

        own, base = self.own, self.base
        if min(len(own), len(base)) >= 2:
            if np.ptp(own) == 0 and np.ptp(base) == 0:
                return Judgement("inconclusive", "the seeds agree exactly, so they say nothing about noise")
            if self.paired:
                interval = pair(stats.ttest_rel(own, base).confidence_interval(0.95))
                how = f"paired interval over {len(own)} seeds"
            else:
                interval = pair(stats.ttest_ind(own, base, equal_var=False).confidence_interval(0.95))
                how = f"Welch interval over {len(own)} and {len(base)} seeds"
        elif seed_sigma is not None:
            wide = 1.96 * seed_sigma * math.sqrt(1 / len(own) + 1 / len(base))
            interval, how = (
                (self.difference - wide, self.difference + wide),
                f"assumed seed deviation {seed_sigma:.3g} of the log",
            )
        else:
            seeds = plural(min(len(own), len(base)), "training seed")
            return Judgement("inconclusive", f"{seeds} on a side: the difference cannot be told from seed noise")
        if interval[0] <= 0 <= interval[1]:
            return Judgement("inconclusive", f"the interval of the difference includes 0 ({how})", interval)
        return Judgement("worse" if self.difference > 0 else "better", how, interval)
