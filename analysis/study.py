"""The analysis of one slice of a table: fits, bootstraps, residuals, held-out tests, forecasts.

Reports and notebooks only print and draw it; they compute nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analysis.equal import ComputePair, equal_compute_pairs
from analysis.fit.bootstrap import Bootstrap, bootstrap_exponent, bootstrap_floor, bootstrap_interaction
from analysis.fit.common import FAR, CannotFitError, floats
from analysis.fit.floor import FloorFit, fit_floor
from analysis.fit.lines import Correlation, LineFit, correlate, fit_line
from analysis.fit.residuals import Fit, Residuals, fit_residuals
from analysis.fit.surface import InteractionFit, fit_interaction
from analysis.heldout import (
    FLOOR,
    FORMS,
    Form,
    HeldOut,
    Ranked,
    forecast,
    leave_one_group_out,
    leave_one_out,
    rank_forms,
)
from analysis.names import patch_order, plural, shape_name, size_order
from analysis.side_by_side import side_by_side
from analysis.slices import Slice, per_shape

T = TypeVar("T")

#: How far beyond the largest model measured the forecasts reach, in Gflops of one forward pass.
AHEAD = (2.0, 8.0)

_FEW_MODELS = 30  # up to so many a second process is not worth its start


@dataclass(frozen=True)
class Forecast:
    """What a form predicts for a model larger than any measured."""

    form: str
    gmacs: float
    mean: float
    low: float  #: 95 % prediction interval: holds only if the form does
    high: float
    extrapolation: float  #: compute over the largest fitted compute
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class SliceFits:
    """All fits of one slice; an impossible one is None, and `omitted` says why."""

    piece: Slice
    rows: pd.DataFrame  #: one row per model, see `analysis.slices.per_shape`
    correlation: Correlation | None
    lines: dict[str, LineFit | None]  #: "semi-log" and "power law"
    floor: FloorFit | None
    surface: InteractionFit | None
    slopes: dict[int, LineFit]  #: the power law within each patch size; empty unless two can be fitted
    bootstraps: dict[str, Bootstrap]  #: parameter -> hierarchical bootstrap
    residuals: tuple[Residuals, ...]
    held: tuple[HeldOut, ...]
    ranking: tuple[Ranked, ...]
    forecasts: tuple[Forecast, ...]
    pairs: tuple[ComputePair, ...]
    omitted: tuple[tuple[str, str], ...] = field(default=())  #: (what, why)

    @property
    def repeats(self) -> int:
        """The largest number of rows per model: seeds of training and of sampling."""
        return int(self.rows["repeats"].max())

    @property
    def label(self) -> str:
        """What was fitted, in words: block, step, conditions, and the numbers of models and repeats."""
        return f"{self.piece.label}; {self._counts}"

    @property
    def _counts(self) -> str:
        text = plural(len(self.rows), "model")
        return text + (f", geometric means of up to {self.repeats} seeds, bars of one SD" if self.repeats > 1 else "")

    @property
    def brief(self) -> str:
        """As `label`, without conditions that stand elsewhere."""
        return f"{self.piece.brief}; {self._counts}"

    @property
    def fits(self) -> list[Fit]:
        """The possible fits, by number of parameters; without the floor's where it is that of a smaller form."""
        return _distinct(self.lines, self.floor, self.surface)

    @property
    def winner(self) -> str:
        """The form that predicts unseen models best; empty where none could be tested."""
        return self.ranking[0].form if self.ranking else ""


def fit_slice(piece: Slice) -> SliceFits:
    """Fit every form to a slice, and test each on unseen models.

    Raises:
        InputError: rows that were measured differently.
    """
    rows, column = per_shape(piece.table, piece.column), piece.column
    x, y = floats(rows, "gmacs"), floats(rows, column)
    omitted: list[tuple[str, str]] = []

    def attempt(what: str, fit: Callable[[], T]) -> T | None:
        try:
            return fit()
        except CannotFitError as error:
            omitted.append((f"{what} of {piece.brief}", str(error)))
            return None

    correlation = attempt("Correlation", lambda: correlate(x, y))
    lines = {form: attempt(form.capitalize(), lambda f=form: fit_line(x, y, f)) for form in ("semi-log", "power law")}  # type: ignore[misc]
    floor = attempt("Power law with floor", lambda: fit_floor(x, y))
    params, tokens = floats(rows, "params"), floats(rows, "tokens")
    surface = attempt("Params-and-tokens form", lambda: fit_interaction(params, tokens, y))
    fits = _distinct(lines, floor, surface)
    (held, untested), bootstraps, pairs = _long_work(piece, rows, lines["power law"], floor, surface)
    omitted += untested
    return SliceFits(
        piece=piece,
        rows=rows,
        correlation=correlation,
        lines=lines,
        floor=floor,
        surface=surface,
        slopes=_slopes(rows, column),
        bootstraps=bootstraps,
        residuals=tuple(fit_residuals(fit, rows, column) for fit in fits),
        held=tuple(held),
        ranking=tuple(rank_forms(held)),
        forecasts=tuple(_forecasts(fits, rows)),
        pairs=tuple(pairs),
        omitted=tuple(omitted),
    )


