"""What a study says, in words: one answer a question, with its number, its interval and how far to trust it.

The same answers open report.html and report.md and end `report` and `launch`. Nothing here draws.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.compare import BlockComparison, compare_blocks
from analysis.fit.common import FAR, FEW_POINTS, CannotFitError
from analysis.fit.lines import LineFit
from analysis.frontier import find_frontier
from analysis.names import METRIC, block_name, plural
from analysis.numbers import interval, number
from analysis.slices import LOSS, Slice, scaling_slices
from analysis.study import SliceFits, fit_slice, forecasts_at
from analysis.table import load_curves, load_study

_CLOSE, _FAR_OFF = 10.0, 25.0  # percent by which a law misses a model left out: trusted much, trusted little
_NOISE = 0.01  # precision and recall of samples that look like noise
_SETTLED = {METRIC: (2.0, 5.0), LOSS: (0.5, 1.0)}  # percent fallen since mid-training: converged, nearly converged
_COPIED = 0.01  # share of copies, or of the loss, that shows memorisation
_GAP = 0.1
_AGREE = 1.5  # largest over smallest forecast of forms that agree


@dataclass(frozen=True)
class Answer:
    """One question and what the study says to it."""

    question: str
    text: str
    trust: str = ""  #: how far to trust it, and why; empty where that is no question

    @property
    def line(self) -> str:
        """All of it as one line of text."""
        return f"{self.question} {self.text}" + (f" Trust is {self.trust}." if self.trust else "")


def answers(table: pd.DataFrame, curves: pd.DataFrame, found: SliceFits | None = None) -> tuple[Answer, ...]:
    """The answers of a study, in the order of a reader's questions.

    Args:
        table: rows of `analysis.table.load_study` or `load_published`.
        curves: losses over training, as `load_curves`; may be empty.
        found: the fits of the largest slice, if they are at hand.
    """
    noise = untrained(table)
    if noise is not None:
        return noise
    pieces = scaling_slices(table)
    if not pieces:
        why = "It cannot be told: no row has a metric."
        return (Answer("What does compute buy?", why), Answer("What to do next?", "Evaluate the cells."))
    found = found or fit_slice(pieces[0])
    compared = _final(compare_blocks(found.piece.siblings))
    fall = _fall(found.piece, curves)
    memory, copied = _memory(found.piece)
    compute = [_compute(found)]
    if table["block"].nunique() > 1:
        compute.insert(len(found.fits) and 1, _blocks(compared, found.piece))
    return (
        *compute, _converged(found.piece, fall), memory, _larger(found),
        Answer("What to do next?", _next(found, compared, fall, copied)),
    )  # fmt: skip


def answers_of(folder: Path) -> tuple[str, ...]:
    """The answers of a study's folder as lines of text.

    Raises:
        InputError: as `analysis.table.load_study`.
    """
    return tuple(answer.line for answer in answers(load_study(folder), load_curves(folder)))


def untrained(table: pd.DataFrame) -> tuple[Answer, ...] | None:
    """The answers of a study whose samples all look like noise; None for any other."""
    last, noise = _noisy(table)
    if last.empty or not noise.all():
        return None
    low, high = last[METRIC].min(), last[METRIC].max()
    distance = " to ".join(dict.fromkeys(number(end, 3) for end in (low, high)))
    precision, recall = (number(last[column].max(), 2) for column in ("precision", "recall"))
    text = (
        f"No: it is untrained. The samples of {_all(last['cell'].nunique())} look like noise: precision is at most "
        f"{precision}, recall at most {recall}, at a distance of {distance}. "
        "No law is fitted and no block compared."
    )
    most = int(last["step"].max())
    longer = f"Train longer than {most:,} steps, or with another learning rate, until precision and recall leave 0."
    trust = f"high: precision and recall are of {_samples(last)} a model"
    return Answer("Is it trained?", text, trust), Answer("What to do next?", longer)


def untrained_models(table: pd.DataFrame) -> list[str]:
    """Names of the models whose samples look like noise after their last step."""
    last, noise = _noisy(table)
    return [str(name) for name in dict.fromkeys(last.loc[noise, "name"])]


def _noisy(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series[bool]]:
    """The rows of every cell's last step that have precision and recall, and whether their samples look like noise."""
    rows = table[table["precision"].notna() & table["recall"].notna()]
    last = rows[rows["step"] == rows.groupby("cell")["step"].transform("max")]
    return last, (last["precision"] <= _NOISE) & (last["recall"] <= _NOISE)


