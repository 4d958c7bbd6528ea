"""Mean squares of the rows and columns of a table with gaps; sums and differences of them, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.fit.common import CONFIDENCE, Array, Pair

Codes = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Term:
    """A part of a variance: a coefficient times a mean square."""

    coefficient: float  #: below 0 where it is taken away
    square: float  #: mean square
    freedom: int  #: its degrees of freedom

    @property
    def value(self) -> float:
        """Its share of the variance."""
        return self.coefficient * self.square


def effective_freedom(terms: Sequence[Term]) -> float:
    """Degrees of freedom of the sum of the terms above 0 (Satterthwaite 1946): of one term its own."""
    added = [term for term in terms if term.value > 0]
    squares = sum(term.value**2 / term.freedom for term in added)
    return sum(term.value for term in added) ** 2 / squares if squares else float(sum(term.freedom for term in terms))


def large_sample_interval(terms: Sequence[Term]) -> Pair:
    """95 % interval of a sum of mean squares with any signs, cut at 0.

    The modified large-sample interval of Ting, Burdick, Graybill, Jeyaratnam & Lu (1990), as in Burdick & Graybill,
    “Confidence Intervals on Variance Components” (1992), section 3.3. For one term it is that of chi-square.
    """
    added = [term for term in terms if term.coefficient > 0]
    taken = [Term(-term.coefficient, term.square, term.freedom) for term in terms if term.coefficient < 0]
    middle = sum(term.value for term in terms)
    alpha = (1 - CONFIDENCE) / 2
    low = middle - math.sqrt(max(0.0, _spread(added, taken, alpha)))
    high = middle + math.sqrt(max(0.0, _spread(taken, added, alpha)))
    return max(0.0, low), max(0.0, high)


def _spread(towards: Sequence[Term], against: Sequence[Term], alpha: float) -> float:
    """The squared distance of an end: the lower one, where `towards` are the terms that are added.

    For the upper end the roles are exchanged, which exchanges the quantiles: exact where one mean square is 0.
    """
    from scipy.stats import chi2, f

    def shrinks(freedom: int) -> float:  # G
        return float(1 - freedom / chi2.isf(alpha, freedom))

    def grows(freedom: int) -> float:  # H
        return float(freedom / chi2.ppf(alpha, freedom) - 1)

    total = sum((shrinks(term.freedom) * term.value) ** 2 for term in towards)
    total += sum((grows(term.freedom) * term.value) ** 2 for term in against)
    for one in towards:
        for other in against:
            ratio = float(f.isf(alpha, one.freedom, other.freedom))
            both = (ratio - 1) ** 2 - (shrinks(one.freedom) * ratio) ** 2 - grows(other.freedom) ** 2
            total += both / ratio * one.value * other.value
    for index, one in enumerate(towards):
        for other in towards[index + 1 :]:
            n, m = one.freedom, other.freedom
            both = (shrinks(n + m) * (n + m)) ** 2 / (n * m) - shrinks(n) ** 2 * n / m - shrinks(m) ** 2 * m / n
            total += both / (len(towards) - 1) * one.value * other.value
    return total


@dataclass(frozen=True)
class Split:
    """Values in rows and columns: how much they vary within a row, and the means of the rows.

    Attributes:
        within: the variance within a row; no term where every row has one value.
        error: its part that neither rows nor columns explain; None where there is none.
        means: of the rows, free of the columns' effects; shape [rows].
        counts: values of each row, shape [rows].
        loads: the columns' part in each mean, shape [rows, columns], and how sure it is, [columns, columns].
    """

    within: tuple[Term, ...]
    error: Term | None
    means: Array
    counts: Array
    loads: tuple[Array, Array]

    @property
    def shared(self) -> tuple[Term, ...]:
        """The variance of the columns' effects, which all rows share; no term where the values are nested."""
        if len(self.within) < 2 or self.error is None:
            return ()
        columns = self.within[0]
        return columns, Term(-columns.coefficient, self.error.square, self.error.freedom)

    def error_share(self, group: Codes) -> float:
        """How much of the error's variance is in the variance of the means within a group of rows, on average."""
        centred, sure = self.loads[0].copy(), self.loads[1]
        for number in np.unique(group):
            centred[group == number] -= centred[group == number].mean(axis=0)
        own = 1 / self.counts * (1 - 1 / np.bincount(group)[group])
        freedom = len(group) - len(np.unique(group))
        return float(own.sum() + np.einsum("rc,cd,rd->", centred, sure, centred)) / freedom


def split(values: Array, row: Codes, column: Codes) -> Split:
    """Split the variance of values in a table of rows and columns with gaps.

    The columns have effects of their own where they tie all rows together and leave something over to estimate the
    error from; otherwise the values are nested in their rows.

    Args:
        values: shape [n].
        row: of each value, 0, 1, ...; shape [n].
        column: likewise; a row has at most one value in a column.
    """
    counts = np.bincount(row).astype(float)
    rows, columns, n = len(counts), int(column.max()) + 1, len(values)
    means = np.bincount(row, values) / counts
    centred = values - means[row]
    within, freedom = float(centred @ centred), n - rows
    nothing = np.zeros((rows, 0)), np.zeros((0, 0))
    term = Term(1.0, within / freedom, freedom) if freedom else None
    nested = Split((term,) if term else (), term, means, counts, nothing)
    if not freedom or np.bincount(column).max() < 2:
        return nested
    table = np.zeros((rows, columns))
    np.add.at(table, (row, column), 1 / counts[row])  # share of each column in the mean of a row
    shares = -table[row]
    shares[np.arange(n), column] += 1
    normal = shares.T @ shares
    ties = int(np.linalg.matrix_rank(normal, hermitian=True))
    if ties < columns - 1 or not 0 < ties < freedom:
        return nested
    sure = np.asarray(np.linalg.pinv(normal, hermitian=True), dtype=float)
    effects = sure @ (shares.T @ centred)
    left = float(((centred - shares @ effects) ** 2).sum())
    error = Term((freedom - ties) / freedom, left / (freedom - ties), freedom - ties)
    between = Term(ties / freedom, (within - left) / ties, ties)
    return Split((between, error), error, means - table @ effects, counts, (table, sure))
