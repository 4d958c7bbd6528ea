"""What every form of a slice says of a model that nobody has trained, and which run would narrow that most.

A form of compute alone holds for the length of training it was fitted at, and one of a patch size for that patch size;
the law of size and data holds for all lengths. Their intervals hold only if the form does: they know of noise between
models and of the uncertain constants, not of other forms. That is why all forms stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from analysis.fit.common import FAR, Array, CannotFitError, floats
from analysis.fit.floor import FloorFit
from analysis.fit.residuals import Fit
from analysis.fit.surface import InteractionFit
from analysis.laws.law import CONSTANTS, Law
from analysis.laws.runs import OPERATIONS
from analysis.laws.summary import LawSummary
from analysis.side_by_side import side_by_side
from analysis.slices import Slice
from analysis.study import SliceFits, fit_slice
from analysis.study_laws import study_laws

_GIGA = 1e9
_SAME = 0.02  # lengths that differ by less, relatively, are one


@dataclass(frozen=True)
class Training:
    """One training of one model."""

    name: str
    gmacs: float  #: 1e9 multiply-adds of one forward pass of one image
    images: float  #: seen in training
    params: float = float("nan")
    tokens: float = float("nan")
    patch_size: int | None = None

    @property
    def operations(self) -> float:
        """C = 6 M I."""
        return OPERATIONS * _GIGA * self.gmacs * self.images


class Prediction(BaseModel):
    """What a form predicts for a training; a forecast keeps it on record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: str
    mean: float
    low: float  #: 95 % prediction interval of a new training: holds only if the form does
    high: float
    extrapolation: float  #: operations over the most of a training that was fitted
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictor:
    """A form with what it was fitted to."""

    form: str
    most: float  #: operations of the longest training fitted
    band: Callable[[pd.DataFrame], pd.DataFrame]  #: gmacs, images, params, tokens -> mean, low, high
    jacobian: Callable[[pd.DataFrame], Array]  #: the same -> derivatives of its response by its constants, [k, p]
    known: Array  #: the jacobian at what was fitted, [n, p]
    images: float | None = None  #: it holds for trainings of this length alone
    patch_size: int | None = None  #: it holds for this patch size alone
    needs: tuple[str, ...] = ("gmacs",)
    law: Law | None = None  #: of size and data, which says how to spend a budget
    flags: tuple[str, ...] = ()

    def holds_for(self, training: Training) -> bool:
        """Whether the form says anything of such a training."""
        length = self.images is None or abs(training.images / self.images - 1) <= _SAME
        patch = self.patch_size is None or training.patch_size in (None, self.patch_size)
        return length and patch and all(np.isfinite(getattr(training, name)) for name in self.needs)

    def predict(self, training: Training) -> Prediction:
        """The value that the form predicts, with its 95 % prediction interval."""
        mean, low, high = self.band(_rows([training]))[["mean", "low", "high"]].iloc[0].astype(float)
        ratio = training.operations / self.most
        flags = [f"extrapolates {ratio:.3g} times beyond the fitted compute"] if ratio > FAR else []
        flags += ["predicts a negative metric"] if mean <= 0 else []
        flags = [*flags, *self.flags]
        return Prediction(form=self.form, mean=mean, low=low, high=high, extrapolation=ratio, flags=tuple(flags))

    def left(self, target: Training, run: Training) -> float:
        """The standard deviation of the form at `target` after one more run, over that of now: 1 if it tells nothing.

        To first order, J0' (J'J)^-1 J0 with the jacobian J of what was fitted; the noise of a new training stays.
        """
        at, new = self.jacobian(_rows([target, run]))
        information = self.known.T @ self.known
        now, then = (
            at @ np.linalg.pinv(matrix, hermitian=True) @ at
            for matrix in (information, information + np.outer(new, new))
        )
        return float(np.sqrt(then / now)) if now > 0 else 1.0


@dataclass(frozen=True)
class Outlook:
    """All forms of a slice that can predict, the one that predicts unseen models best first."""

    piece: Slice
    fits: SliceFits
    predictors: tuple[Predictor, ...]
    omitted: tuple[tuple[str, str], ...]  #: (what, why)

    @property
    def trainings(self) -> list[Training]:
        """What the slice was measured on: one training a model."""
        rows, batch = self.fits.rows, float(self.piece.table["batch_size"].iloc[0])
        patches = [None if pd.isna(patch) else int(patch) for patch in rows["patch_size"]]
        numbers = (floats(rows, name) for name in ("gmacs", "step", "params", "tokens"))
        return [
            Training(str(name), gmacs, step * batch, params, tokens, patch)
            for name, patch, gmacs, step, params, tokens in zip(rows["name"], patches, *numbers, strict=True)
        ]

    @property
    def best(self) -> Training:
        """The training with the lowest value."""
        return self.trainings[int(floats(self.fits.rows, self.piece.column).argmin())]

    def predictions(self, training: Training) -> list[Prediction]:
        """What every form predicts that holds for the training."""
        return [form.predict(training) for form in self.predictors if form.holds_for(training)]