def _minus(text: str) -> str:
    """Minus signs for the hyphens before numbers."""
    return re.sub(r"(?<=[ (])-(?=\d)", "−", text)


def _all(count: int) -> str:
    return "the one model" if count == 1 else f"all {count} models"


def _samples(rows: pd.DataFrame) -> str:
    return f"{number(rows['samples'].min())} samples"


# --- what compute buys ---------------------------------------------------------------------------------------------


def _compute(found: SliceFits) -> Answer:
    question, metric, law = "What does compute buy?", found.piece.metric, found.lines["power law"]
    if law is None:
        why = next((why for what, why in found.omitted if what.startswith("Power law of")), "")
        why = why or f"a {metric} is not positive"
        return Answer(question, f"It cannot be told: no fit over {plural(len(found.rows), 'model')} ({why}).")
    low, high = sorted(_change(slope) for slope in law.slope_t)
    change = _change(law.slope)
    models = f"{plural(law.n, 'model')} of {block_name(found.piece.block)}"
    if low <= 0 <= high:
        text = (
            f"No trend is shown: twice the Gflops change {metric} by {change:.3g} % (95 %: {low:.3g} to {high:.3g} %)"
        )
        return Answer(question, f"{_minus(text)} over {models}.", _trust(found, law))
    ends = sorted((abs(low), abs(high)))
    verb = "lower" if change < 0 else "raise"
    text = f"Twice the Gflops {verb} {metric} by {abs(change):.3g} % (95 %: {ends[0]:.3g} to {ends[1]:.3g} %)"
    return Answer(question, f"{text}: {law_text(law, metric)} over {models}.", _trust(found, law))


def law_text(law: LineFit, metric: str) -> str:
    """A power law in print: "FID = 138 G^−0.365"."""
    return f"{metric} = {number(law.coefficient, 3)} G^{law.slope:.3f}".replace("^-", "^−")


def _change(slope: float) -> float:
    """Percent by which a power law changes when its variable doubles."""
    return float((2**slope - 1) * 100)


def _left_out(found: SliceFits) -> dict[str, float]:
    """Mean error on a model left out, in percent, by form."""
    return {test.form: test.mape for test in found.held if test.scheme == "leave one out"}


def _trust(found: SliceFits, law: LineFit) -> str:
    errors = _left_out(found)
    missed = errors.get("power law", float("inf"))
    level = "low" if law.flags or missed > _FAR_OFF else "high" if missed <= _CLOSE else "fair"
    why = [f"the law misses a model left out by {missed:.3g} %"] if "power law" in errors else []
    best = min(errors, key=errors.__getitem__) if errors else ""
    if best and errors[best] < 0.7 * missed:
        why.append(f"the form “{best}” by {errors[best]:.3g} % only")
    why += ["one seed a model"] if found.repeats == 1 else []
    return f"{level}: {'; '.join([*why, *law.flags]) or 'too few models to leave one out'}"


# --- blocks --------------------------------------------------------------------------------------------------------


def _final(compared: Sequence[BlockComparison]) -> dict[str, list[BlockComparison]]:
    """The comparisons at each shape's last step, the shape of most compute first."""
    last: dict[str, int] = {}
    for c in compared:
        last[c.shape] = max(last.get(c.shape, 0), c.step)
    most = sorted(last, key=lambda shape: -max(c.gmacs for c in compared if c.shape == shape))
    return {shape: [c for c in compared if c.shape == shape and c.step == last[shape]] for shape in most}


def _blocks(compared: dict[str, list[BlockComparison]], piece: Slice) -> Answer:
    question = "Which block wins?"
    if not compared:
        return Answer(question, "It cannot be told: no design was measured at the same shape and step as adaLN-Zero.")
    (shape, here), *others = compared.items()
    ahead, first, second = _ahead(here)
    metric, base = piece.metric, here[0].baseline
    values = {base: here[0].baseline_metric} | {c.block: c.metric for c in here}
    rest = [f"{block_name(name)} {number(values[name], 3)}" for name in sorted(values, key=values.__getitem__)[2:]]
    known = ahead.verdict != "inconclusive"
    text = (
        f"{block_name(first)} {'wins' if known else 'is ahead, but no winner can be named,'} at {shape}: "
        f"{number(values[first], 3)} {metric}, {_percent(ahead, values[second])} below {block_name(second)} "
        f"({number(values[second], 3)})"
    )
    text += f"; then {', '.join(rest)}" if rest else ""
    text += "."
    if ahead.multiplier is not None and first == base:
        same = f"of a model of {block_name(base)} that is as good"
        text += f" {block_name(second)} takes {ahead.multiplier:.3g} times the Gflops {same}."
    for name, there in others[:2]:
        one, best, _ = _ahead(there)
        text += f" At {name}: {block_name(best)}{'' if one.verdict != 'inconclusive' else ' ahead, inconclusive'}."
    if len(others) > 2:
        text += f" {len(others) - 2} more shapes stand in the table of blocks."
    seeds = min(ahead.seeds, ahead.baseline_seeds)
    return Answer(question, text, f"{('fair' if seeds < 5 else 'high') if known else 'low'}: {ahead.reason}")


