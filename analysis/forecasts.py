"""Forecasts on record, in a study's forecasts.json, and how they came out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from analysis.fit.common import CONFIDENCE
from analysis.predict import Outlook, Prediction, Training
from analysis.slices import LOSS
from analysis.table import load_study
from harness.errors import InputError

FILE = "forecasts.json"

POWER_LAW = "power law"  # what every other form is held against


class Forecast(BaseModel):
    """One forecast of one metric of one cell, made before the cell was trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str  #: of the cell
    cell: str  #: its id
    name: str
    step: int
    operations: float  #: of its training, C = 6 M I
    column: str  #: of results.csv
    metric: str  #: in print
    evaluation: str  #: its id; empty for a loss
    said: tuple[Prediction, ...]  #: the form that predicted unseen models best comes first
    fitted: int  #: number of models
    data: str  #: sha256 over what was fitted: cell, step and value of every row
    made: str  #: UTC
    commit: str | None


def forecast(outlook: Outlook, training: Training, target: dict[str, Any]) -> Forecast:
    """What every form of the slice predicts for the training; `target` are the other fields of a `Forecast`.

    Raises:
        InputError: no form holds for such a training.
    """
    said = outlook.predictions(training)
    if not said:
        why = "; ".join(f"{what}: {why}" for what, why in outlook.omitted)
        raise InputError(
            f"{training.name}: no form of {outlook.piece.metric} predicts {training.images:,.0f} images at "
            f"{training.gmacs:.4g} GMACs; needed: the length of the study's trainings, or several lengths ({why})"
        )
    rows = outlook.piece.table[["cell", "step", outlook.piece.column]]
    lines = sorted(json.dumps([str(cell), int(step), float(value)]) for cell, step, value in rows.to_numpy())
    return Forecast(
        operations=training.operations,
        column=outlook.piece.column,
        metric=outlook.piece.metric,
        said=tuple(said),
        fitted=len(outlook.fits.rows),
        data=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        **target,
    )


def load_forecasts(folder: Path) -> tuple[Forecast, ...]:
    """The forecasts of a study, in their order; empty without the file.

    Raises:
        InputError: the file is none of this kind.
    """
    path = folder / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return tuple(Forecast.model_validate(one) for one in found["forecasts"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({problem}); allowed: what `dit-harness forecast` writes") from None


def as_json(forecasts: Iterable[Forecast]) -> dict[str, Any]:
    """What the file holds."""
    return {"forecasts": [one.model_dump(mode="json") for one in forecasts]}


@dataclass(frozen=True)
class Outcome:
    """What one form predicted, and the truth; None while it is not known."""

    forecast: Forecast
    said: Prediction
    truth: float | None

    @property
    def hit(self) -> bool | None:
        """Whether the truth lies in the interval."""
        return None if self.truth is None else self.said.low <= self.truth <= self.said.high

    @property
    def off(self) -> float | None:
        """Truth over prediction, minus 1."""
        return None if self.truth is None else self.truth / self.said.mean - 1

    @property
    def score(self) -> float | None:
        """Interval score over the truth: lower is better (Gneiting & Raftery 2007, equation 43).

        The width of the interval, and 2 / (1 - 0.95) times the distance of a truth outside of it.
        """
        if self.truth is None:
            return None
        missed = max(self.said.low - self.truth, self.truth - self.said.high, 0.0)
        return (self.said.high - self.said.low + 2 / (1 - CONFIDENCE) * missed) / self.truth


def outcomes(forecasts: Sequence[Forecast], table: pd.DataFrame, folder: Path) -> list[Outcome]:
    """Every form of every forecast beside the truth.

    Args:
        forecasts: those of the study.
        table: its rows.
        folder: of the study; the tables of others lie beside it.
    """
    tables = {"": table}
    found = []
    for one in forecasts:
        if one.study not in tables:
            there = (folder.parent / one.study / "results.csv").exists()
            tables[one.study] = load_study(folder.parent / one.study) if there else table[:0]
        value = next((v for rows in (table, tables[one.study]) if (v := _truth(one, rows)) is not None), None)
        found += [Outcome(one, said, value) for said in one.said]
    return found


def _truth(forecast: Forecast, table: pd.DataFrame) -> float | None:
    rows = table[(table["cell"].astype(str) == forecast.cell) & (table["step"] == forecast.step)]
    if forecast.column != LOSS:
        rows = rows[rows["evaluation"] == forecast.evaluation]
    values = rows[forecast.column].dropna()
    return None if values.empty else float(values.iloc[0])
