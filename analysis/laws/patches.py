"""Whether a term for the tokens of an image earns its place: by what it predicts of patch sizes that were left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.fit.common import CannotFitError
from analysis.laws.parametric import LawFit, fit_law
from analysis.laws.runs import Runs, Words

_LEAST_KINDS = 3  # with one left out, gamma needs two


@dataclass(frozen=True)
class TokensTest:
    """Errors of the law on patch sizes it was not fitted to, without and with gamma."""

    tokens: tuple[float, ...]  #: of an image, of the patch sizes left out one after the other
    plain: tuple[float, ...]  #: mean absolute error, in percent
    with_tokens: tuple[float, ...]

    @property
    def earned(self) -> bool:
        """Whether the term predicts better, on average over the patch sizes."""
        return float(np.mean(self.with_tokens)) < float(np.mean(self.plain))


def judge_tokens(runs: Runs, delta: float, words: Words | None = None) -> TokensTest:
    """Leave out each patch size, fit the law to the others without and with gamma, and predict it.

    Raises:
        CannotFitError: fewer than three patch sizes, or those that are left cannot be fitted.
    """
    tokens = np.ones(len(runs.loss)) if runs.tokens is None else runs.tokens
    kinds = np.unique(tokens)
    if len(kinds) < _LEAST_KINDS:
        raise CannotFitError(
            f"a term for tokens is judged on patch sizes left out, which needs {_LEAST_KINDS}; there are {len(kinds)}"
        )
    errors: dict[bool, list[float]] = {False: [], True: []}
    for left_out in kinds:
        known, new = runs.where(tokens != left_out), runs.where(tokens == left_out)
        for with_tokens, found in errors.items():
            law = fit_law(known, words, delta=delta, with_tokens=with_tokens, resamples=0).law
            found.append(float(np.mean(np.abs(law.predict(new.size, new.data, float(left_out)) / new.loss - 1)) * 100))
    return TokensTest(tuple(map(float, kinds)), tuple(errors[False]), tuple(errors[True]))


def law_of_all(runs: Runs, words: Words | None = None) -> tuple[LawFit, TokensTest | None, str]:
    """The law over all patch sizes, with gamma where that has earned its place.

    Returns:
        The law, the test of gamma, and, where there was none, why.

    Raises:
        CannotFitError: the runs carry no law.
    """
    plain = fit_law(runs, words)
    try:
        test = judge_tokens(runs, plain.delta, words)
    except CannotFitError as error:
        return plain, None, str(error)
    return (fit_law(runs, words, with_tokens=True) if test.earned else plain), test, ""