def _ahead(here: Sequence[BlockComparison]) -> tuple[BlockComparison, str, str]:
    """The comparison that decides a shape, the block with the best metric, and the one it is compared with."""
    best = min(here, key=lambda c: c.metric)
    if best.metric < best.baseline_metric:
        return best, best.block, best.baseline
    return best, best.baseline, best.block


def _percent(c: BlockComparison, other: float) -> str:
    """How far the better of two lies below the other, in percent, with its interval."""
    text = f"{abs(c.difference) / other * 100:.3g} %"
    if c.interval is None:
        return text
    sign = 1 if c.difference > 0 else -1
    low, high = sorted(sign * end / other * 100 for end in c.interval)
    return _minus(f"{text} (95 %: {number(low, 3)} to {number(high, 3)} %)")


# --- convergence ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fall:
    """How much a metric or loss fell since about the middle of training, in percent, model by model."""

    column: str
    percent: tuple[float, ...]
    share: float  #: of the steps it fell over, median

    @property
    def middle(self) -> float:
        return float(np.median(self.percent))

    @property
    def settled(self) -> str:
        """Yes, nearly or no."""
        least, most = _SETTLED[self.column]
        return "yes" if self.middle <= least else "nearly" if self.middle <= most else "no"


def _fall(piece: Slice, curves: pd.DataFrame) -> _Fall | None:
    known = curves[curves["cell"].isin(piece.checkpoints["cell"])] if not curves.empty else curves
    for column, rows in ((METRIC, piece.checkpoints), (LOSS, known)):
        if rows.empty:
            continue
        falls, shares = [], []
        for _, run in rows[rows[column] > 0].groupby("cell"):
            values = run.groupby("step")[column].mean()
            last = int(values.index[-1])
            before = [step for step in values.index[:-1] if last / 4 <= step <= 3 * last / 4]
            if before:
                step = min(before, key=lambda at: abs(at - last / 2))
                falls.append(float(1 - values.iloc[-1] / values[step]) * 100)
                shares.append((1 - step / last) * 100)
        if falls:
            return _Fall(column, tuple(falls), float(np.median(shares)))
    return None


def _converged(piece: Slice, fall: _Fall | None) -> Answer:
    question = "Is it converged?"
    if fall is None:
        return Answer(question, "It cannot be told: nothing was measured in the middle of training.")
    name = piece.metric if fall.column == METRIC else "the held-out loss"
    count, low, high = len(fall.percent), min(fall.percent), max(fall.percent)
    over = f"over the last {fall.share:.0f} % of training"
    span = f"median of {count} runs; {low:.3g} to {high:.3g} %" if count > 1 else "one run"
    moved = f"{name} {'fell' if fall.middle > 0 else 'rose'} by {abs(fall.middle):.3g} % {over} ({span})"
    told = {"yes": "Yes", "nearly": "Nearly", "no": "No"}[fall.settled]
    trust = "fair" if count >= 3 else "low"
    why = (
        "from checkpoints of the same runs"
        if fall.column == METRIC
        else f"{piece.metric} was measured at one step only"
    )
    return Answer(question, f"{told}: {_minus(moved)}.", f"{trust}: {why}")


# --- memorisation --------------------------------------------------------------------------------------------------


