"""Is it real? What chance does to a value, and which gaps between two designs the seeds can show."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from analysis.compare import BlockComparison
from analysis.figures.noise import noise_figure
from analysis.names import METRIC, block_name, listed, plural
from analysis.noise import Component, Noise
from analysis.numbers import number
from analysis.page import Page, Table
from analysis.power import POWER, smallest_gap, trainings_needed
from analysis.printed import plain
from analysis.study_noise import StudyNoise, study_noise

_OPENING = (
    "How far a value moves when a model is trained again, and when one network is sampled again; standard deviations "
    "are of its logarithm, in percent, and so coefficients of variation."
)
_TRAININGS = (2, 3, 5, 10, 20)
_GAPS = (0.01, 0.02, 0.05, 0.1)


def noise(page: Page, table: pd.DataFrame, compared: Sequence[BlockComparison]) -> None:
    """The components of noise, and what they mean for comparisons; one line where nothing was repeated.

    Args:
        page: gets the section.
        table: rows of a study, or the published numbers.
        compared: the designs against the baseline, of the rows that the answers are about.
    """
    found = study_noise(table)
    page.fits["noise"] = [_values(one) for one in found]
    if not found:
        page.summary.append(
            "Is it real? No model was trained or sampled twice, so no gap between two models can be told from chance."
        )
        return
    section = page.section("noise", "Is it real?", _OPENING)
    lead, pairs = found[0], [c for c in compared if c.pair_sd]
    section.paragraphs.append(_moves(lead))
    page.summary.append(f"Is it real? {section.paragraphs[0]}")
    section.tables.append(_components(found))
    if pairs:
        section.tables.append(_pairs(pairs, lead.metric))
    if lead.together.training is None:
        return
    section.paragraphs.append(_shown(lead.together))
    section.tables += _gaps(lead.together, _pair_sd(pairs))
    page.draw(
        section, "noise", f"{lead.metric} of every training and sampling, and the smallest gap that trainings show.",
        "Left: a column a training, a dot a sampling, a line their mean; grey: one standard deviation between "
        f"trainings. Right: the smallest gap between two designs that is found with probability {POWER}.",
        lambda: noise_figure(lead, _pair_sd(pairs)),
    )  # fmt: skip


def _values(one: StudyNoise) -> dict[str, object]:
    """As fits.json holds it."""
    return {
        "column": one.column,
        "metric_name": one.metric,
        "conditions": dict(one.conditions),
        "together": plain(one.together),
        "models": {name: plain(own) for name, own in one.models},
        "apart": list(one.apart),
    }


def _percent(value: float) -> str:
    return number(100 * value, 2)


def _printed(part: Component | None) -> str:
    if part is None:
        return ""
    low, high = map(_percent, part.interval)
    return f"{_percent(part.sd)} ({low} to {high}; {part.freedom:.0f})"


def _said(part: Component) -> str:
    low, high = map(_percent, part.interval)
    return f"{_percent(part.sd)} % (95 %: {low} to {high} %; {_freedom(part)})"


def _freedom(part: Component) -> str:
    return f"{plural(round(part.freedom), 'degree')} of freedom"


def _moves(lead: StudyNoise) -> str:
    """The components of the first value in a sentence or two."""
    found, parts = lead.together, []
    if found.training is None:
        parts.append("No model was trained twice, so the noise between trainings is not known")
    else:
        cause = f" with another seed of {listed(*lead.apart)}" if lead.apart else " again"
        mixed = ", the noise of one sampling in it" if found.mixed and lead.column == METRIC else ""
        parts.append(f"Training{cause} moves {lead.metric} by {_said(found.training)}{mixed}")
    if found.sampling is not None:
        parts.append(f"sampling again moves it by {_said(found.sampling)}")
    text = "; ".join(parts) + "."
    if found.shared is not None:
        text += (
            f" A sampling seed moves all trainings alike, by {_said(found.shared)}: that part cancels where models are "
            "sampled with the same seeds."
        )
    return text


def _shown(found: Noise) -> str:
    """What the study's own number of trainings can show."""
    count, times = max(found.trainings, 2), found.samplings
    gap = _percent(smallest_gap(found.sd(times), count))
    each = f" with {plural(times, 'sampling')} each" if found.sampling else ""
    return (
        f"Two designs of {count} trainings{each} can be told apart from a gap of {gap} % on: a smaller one is missed "
        f"in more than {100 * (1 - POWER):.0f} % of such studies."
    )


