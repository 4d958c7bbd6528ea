"""Models of about equal compute: does equal compute buy an equal metric, whatever the patch size?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.answer import Answer
from analysis.conditions import require_comparable
from analysis.fit.common import Pair, floats
from analysis.judge import Sides
from analysis.names import METRIC, SHAPE, listed, plural, shape_name
from analysis.numbers import interval, number
from analysis.power import smallest_gap
from analysis.trainings import training_of

_ABOUT, _EQUAL = 0.25, 0.1  # relative difference in compute of a pair, and of one that the answer takes for equal
_FEW = 5  # seeds below which an answer is at most fairly trusted


@dataclass(frozen=True)
class ComputePair:
    """Two shapes of about the same compute, and how far apart their metrics are."""

    better: str
    worse: str
    gmacs: Pair  #: of the better and the worse
    metrics: Pair  #: geometric means over the trainings that are compared
    other_patch: bool  #: whether their patch sizes differ
    seeds: int  #: of the one that has fewer
    interval: Pair | None  #: 95 % of the ratio; None: one of them was trained once
    smallest: float | None  #: the smallest ratio that so many trainings show with probability 0.8; None likewise

    @property
    def ratio(self) -> float:
        """Worse metric over better metric; 1 if equal compute buys an equal metric."""
        return self.metrics[1] / self.metrics[0]

    @property
    def apart(self) -> bool:
        """Whether the seeds show a difference."""
        return self.interval is not None and self.interval[0] > 1

    @property
    def equal(self) -> bool:
        """Whether both have other patch sizes and so equal compute that the answer counts them."""
        return self.other_patch and _apart(self.gmacs) < math.log(1 + _EQUAL)


def equal_compute_pairs(table: pd.DataFrame, metric: str = METRIC, within: float = _ABOUT) -> list[ComputePair]:
    """Pairs of models whose compute differs by less than `within`.

    Ratios are of geometric means over trainings; where both models share seeds, in pairs (`analysis.judge.Sides`).

    Args:
        table: comparable rows of one block, step and recipe; models with a metric that is not positive are left out.
        metric: its column; lower is better.
        within: largest relative difference in compute.

    Returns:
        Pairs ordered by the ratio of their metrics, largest first.

    Raises:
        InputError: rows that were measured differently.
    """
    require_comparable(table)
    models = []
    for (size, patch), rows in table.groupby(SHAPE, sort=False, dropna=False):
        values = rows[metric].to_numpy(float)
        if (values > 0).all():
            logs = pd.Series(np.log(values)).groupby(training_of(rows).to_numpy()).mean()
            name, known = shape_name(str(size), patch), floats(rows, "patch_size")[0]
            models.append(_Model(name, float(rows["gmacs"].iloc[0]), known, logs))
    near = [two for two in combinations(models, 2) if _apart((two[0].gmacs, two[1].gmacs)) < math.log(1 + within)]
    return sorted((_pair(*two) for two in near), key=lambda pair: (-pair.ratio, pair.better, pair.worse))


@dataclass(frozen=True)
class _Model:
    name: str
    gmacs: float
    patch_size: float  # NaN where a table has none
    logs: pd.Series[float]  # of the metric, by training


def _apart(gmacs: Pair) -> float:
    return abs(math.log(gmacs[0] / gmacs[1]))


def _pair(one: _Model, other: _Model) -> ComputePair:
    sides = Sides.of(one.logs, other.logs)
    if sides.difference > 0:
        one, other, sides = other, one, sides.turned
    seeds = min(len(sides.own), len(sides.base))
    ends, smallest = sides.judge(None).interval, None
    sd = sides.pair_sd if sides.paired else sides.seed_sd
    if ends is not None and sd is not None:
        ends, smallest = (math.exp(-ends[1]), math.exp(-ends[0])), math.exp(smallest_gap(sd, seeds, sides.paired))
    return ComputePair(
        better=one.name,
        worse=other.name,
        gmacs=(one.gmacs, other.gmacs),
        metrics=(math.exp(sides.own.mean()), math.exp(sides.base.mean())),
        other_patch=one.patch_size != other.patch_size,
        seeds=seeds,
        interval=ends,
        smallest=smallest,
    )


def equal_answer(pairs: Sequence[ComputePair], metric: str) -> Answer | None:
    """What equal compute buys at other patch sizes; None where no two models have it."""
    equal = [pair for pair in pairs if pair.equal]
    if not equal:
        return None
    question = f"Do equal Gflops buy an equal {metric}, whatever the patch size?"
    many = f"{plural(len(equal), 'pair')} of models of two patch sizes, Gflops within {_EQUAL:.0%}".replace("%", " %")
    judged, sure = [p for p in equal if p.smallest is not None], [p for p in equal if p.apart]
    if not judged:
        text = f"It cannot be told: of {many}, the most unequal is {_said(equal[0])}."
        return Answer(question, text, "low: one seed a model", known=False)
    parts = []
    if sure:
        told = "; ".join(map(_said, sure[:2]))
        parts.append(f"{len(sure)} {'differs' if len(sure) == 1 else 'differ'} for sure ({told})")
    alike = [p for p in judged if not p.apart]
    if alike:
        shown = sorted(p.smallest for p in alike if p.smallest is not None)
        ratios = interval((shown[0], shown[-1])) if len(shown) > 1 else number(shown[0], 3)
        parts.append(f"{len(alike)} cannot be told apart (a ratio of {ratios} would show four times in five)")
    once = len(equal) - len(judged)
    parts += [f"{once} {'was' if once == 1 else 'were'} trained once"] if once else []
    head = "Not always" if sure else "As far as can be told"
    fewest = min(p.seeds for p in judged)
    trust = f"{'fair' if fewest < _FEW else 'high'}: {plural(fewest, 'seed')} or more a model, each interval of 95 %"
    return Answer(question, f"{head}: of {many}, {listed(*parts)}.", trust)


def _said(pair: ComputePair) -> str:
    ends = f" (95 %: {interval(pair.interval)})" if pair.interval is not None else ""
    return f"{pair.worse} at {number(pair.ratio, 3)} times the value of {pair.better}{ends}"