def _memory(piece: Slice) -> tuple[Answer, bool]:
    """The answer, and whether there are signs of memorisation."""
    question, rows, parts, signs, trust = "Does it memorise?", piece.table, [], False, "low: from the losses alone"
    copies = rows[rows["copies"].notna()]
    if not copies.empty:
        from scipy.stats import binomtest

        worst = copies.iloc[int(copies["copies"].to_numpy(float).argmax())]
        samples = int(worst["samples"])
        count = round(float(worst["copies"]) * samples)
        ends = binomtest(count, samples).proportion_ci(method="exact")
        signs |= float(ends.low) > _COPIED
        low, high = (f"{end * 100:.2g}" for end in (ends.low, ends.high))
        at = f", at {worst['name']}" if count and len(copies) > 1 else ""
        each = " of each model" if len(copies) > 1 and not count else ""
        parts.append(f"{count:,} of {samples:,} samples{each} copy a training image{at} (95 %: {low} to {high} %)")
        trust = "fair: copies are looked for in the features of the extractor"
    both = rows[(rows["loss_train"] > 0) & rows["loss_heldout"].notna()]
    if not both.empty:
        gaps = (both["loss_heldout"] / both["loss_train"] - 1) * 100
        signs |= bool(gaps.median() > _GAP * 100)
        span = f" ({gaps.min():.2g} to {gaps.max():.2g} %)" if len(gaps) > 1 else ""
        where = "above" if gaps.median() >= 0 else "below"
        parts.append(f"the held-out loss lies {abs(gaps.median()):.2g} % {where} that on train images{span}")
    if not parts:
        return Answer(question, "It cannot be told: neither copies nor losses were measured."), False
    told = "There are signs" if signs else "No sign of it"
    return Answer(question, f"{told}: {_minus('; '.join(parts))}.", trust), signs


# --- a larger model, and what next ---------------------------------------------------------------------------------


def _larger(found: SliceFits) -> Answer:
    question, metric = f"What would a {FAR:g} times larger model reach?", found.piece.metric
    usable = {f.form: f for f in forecasts_at(found, FAR) if f.mean > 0}
    if not usable:
        return Answer(question, "It cannot be told: no fit.")
    order = [ranked.form for ranked in found.ranking if ranked.form in usable] or [*usable]
    best = usable[order[0]]
    means = {form: f.mean for form, f in usable.items()}
    if found.surface is not None:
        big = found.rows.iloc[int(found.rows["gmacs"].to_numpy(float).argmax())]
        params, tokens = np.array([FAR * float(big["params"])]), np.array([float(big["tokens"])])
        means[found.surface.form] = float(found.surface.predict(params, tokens)[0])
    low, high = min(means.values()), max(means.values())
    text = (
        f"About {number(best.mean, 3)} {metric} at {number(best.gmacs, 3)} Gflops "
        f"(95 %: {interval((best.low, best.high))}; {best.form})"
    )
    text += f"; the forms say {number(low, 3)} to {number(high, 3)}." if len(means) > 1 else "."
    doubts = [*best.flags] + ([f"the forms differ {high / low:.2g} times"] if high > _AGREE * low else [])
    law = found.lines["power law"]
    doubts += [flag for flag in (law.flags if law is not None else ()) if flag not in doubts]
    why = "; ".join(doubts) or "the forms agree, but nothing of that size was trained"
    return Answer(question, text, f"{'low' if doubts else 'fair'}: {why}")


def _next(found: SliceFits, compared: dict[str, list[BlockComparison]], fall: _Fall | None, copied: bool) -> str:
    """The two most useful things to do."""
    steps: list[str] = []
    if copied:
        steps.append("Use more data or smaller models: the samples copy training images.")
    if fall is not None and fall.settled == "no":
        steps.append("Train longer before sizes are compared: it still improves.")
    if any(c.verdict == "inconclusive" for here in compared.values() for c in here):
        few = min(min(c.seeds, c.baseline_seeds) for here in compared.values() for c in here)
        steps.append(
            f"Add training seeds to tell the blocks apart ({plural(few, 'seed')} now): seed = [0, 1, 2, 3, 4]."
        )
    if len(found.rows) < FEW_POINTS:
        steps.append(f"Add sizes: a law needs {FEW_POINTS} models, there {_are(len(found.rows))}.")
    elif found.repeats == 1 and not compared:
        steps.append("Train some models with more seeds: noise between seeds is not known.")
    try:
        gmacs = find_frontier(found.piece).next_gmacs
    except CannotFitError:
        gmacs = None
    if gmacs is not None:
        steps.append(f"With twice the training compute, the frontier points to a model of {number(gmacs, 3)} Gflops.")
    steps.append("Train a larger model and hold the forecast against it.")
    return " ".join(steps[:2])


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"