def _components(found: Sequence[StudyNoise]) -> Table:
    rows = []
    for one in found:
        whole = [(f"all {one.together.models} models", one.together)] if len(one.models) > 1 else []
        for name, own in [*whole, *one.models]:
            parts = [_printed(part) for part in (own.training, own.sampling, own.shared)]
            rows.append((one.metric, name, own.trainings, own.samplings, own.mean, *parts, one.context))
    several = len({row[-1] for row in rows}) > 1
    columns = "Value | Model | Trainings | Samplings | Mean | SD, trainings | SD, samplings | SD, sampling seed"
    caption = (
        "Standard deviations in percent (95 %; degrees of freedom). Trainings: between trainings of one model; where "
        "each was sampled once, that noise is in it. Samplings: between samplings of one network. Sampling seed: what "
        "a seed does to all trainings alike. Mean: geometric. Losses are always measured on the same draws."
    )
    return Table.of(caption, columns + " | Way" * several, [row if several else row[:-1] for row in rows])


def _pair_sd(pairs: Sequence[BlockComparison]) -> float | None:
    """Standard deviation of the difference of ln of two trainings at one seed, over all pairs of designs."""
    if not pairs:
        return None
    freedom = sum(c.seeds - 1 for c in pairs)
    return math.sqrt(sum((c.seeds - 1) * (c.pair_sd or 0.0) ** 2 for c in pairs) / freedom)


def _pairs(pairs: Sequence[BlockComparison], metric: str) -> Table:
    rows = []
    for c in pairs:
        apart, joined = c.seed_sd or 0.0, c.pair_sd or 0.0
        middle, low, high = (100 * math.log(ratio) for ratio in (c.ratio, *(c.interval or (math.nan, math.nan))))
        rows.append(
            (f"{block_name(c.block)} − {block_name(c.baseline)}", c.shape, c.step, c.seeds,
             f"{middle:+.2g} ({low:+.2g} to {high:+.2g})",
             _percent(apart * math.sqrt(2)), _percent(joined), f"{c.pairing_gain:.2g}",
             _percent(smallest_gap(apart, c.seeds)), _percent(smallest_gap(joined, c.seeds, paired=True)))
        )  # fmt: skip
    caption = (
        f"Designs in pairs of one seed, whose trainings share order, timesteps and noise; {metric}, 100 times "
        "differences of ln. Gain: variance of a difference of two seeds over that of a pair. A pair has half the "
        "degrees of freedom, so few pairs show less even where they gain."
    )
    columns = (
        "Designs | Shape | Step | Pairs | Difference (95 %) | SD of a difference, any seeds | SD of a pair | Gain | "
        "Smallest gap, any seeds | Smallest gap, pairs"
    )
    return Table.of(caption, columns, rows)


def _gaps(found: Noise, pair_sd: float | None) -> list[Table]:
    """What trainings show, and how many a gap needs."""
    times = [1] + [found.samplings] * (found.sampling is not None and found.samplings > 1)
    ways = [(f"{plural(count, 'sampling')} each", found.sd(count), False) for count in times]
    ways += [("in pairs of one seed", pair_sd, True)] if pair_sd else []
    counts = sorted({*_TRAININGS, max(2, found.trainings)})
    shown = [(n, *(_percent(smallest_gap(sd, n, paired)) for _, sd, paired in ways)) for n in counts]
    test = f"a t test at 5 % finds it with probability {POWER} (noncentral t; the standard deviations count as known)"
    rows = []
    for gap in _GAPS:
        needed = (trainings_needed(gap, sd, paired) for _, sd, paired in ways)
        rows.append((f"{_percent(gap)} %", *("very many" if count is None else count for count in needed)))
    names = " | ".join(name for name, _, _ in ways)
    return [
        Table.of(
            f"The smallest gap between two designs that is shown, in percent: {test}.",
            f"Trainings a design | {names}",
            shown,
        ),
        Table.of("Trainings of each design that a gap needs, by the same test.", f"Gap | {names}", rows),
    ]