def forecasts_at(found: SliceFits, ratio: float) -> list[Forecast]:
    """What every form predicts for a model of `ratio` times the largest compute measured, and as many tokens."""
    return _forecasts(found.fits, found.rows, (ratio,))


def _distinct(lines: dict[str, LineFit | None], floor: FloorFit | None, surface: InteractionFit | None) -> list[Fit]:
    own_floor = None if floor is not None and floor.on_bound else floor
    return [fit for fit in (*lines.values(), own_floor, surface) if fit is not None]


def _tested(floor: FloorFit | None) -> tuple[Form, ...]:
    """The forms that are held against each other; one whose floor is on its bound is another one by a second name."""
    return tuple(form for form in FORMS if form is not FLOOR or floor is None or not floor.on_bound)


def _bootstraps(
    piece: Slice, law: LineFit | None, floor: FloorFit | None, surface: InteractionFit | None, seeds: bool
) -> dict[str, Bootstrap]:
    """Bootstraps of the power law always, of the other forms only if models have several seeds."""
    found = {}
    if law is not None:
        found["power law: exponent"] = bootstrap_exponent(piece.table, piece.column)
    if floor is not None and seeds:
        exponent, level = bootstrap_floor(piece.table, piece.column)
        found |= {"power law with floor: exponent": exponent, "power law with floor: floor": level}
    if surface is not None and seeds:
        names = (f"params and tokens: {name}" for name in ("1", "ln N", "ln T", "ln N ln T"))
        found |= dict(zip(names, bootstrap_interaction(piece.table, piece.column), strict=True))
    return found


def _long_work(
    piece: Slice, rows: pd.DataFrame, law: LineFit | None, floor: FloorFit | None, surface: InteractionFit | None
) -> tuple[tuple[list[HeldOut], list[tuple[str, str]]], dict[str, Bootstrap], list[ComputePair]]:
    """Tests on unseen models, bootstraps, and models of equal compute."""
    seeds = int(rows["repeats"].max()) > 1
    tasks: list[Callable[[], Any]] = [
        partial(_held_out, piece, rows, floor), partial(_bootstraps, piece, law, floor, surface, seeds),
        partial(equal_compute_pairs, piece.table, piece.column),
    ]  # fmt: skip
    held, bootstraps, pairs = side_by_side(tasks) if len(rows) > _FEW_MODELS else (task() for task in tasks)
    return held, bootstraps, pairs


def _held_out(piece: Slice, rows: pd.DataFrame, floor: FloorFit | None) -> tuple[list[HeldOut], list[tuple[str, str]]]:
    """The tests, and those that are impossible, with the reason."""
    if len(rows) < 4:
        return [], []
    forms, omitted = _tested(floor), list[tuple[str, str]]()
    column, last = piece.column, size_order(rows)[-1]
    largest, family = (rows["gmacs"] == rows["gmacs"].max()).to_numpy(), (rows["size"] == last).to_numpy()
    big = rows.loc[largest].iloc[0]
    name, smaller = f"{shape_name(big['size'], big['patch_size'])} from the rest", f"size {last} from smaller ones"
    tests: dict[str, Callable[[Form], HeldOut]] = {
        "Leave one out": lambda form: leave_one_out(form, rows, column),
        "Leave one size out": lambda form: leave_one_group_out(form, rows, "size", column),
        "Leave one patch size out": lambda form: leave_one_group_out(form, rows, "patch_size", column),
        "Forecast of the largest model": lambda form: forecast(form, rows, largest, name, column),
        f"Forecast of size {last}": lambda form: forecast(form, rows, family, smaller, column),
    }
    found = []
    for (what, test), form in product(tests.items(), forms):
        try:
            found.append(test(form))
        except CannotFitError as error:
            omitted.append((f"{what}, {form.name}, {piece.brief}", str(error)))
    return found, omitted


def _slopes(rows: pd.DataFrame, column: str) -> dict[int, LineFit]:
    slopes = {}
    for patch in patch_order(rows)[::-1]:
        cells = rows[rows["patch_size"] == patch]
        with suppress(CannotFitError):
            slopes[patch] = fit_line(floats(cells, "gmacs"), floats(cells, column), "power law")
    return slopes if len(slopes) > 1 else {}


def _forecasts(fits: Sequence[Fit], rows: pd.DataFrame, ahead: tuple[float, ...] = AHEAD) -> list[Forecast]:
    found, largest = [], int(floats(rows, "gmacs").argmax())
    most = {name: floats(rows, name)[largest] for name in ("gmacs", "params", "tokens")}  # NaN where a table has none
    ratios = np.array(ahead)
    gmacs = ratios * most["gmacs"]
    ahead_of = pd.DataFrame({"gmacs": gmacs, "params": ratios * most["params"], "tokens": most["tokens"]})
    for fit in fits:
        values = fit.predicted(ahead_of).to_numpy(float)
        for ratio, x, (mean, low, high) in zip(ahead, gmacs, values, strict=True):
            flags = [f"extrapolates {ratio:.3g} times beyond the fitted compute"] if ratio > FAR else []
            flags += ["predicts a negative metric"] if mean <= 0 else []
            flags += ["the floor is not identified"] if isinstance(fit, FloorFit) and not fit.identified else []
            found.append(Forecast(fit.form, float(x), float(mean), float(low), float(high), ratio, tuple(flags)))
    return found
