"""Forecasts on record beside what came out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from analysis.answer import minus
from analysis.forecasts import POWER_LAW, Forecast, Outcome, load_forecasts, outcomes
from analysis.numbers import interval, number
from analysis.page import Page, Table

_OPENING = "What was predicted before a model was trained, and what it then reached."


def forecasts(page: Page, table: pd.DataFrame) -> None:
    """Every forecast of forecasts.json beside the truth; one that misses is shown as missed."""
    found = outcomes(load_forecasts(page.folder), table, page.folder)
    if not found:
        return
    section = page.section("forecasts", "Forecasts", _OPENING)
    for one, said in groupby(found, key=lambda outcome: outcome.forecast):
        line = _verdict(one, list(said))
        section.paragraphs.append(line)
        page.summary.append(line)
    caption = (
        "Forecasts on record (forecasts.json). 95 %: prediction interval of a new training. Score: interval score over "
        "the truth (Gneiting & Raftery 2007), the width of the interval and 40 times the distance of a truth outside "
        "of it; lower is better. Beyond: operations over the most that was fitted."
    )
    rows = [
        (
            o.forecast.name, o.forecast.metric, o.forecast.made, o.said.form, number(o.said.mean),
            interval((o.said.low, o.said.high)), f"{o.said.extrapolation:.3g} x",
            number(o.truth) if o.truth is not None else "not measured yet", _word(o), number(o.score, 3),
        )
        for o in found
    ]  # fmt: skip
    columns = "Model | Metric | Made | Form | Forecast | 95 % | Beyond | Truth | Verdict | Score"
    section.tables.append(Table.of(caption, columns, rows))
    page.fits["forecasts"] = [_values(o) for o in found]


def _word(outcome: Outcome) -> str:
    return {None: "open", True: "hit", False: "missed"}[outcome.hit]


def _verdict(one: Forecast, said: Sequence[Outcome]) -> str:
    """The form that leads, in words, and the plain power law beside it."""
    lead = said[0]
    text = f"Forecast of {one.metric} of {one.name} by “{lead.said.form}”: {number(lead.said.mean)} "
    text += f"(95 %: {interval((lead.said.low, lead.said.high))})"
    if lead.truth is None or lead.off is None:
        return minus(f"{text}; it is not measured yet.")
    text += f"; {_word(lead)}: {number(lead.truth)} came out, {100 * lead.off:+.1f} % of the forecast"
    plain = next((o for o in said[1:] if o.said.form == POWER_LAW), None)
    if plain is not None and plain.score and lead.score is not None:
        text += f"; its interval score is {lead.score / plain.score:.2f} times that of the plain power law"
    return minus(f"{text}.")


def _values(o: Outcome) -> dict[str, Any]:
    about = {"cell": o.forecast.cell, "name": o.forecast.name, "metric": o.forecast.metric, "made": o.forecast.made}
    return {**about, **o.said.model_dump(), "truth": o.truth, "hit": o.hit, "score": o.score}