def outlook(piece: Slice, curves: pd.DataFrame | None = None) -> Outlook:
    """Fit every form to a slice, see `outlooks`."""
    return outlooks([piece], curves)[0]


def outlooks(
    pieces: Sequence[Slice], curves: pd.DataFrame | None = None, meanwhile: Callable[[], object] | None = None
) -> list[Outlook]:
    """Fit every form to slices.

    Args:
        pieces: of the metric or of the held-out loss.
        curves: rows of curves.csv, for the law of size and data of the loss.
        meanwhile: see `side_by_side`.
    """
    tasks: list[Callable[[], Any]] = []
    for piece in pieces:
        tasks += [partial(fit_slice, piece), partial(_laws, piece, curves)]
    done = list(side_by_side(tasks, meanwhile))
    return [_outlook(piece, *found) for piece, *found in zip(pieces, done[::2], done[1::2], strict=True)]


def _laws(piece: Slice, curves: pd.DataFrame | None) -> list[LawSummary] | str:
    """The laws of size and data; or why there are none."""
    try:
        return study_laws(piece, curves)
    except CannotFitError as error:
        return str(error)


def _outlook(piece: Slice, found: SliceFits, laws: list[LawSummary] | str) -> Outlook:
    predictors, omitted = [_of_fit(fit, found) for fit in found.fits], list(found.omitted)
    order = {ranked.form: place for place, ranked in enumerate(found.ranking)}
    predictors.sort(key=lambda form: order.get(form.form, len(order)))
    if isinstance(laws, str):
        omitted.append(("The law of size and data", laws))
    for summary in laws if not isinstance(laws, str) else ():
        predictors += _of_law(summary)
        omitted += [(f"{what}, {summary.label}", why) for what, why in summary.omitted]
    return Outlook(piece, found, tuple(predictors), tuple(omitted))


def budgeted(outlook: Outlook, operations: float) -> Iterator[tuple[str, float, float]]:
    """The best training of a budget by every law: which law, GMACs, and images.

    Forms of compute alone say that the largest model wins that the budget trains for as long as the others were.
    """
    lengths = {form.images for form in outlook.predictors if form.images is not None}
    for images in sorted(lengths):
        yield "forms of compute, at their length", operations / (OPERATIONS * _GIGA * images), images
    for form in outlook.predictors:
        if form.law is None or min(form.law.alpha, form.law.beta) <= 0:
            continue
        size = float(form.law.best_size(np.array([operations]))[0])
        yield form.form, size / _GIGA, operations / OPERATIONS / size


def _rows(of: Sequence[Training]) -> pd.DataFrame:
    names = ("gmacs", "images", "params", "tokens")
    return pd.DataFrame({name: [getattr(training, name) for training in of] for name in names}, dtype=float)


def _of_fit(fit: Fit, found: SliceFits) -> Predictor:
    images = found.piece.step * float(found.piece.table["batch_size"].iloc[0])
    most = OPERATIONS * _GIGA * images * float(floats(found.rows, "gmacs").max())
    needs = ("gmacs", "params", "tokens") if isinstance(fit, InteractionFit) else ("gmacs",)
    unknown = isinstance(fit, FloorFit) and not fit.identified
    flags = ("the floor is not identified",) if unknown else ()
    return Predictor(
        fit.form, most, fit.predicted, fit.jacobian, fit.jacobian(found.rows), images, None, needs, None, flags
    )


def _of_law(summary: LawSummary) -> list[Predictor]:
    fit, runs = summary.fit, summary.runs
    if fit is None:
        return []
    tokens, columns = runs.tokens, len(CONSTANTS) if fit.with_tokens else len(CONSTANTS) - 1

    def tokens_of(at: pd.DataFrame) -> Array:
        return floats(at, "tokens") if fit.with_tokens else np.ones(len(at))

    def band(at: pd.DataFrame) -> pd.DataFrame:
        return fit.predict(_GIGA * floats(at, "gmacs"), floats(at, "images"), tokens_of(at))

    def slope(at: pd.DataFrame) -> Array:
        return fit.law.jacobian(_GIGA * floats(at, "gmacs"), floats(at, "images"), tokens_of(at))[:, :columns]

    values = {"gmacs": runs.size / _GIGA, "images": runs.data, "tokens": 1.0 if tokens is None else tokens}
    known = slope(pd.DataFrame(values, dtype=float))
    name = f"E + A/M^α + B/I^β, {summary.label}"
    needs = ("gmacs", "images", *(("tokens",) if fit.with_tokens else ()))
    return [
        Predictor(
            name, float(runs.compute.max()), band, slope, known, None, summary.patch_size, needs, fit.law, fit.flags
        )
    ]
