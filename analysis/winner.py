"""Which design wins: the best one of a shape against every other one, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.answer import Answer, cannot, minus
from analysis.compare import BlockComparison, compare_blocks, multiplier_ends
from analysis.names import BASELINE, block_name, design_noun, listed, plural
from analysis.numbers import interval, number
from analysis.power import smallest_gap
from analysis.recipes import not_compared, without_other_recipes
from analysis.slices import Slice

_SEEDS = 5  # a comparison of fewer is at most fairly trusted
_OTHER_SHAPES = 2  # that the answer names


@dataclass(frozen=True)
class Verdict:
    """The designs at one shape, after its last step: the best, and every other one against it."""

    shape: str
    best: str
    against: tuple[BlockComparison, ...]  #: by metric, the best first

    @property
    def value(self) -> float:
        """Metric of the best."""
        return self.against[0].baseline_metric

    @property
    def ties(self) -> list[BlockComparison]:
        """The designs that cannot be told from the best by their seeds."""
        return [c for c in self.against if not c.conclusive and c.interval is not None]

    @property
    def open(self) -> list[BlockComparison]:
        """The designs with too few seeds to tell."""
        return [c for c in self.against if not c.conclusive and c.interval is None]

    @property
    def worse(self) -> list[BlockComparison]:
        """The designs that are surely worse."""
        return [c for c in self.against if c.conclusive]


def verdicts(piece: Slice) -> list[Verdict]:
    """One a shape, the shape of most compute first; empty where no design stands beside the baseline."""
    rows = without_other_recipes(piece.siblings)
    compared = compare_blocks(rows)
    last: dict[str, int] = {}
    for c in compared:
        last[c.shape] = max(last.get(c.shape, 0), c.step)
    found = []
    for shape in sorted(last, key=lambda shape: -max(c.gmacs for c in compared if c.shape == shape)):
        here = [c for c in compared if c.shape == shape and c.step == last[shape]]
        values = {BASELINE: here[0].baseline_metric} | {c.block: c.metric for c in here}
        best = min(values, key=values.__getitem__)
        same = rows[(rows["step"] == last[shape]) & rows["block"].isin(list(values))]
        against = [c for c in compare_blocks(same, baseline=best) if c.shape == shape]
        found.append(Verdict(shape, best, tuple(sorted(against, key=lambda c: c.metric))))
    return found


def blocks_answer(found: Sequence[Verdict], piece: Slice) -> Answer:
    """Which design wins at the largest shape, by how much, and what the smaller ones say."""
    noun = design_noun(piece.group.table)
    question = f"Which {noun} wins?"
    known = {name for v in found for name in (v.best, *(c.block for c in v.against))}
    apart = dict.fromkeys((n.block, n.reason) for n in not_compared(piece.group.table))
    left_out = []
    for block, reason in apart:
        who = f"Other rows of {block_name(block)} are" if block in known else f"{block_name(block)} is"
        left_out.append(f"{who} not compared: {reason}")
    if not found:
        why = f"no design was measured at the same shape and step as {block_name(BASELINE)}"
        return cannot(question, "; ".join(left_out or [why]))
    first, *others = found
    text = f"{_verdict(first, piece.metric)}.{_costs(first)}"
    for other in others[:_OTHER_SHAPES]:
        text += f" At {other.shape}: {_brief(other)}."
    if len(others) > _OTHER_SHAPES:
        text += f" {len(others) - _OTHER_SHAPES} more shapes stand in the table of designs."
    text += "".join(f" {line}." for line in left_out[:_OTHER_SHAPES])
    return Answer(question, minus(text), _trust(first))


def _verdict(v: Verdict, metric: str) -> str:
    best, second = block_name(v.best), v.against[0]
    if not v.ties and (not v.open or second in v.open):
        head = "wins" if not v.open else "is ahead, but no winner can be named,"
        below = f"{_share(second, _below)} below {block_name(second.block)} ({number(second.metric, 3)})"
        text = f"{best} {head} at {v.shape}: {number(v.value, 3)} {metric}, {below}"
        rest = [f"{block_name(c.block)} {number(c.metric, 3)}" for c in v.against[1:]]
        text += f"; then {', '.join(rest)}" if rest else ""
        return text + (f". {block_name(second.block)} {_takes(second)}" if _takes(second) else "")
    names = listed(best, *(block_name(c.block) for c in v.ties))
    values = listed(*(number(value, 3) for value in (v.value, *(c.metric for c in v.ties))))
    shares = listed(*(_share(c, _below) for c in v.ties))
    text = f"{names} cannot be told apart at {v.shape}: {values} {metric}, " if v.ties else ""
    text += f"a difference of {shares}" if len(v.ties) == 1 else f"differences of {shares}" if v.ties else ""
    text = text or f"{best} is ahead at {v.shape}: {number(v.value, 3)} {metric}"
    for c in v.worse:
        text += f"; {block_name(c.block)} ({number(c.metric, 3)}) is worse by {_share(c, _above)}"
        text += f" and {_takes(c)}" if _takes(c) else ""
    few = [f"{block_name(c.block)} ({number(c.metric, 3)})" for c in v.open]
    return text + (f"; {listed(*few)} {'has' if len(few) == 1 else 'have'} too few seeds to tell" if few else "")


def _takes(c: BlockComparison) -> str:
    """What a design that is surely worse takes of compute, where that is known."""
    if c.multiplier is None or not c.conclusive:
        return ""
    ends = f" (95 %: {multiplier_ends(c.multiplier_interval)})" if c.multiplier_interval is not None else ""
    return f"takes {c.multiplier:.3g} times{ends} the Gflops of {block_name(c.baseline)} that is as good"


def _costs(v: Verdict) -> str:
    """What the designs cost at the same shape, where that differs by a percent or more."""
    costs = [(block_name(c.block), c.gmacs / c.baseline_gmacs) for c in v.against]
    shown = [f"{name} {'costs ' * (not index)}{ratio:.2f}" for index, (name, ratio) in enumerate(
        (name, ratio) for name, ratio in costs if abs(ratio - 1) >= 0.01)]  # fmt: skip
    return f" At this shape {listed(*shown)} times the Gflops of {block_name(v.best)}." if shown else ""


def _brief(v: Verdict) -> str:
    if not v.ties:
        return f"{block_name(v.best)} {'ahead, inconclusive' if v.open else 'wins'}"
    names = listed(block_name(v.best), *(block_name(c.block) for c in v.ties))
    worse = f"; {listed(*(block_name(c.block) for c in v.worse))} worse" if v.worse else ""
    return f"{names} cannot be told apart{worse}"


def _below(ratio: float) -> float:
    """How far the better one lies below the other, in percent of the other, from other over better."""
    return 100 * (1 - 1 / ratio)


def _above(ratio: float) -> float:
    """How far the other one lies above the better, in percent of the better."""
    return 100 * (ratio - 1)


def _share(c: BlockComparison, percent: Callable[[float], float]) -> str:
    """How far two lie apart, in percent, with the interval."""
    text = f"{number(percent(c.ratio), 3)} %"
    if c.interval is None:
        return text
    low, high = map(percent, c.interval)
    return f"{text} (95 %: {interval((low, high))} %)"


def _trust(v: Verdict) -> str:
    """How far to trust the verdict: one level where one holds for all, otherwise one for each finding."""
    parts = []
    for unsure in (v.ties, v.open if not v.ties else []):
        if unsure:
            names = listed(block_name(v.best), *(block_name(c.block) for c in unsure))
            parts.append(("low", names, unsure[0].reason))
    if v.worse:
        level = "high" if min(min(c.seeds, c.baseline_seeds) for c in v.worse) >= _SEEDS else "fair"
        parts.append((level, listed(*(block_name(c.block) for c in v.worse)), v.worse[0].reason))
    if len(parts) == 1:
        level, _, why = parts[0]
        return f"{level}: {why}"
    return "; ".join(f"{level} for {names}: {why}" for level, names, why in parts)


def seeds_advice(found: Sequence[Verdict]) -> str:
    """What more seeds would tell of the designs that cannot be told apart; empty where there are none."""
    c = next((c for v in found for c in (*v.ties, *v.open)), None)
    if c is None:
        return ""
    few = min(c.seeds, c.baseline_seeds)
    many = max(_SEEDS, 2 * few) if few >= _SEEDS else _SEEDS
    seeds = f"seed = [{', '.join(map(str, range(many)))}]" if many == _SEEDS else f"{many} seeds"
    add = f"Add training seeds to tell the designs apart ({plural(few, 'seed')} now): {seeds}"
    if not c.seed_sd:
        return f"{add}."
    gap = smallest_gap(c.pair_sd or c.seed_sd, many, paired=bool(c.pair_sd))
    resolved, share = _below(math.exp(gap)), abs(_below(c.ratio))
    shown = f"{many} show a gap from about {number(resolved, 2)} % on"
    pair = f"{block_name(c.baseline)} and {block_name(c.block)}"
    if share < resolved:
        return (
            f"More seeds will hardly tell {pair} apart at {c.shape}: {shown}, and they differ by {number(share, 2)} %."
        )
    return f"{add}; {shown}, and {pair} differ by {number(share, 2)} % at {c.shape}."
