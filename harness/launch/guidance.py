"""The search for a cell's guidance scale of least distance: `dit-harness evaluate --guidance best`.

Brent's bounded method (scipy) on the noise of one sampling seed, which makes the distance a smooth function of the
scale; the scale that it finds is measured on the other seeds. Every evaluation is a record like any other. The method
has no state of its own: it is run again on the records that are there, and what it asks for next is what the cell owes.
So a search that was stopped goes on, and who has its records has its course.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from harness.errors import InputError
from harness.runs.cellruns import CellRun, evaluation_key
from harness.runs.state import Run, RunState
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.identity import validated

#: What stands for a search in the place of scales.
BEST = "best"

#: Where a search looks; 1 is no guidance.
LOWEST, HIGHEST = 1.0, 4.0

#: Most scales that it tries beside no guidance, the precision at which it ends, and digits of a scale.
MOST, _PRECISION, _DIGITS = 12, 0.05, 3

#: Sampling seeds, where none are named: the first chooses, the others report.
SEEDS = (0, 1, 2)

#: Owed evaluations by key, each at a step.
Owed = dict[str, tuple[Evaluation, int]]


class Found(NamedTuple):
    """Where a search stands.

    Attributes:
        tried: scales in their order, no guidance first; the last one may still be unmeasured.
        chosen: the best of them; None until the search has ended.
    """

    tried: tuple[float, ...]
    chosen: float | None


class _UnknownError(Exception):
    """The distance at a scale is not on record."""


def search(distance: Callable[[float], float | None]) -> Found:
    """Find the scale with the least distance, or the one to be measured next.

    Args:
        distance: by scale; None where it is not on record.
    """
    from scipy.optimize import minimize_scalar

    tried: dict[float, float] = {}

    def known(scale: float) -> float:
        scale = round(float(scale), _DIGITS)
        tried[scale] = float("nan")
        if (found := distance(scale)) is None:
            raise _UnknownError
        tried[scale] = found
        return found

    try:
        known(LOWEST)
        minimize_scalar(
            known, bounds=(LOWEST, HIGHEST), method="bounded", options={"xatol": _PRECISION, "maxiter": MOST}
        )
    except _UnknownError:
        return Found(tuple(tried), None)
    return Found(tuple(tried), min(tried, key=lambda scale: tried[scale]))


def owed(run: Run, evaluations: Sequence[Evaluation], seeds: Sequence[int], steps: Sequence[int]) -> Owed:
    """What a search owes as far as it can be said now: all that it has asked for, and what it asks for next.

    Args:
        run: with the records.
        evaluations: one search for each; their guidance and seed do not matter.
        seeds: the first chooses, the others report the chosen scale and no guidance.
        steps: one search for each.
    """
    found: Owed = {}
    for step in steps:
        for base in evaluations:
            tried, chosen = _search_of(run, base, seeds[0], step)
            own = [_with(base, scale, seeds[0]) for scale in tried]
            if chosen is not None:
                scales = dict.fromkeys((LOWEST, chosen))
                own += [_with(base, scale, seed) for seed in seeds[1:] for scale in scales]
            found |= {evaluation_key(evaluation, step): (evaluation, step) for evaluation in own}
    return found


def _search_of(run: Run, base: Evaluation, seed: int, step: int) -> Found:
    def distance(scale: float) -> float | None:
        record = run.measured(evaluation_key(_with(base, scale, seed), step))
        return None if record is None else float(record["metrics"]["frechet"])

    return search(distance)


def _with(base: Evaluation, scale: float, seed: int) -> Evaluation:
    return base.model_copy(update={"guidance": scale, "seed": seed})


@dataclass
class SearchRun(CellRun):
    """A cell whose best scale is searched, on the track of evaluations; `search` holds the seeds."""

    def refresh(self) -> RunState:
        """Read the state anew, and what the search owes by now."""
        self.owed = list(owed(self.run, self.evaluations, self.search, self.steps or ()))
        return super().refresh()

    @property
    def asked(self) -> Owed:
        """All that it may come to owe, for the price of it: scales that nobody knows yet have keys of their own."""
        found, steps = owed(self.run, self.evaluations, self.search, self.steps or ()), self.steps or ()
        bases = [(base, step) for base in self.evaluations for step in steps]
        most = (MOST + 1 + 2 * (len(self.search) - 1)) * len(bases)
        ended = [_search_of(self.run, base, self.search[0], step).chosen is not None for base, step in bases]
        more = 0 if all(ended) else most - len(found)
        base, step = bases[0]
        return found | {f"?{number}@{step}": (_with(base, HIGHEST, self.search[0]), step) for number in range(more)}


def of(items: Sequence[CellRun], seeds: tuple[int, ...]) -> list[CellRun]:
    """The items of a selection (see `harness.launch.remeasure`) as searches.

    Raises:
        InputError: a cell cannot be guided.
    """
    for item in items:
        _check(item.name, item.cell)
    return [
        SearchRun(item.name, item.cell, item.run, [], item.evaluations, item.steps, study=item.study, search=seeds)
        for item in items
    ]


def _check(name: str, cell: Cell) -> None:
    """Check that a cell can be guided.

    Raises:
        InputError: it was trained without labels, or always with them.
    """
    why = "learned no labels (data.labels is false)" if not cell.data.labels else ""
    if cell.data.labels and cell.training.label_dropout == 0:
        why = "never learned without labels (training.label_dropout is 0)"
    if why:
        raise InputError(f"--guidance {BEST}: {name} {why}, and guidance needs both; leave it out by --cell")


def seeds_asked(given: Mapping[str, Any], at: Sequence[int] | None) -> tuple[int, ...]:
    """The seeds of the search that the options ask for; empty where they ask for none.

    Raises:
        InputError: scales beside the search, fewer than two seeds, or several steps.
    """
    text = given["guidance"]
    if text is None or BEST not in [part.strip() for part in text.split(",")]:
        return ()
    if text.strip() != BEST:
        raise InputError(f"--guidance: {text!r}; allowed: {BEST} alone, or numbers with commas between")
    if at is not None and len(set(at)) > 1:
        raise InputError(f"--at: {', '.join(map(str, at))}; allowed with --guidance {BEST}: one step")
    if given["seed"] is None:
        return SEEDS
    from harness.launch.remeasure import values

    seeds = tuple(values(given["seed"], "seed"))
    for seed in seeds:
        validated(Evaluation, {"seed": seed}, "command line, evaluation")
    if len(set(seeds)) < max(2, len(seeds)):
        allowed = "two or more, each once: the first chooses the scale, the others report it"
        raise InputError(f"--seed: {given['seed']!r}; allowed with --guidance {BEST}: {allowed}")
    return seeds


def describe(seeds: Sequence[int]) -> str:
    """The search in words."""
    others = ", ".join(map(str, seeds[1:]))
    return (
        f"its guidance is searched: the best scale of each cell between {LOWEST:g} and {HIGHEST:g}, by at most {MOST} "
        f"scales on sampling seed {seeds[0]}; it and no guidance are then measured on "
        f"seed{'s' * (len(seeds) > 2)} {others}"
    )
