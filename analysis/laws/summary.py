"""Everything that some runs say of a law: its constants, and the three approaches to the best size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from analysis.fit.common import CannotFitError
from analysis.laws.approaches import Approach, envelope, parabolas, parametric
from analysis.laws.budgets import Budgets, find_budgets
from analysis.laws.parametric import LawFit, fit_law
from analysis.laws.patches import TokensTest, law_of_all
from analysis.laws.runs import Runs, Words

T = TypeVar("T")

_BUDGETS = 9  # at which the best size of the law is listed


@dataclass(frozen=True)
class LawSummary:
    """What could be found; `omitted` says of the rest why not."""

    label: str  #: which runs
    runs: Runs
    words: Words
    fit: LawFit | None
    tokens: TokensTest | None  #: of the law over all patch sizes
    budgets: Budgets | None  #: of the parabolas
    approaches: tuple[Approach, ...]
    omitted: tuple[tuple[str, str], ...]
    patch_size: int | None = None  #: of all its runs; None for those of several, or of networks without patches

    def approach(self, name: str) -> Approach | None:
        """One of "envelope", "parabolas" and "parametric"."""
        return next((found for found in self.approaches if found.name == name), None)


def summarise(
    label: str, runs: Runs, words: Words, delta: float | None = None, over_patches: bool = False
) -> LawSummary:
    """Fit the law, and find the best sizes in the three ways.

    Args:
        label: which runs they are, in print.
        runs: the runs.
        words: what size, data and loss are called.
        delta: of the Huber loss; see `analysis.laws.parametric.fit_law`.
        over_patches: of several patch sizes: try a term for tokens, and draw no parabolas, for those are of one.
    """
    omitted: list[tuple[str, str]] = []

    def attempt(what: str, find: Callable[[], T]) -> T | None:
        try:
            return find()
        except CannotFitError as error:
            omitted.append((what, str(error)))
            return None

    fit, tokens = None, None
    if over_patches and (found := attempt("The law", lambda: law_of_all(runs, words))):
        fit, tokens, why = found
        omitted += [("The term for tokens", why)] if why else []
    elif not over_patches:
        fit = attempt("The law", lambda: fit_law(runs, words, delta=delta))
    ways = {"The envelope": lambda: envelope(runs)}
    ways |= {} if over_patches else {"Parabolas at equal compute": lambda: parabolas(runs)}
    approaches = [approach for what, way in ways.items() if (approach := attempt(what, way)) is not None]
    if fit is not None:
        approaches.append(parametric(fit, np.geomspace(runs.compute.min(), runs.compute.max(), _BUDGETS)))
    drawn = any(approach.name == "parabolas" for approach in approaches)
    budgets = find_budgets(runs) if drawn else None
    return LawSummary(label, runs, words, fit, tokens, budgets, tuple(approaches), tuple(omitted))
