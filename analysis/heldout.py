"""Judge a form by its predictions of unseen models: leave one out, leave a group out, small to large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.conditions import require_comparable
from analysis.fit.common import FAR, Array, CannotFitError, floats
from analysis.fit.floor import fit_floor
from analysis.fit.lines import fit_line
from analysis.fit.residuals import Fit
from analysis.fit.surface import fit_interaction
from analysis.names import METRIC


@dataclass(frozen=True)
class Form:
    """A form of the metric: its name, and how it is fitted to rows (gmacs, params, tokens) and a column of them."""

    name: str
    fit: Callable[[pd.DataFrame, str], Fit]


def _line(form: str) -> Form:
    return Form(form, lambda rows, metric: fit_line(floats(rows, "gmacs"), floats(rows, metric), form, resamples=0))


def _fit_surface(rows: pd.DataFrame, metric: str) -> Fit:
    return fit_interaction(floats(rows, "params"), floats(rows, "tokens"), floats(rows, metric), resamples=0)


#: The competing forms, by number of parameters; they only predict, so their intervals are not made.
SEMILOG, POWER_LAW = _line("semi-log"), _line("power law")
FLOOR = Form(
    "power law with floor", lambda rows, metric: fit_floor(floats(rows, "gmacs"), floats(rows, metric), profile=False)
)
INTERACTION = Form("params and tokens", _fit_surface)
FORMS = (SEMILOG, POWER_LAW, FLOOR, INTERACTION)


@dataclass(frozen=True)
class HeldOut:
    """Errors of a form on rows it was not fitted to, in percent of the measured value."""

    form: str
    scheme: str  #: "leave one out", "leave one patch size out", "forecast of ..."
    names: tuple[str, ...]
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    extrapolation: float  #: of a forecast: largest compute predicted over largest compute fitted; otherwise 1
    flags: tuple[str, ...] = ()

    @property
    def by_model(self) -> dict[str, dict[str, float]]:
        """The measured and the predicted value of every model."""
        values = zip(self.names, self.measured, self.predicted, strict=True)
        return {name: {"measured": measured, "predicted": predicted} for name, measured, predicted in values}

    @property
    def errors(self) -> Array:
        """Signed relative errors in percent, shape [n]."""
        return np.asarray((np.array(self.predicted) / np.array(self.measured) - 1) * 100)

    @property
    def mape(self) -> float:
        """Mean absolute error in percent."""
        return float(np.abs(self.errors).mean())

    @property
    def worst(self) -> float:
        """Largest absolute error in percent."""
        return float(np.abs(self.errors).max())


def leave_one_out(form: Form, table: pd.DataFrame, metric: str = METRIC) -> HeldOut:
    """Fit the form n times, each without one row, and predict that row.

    Args:
        form: what to fit.
        table: comparable rows, one per model (see `analysis.table.per_shape`), columns gmacs, params, tokens, metric.
        metric: column of the metric.

    Raises:
        CannotFitError: one of the fits is not possible; the message has the reason.
        InputError: rows that were measured differently.
    """
    return _folds(form, table, np.arange(len(table)), "leave one out", metric)


def leave_one_group_out(form: Form, table: pd.DataFrame, column: str, metric: str = METRIC) -> HeldOut:
    """Fit the form once per value of `column` ("size", "patch_size"), each without its rows, and predict them.

    Raises:
        CannotFitError: fewer than two groups, or one of the fits is not possible.
        InputError: rows that were measured differently.
    """
    if table[column].nunique() < 2:
        raise CannotFitError(f"all rows have the same {column}")
    return _folds(form, table, table[column].to_numpy(), f"leave one {column.replace('_', ' ')} out", metric)


def forecast(form: Form, table: pd.DataFrame, held: npt.NDArray[np.bool_], what: str, metric: str = METRIC) -> HeldOut:
    """Fit the form to the rows where `held` is false and predict the others.

    Args:
        form: what to fit.
        table: comparable rows, one per model.
        held: shape [n], true for the rows to forecast, normally the largest.
        what: name of the forecast, for the report.
        metric: column of the metric.

    Raises:
        CannotFitError: nothing to forecast, or the other rows cannot be fitted.
        InputError: rows that were measured differently.
    """
    require_comparable(table)
    known, unknown = table[~held], table[held]
    if unknown.empty:
        raise CannotFitError("no rows to forecast")
    predicted = form.fit(known, metric).fitted(unknown)
    ratio = float(unknown["gmacs"].max() / known["gmacs"].max())
    flags = [f"extrapolates {ratio:.3g} times beyond the fitted compute"] if ratio > FAR else []
    return _held_out(form, f"forecast of {what}", unknown, predicted, metric, max(ratio, 1.0), flags)


@dataclass(frozen=True)
class Ranked:
    """How well a form predicts unseen models, compared with the other forms."""

    form: str
    score: float  #: geometric mean of its mean errors over the tests, in percent; decides the rank
    errors: dict[str, float]  #: test -> mean absolute error in percent
    best_in: tuple[str, ...]  #: tests in which no form does better
    absent: tuple[str, ...]  #: tests that do not count, because this or another form could not be tested


def rank_forms(held: Sequence[HeldOut]) -> list[Ranked]:
    """The forms from best to worst by held-out error.

    Only tests that every form could take count, so that no form gains from a test it could not take. If there are
    none, the forms are ranked by the tests they could take.

    Args:
        held: tests of several forms, from `leave_one_out`, `leave_one_group_out` and `forecast`.

    Returns:
        One entry per form; empty without tests.
    """
    errors: dict[str, dict[str, float]] = {test.form: {} for test in held}
    for test in held:
        errors[test.form][test.scheme] = test.mape
    schemes = list(dict.fromkeys(test.scheme for test in held))
    common = [scheme for scheme in schemes if all(scheme in tests for tests in errors.values())] or schemes
    best = {scheme: min(tests[scheme] for tests in errors.values() if scheme in tests) for scheme in schemes}
    ranked = []
    for form, tests in errors.items():
        counted = [max(tests[scheme], 1e-9) for scheme in common if scheme in tests]
        ranked.append(
            Ranked(
                form=form,
                score=float(np.exp(np.mean(np.log(counted)))),
                errors=tests,
                best_in=tuple(scheme for scheme in tests if tests[scheme] <= best[scheme]),
                absent=tuple(scheme for scheme in schemes if scheme not in tests or scheme not in common),
            )
        )
    return sorted(ranked, key=lambda entry: entry.score)


def _folds(form: Form, table: pd.DataFrame, groups: npt.NDArray[np.generic], scheme: str, metric: str) -> HeldOut:
    require_comparable(table)
    predicted = np.full(len(table), np.nan)
    needed = table[["gmacs", "params", "tokens", metric]].astype(float)  # selecting wide rows is slow
    for group in pd.unique(pd.Series(groups)):
        out = groups == group
        predicted[out] = form.fit(needed[~out], metric).fitted(needed[out])
    return _held_out(form, scheme, table, predicted, metric, 1.0, [])


def _held_out(
    form: Form, scheme: str, rows: pd.DataFrame, predicted: Array, metric: str, ratio: float, flags: list[str]
) -> HeldOut:
    if not (rows[metric] > 0).all():
        raise CannotFitError("a measured value is not positive, so errors in percent are not defined")
    if negative := int((predicted <= 0).sum()):
        flags = [*flags, f"predicts a negative metric for {negative} of {len(rows)}"]
    names, measured = tuple(map(str, rows["name"])), tuple(map(float, rows[metric]))
    return HeldOut(form.name, scheme, names, measured, tuple(map(float, predicted)), ratio, tuple(flags))
