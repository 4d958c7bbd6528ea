"""What a study says, in words: one answer a question, with its number, its interval and how far to trust it.

The same answers open report.html and report.md and end `report` and `launch`. Nothing here draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.answer import Answer, Unfinished, cannot, merged, minus
from analysis.equal import equal_answer
from analysis.fit.common import FAR, FEW_POINTS
from analysis.fit.lines import LineFit
from analysis.names import METRIC, block_name, listed, patch_name, plural
from analysis.numbers import interval, number
from analysis.settled import Fall, converged, find_fall
from analysis.slices import LOSS, Slice, scaling_slices
from analysis.study import SliceFits, fit_slice, forecasts_at
from analysis.study_laws import next_gmacs
from analysis.table import load_curves, load_study
from analysis.topics import Topic, topics
from analysis.winner import Verdict, blocks_answer, seeds_advice, verdicts

_CLOSE, _FAR_OFF = 10.0, 25.0  # percent by which a law misses a model left out: trusted much, trusted little
_NOISE = 0.01  # precision and recall of samples that look like noise
_NEXT = "What to do next?"
_COPIED = 0.01  # share of copies, or of the loss, that shows memorisation
_GAP = 0.1
_AGREE = 1.5  # largest over smallest forecast of forms that agree


def answers(
    table: pd.DataFrame,
    curves: pd.DataFrame,
    fitted: Sequence[SliceFits] = (),
    about: Sequence[Topic] = (),
    unfinished: Sequence[Unfinished] = (),
) -> tuple[Answer, ...]:
    """The answers of a study, in the order of a reader's questions; of several studies, those of each topic.

    Args:
        table: rows of `analysis.table.load_study` or `load_published`.
        curves: losses over training, as `load_curves`; may be empty.
        fitted: fits that are at hand.
        about: what they are about, see `analysis.topics.topics`; by default that of the table.
        unfinished: the studies whose cells are not all done.
    """
    missing = "; ".join(study.text for study in unfinished)
    head = (Answer("Is it complete?", f"No: {missing}"),) if missing else ()
    noise = untrained(table)
    if noise is not None:
        return (*head, *noise)
    about = about or topics(table)
    if not about:
        return (*head, *_of_losses(table, missing))
    several = table["study"].nunique() > 1
    found = [_answers_of(topic, _fits_of(topic, fitted), curves, several, missing) for topic in about]
    names = [topic.studies for topic in about]
    questions = [answer.question for answer in found[0]]
    for question in dict.fromkeys(answer.question for part in found[1:] for answer in part):
        if question not in questions:
            questions.insert(1, question)  # which block wins, after what compute buys
    told: list[Answer] = []
    for question in questions:
        asked = [
            (part, name) for part, name in zip(found, names, strict=True) if any(a.question == question for a in part)
        ]
        own = [next(answer for answer in part if answer.question == question) for part, _ in asked]
        told += own[:1] if question == _NEXT else merged(own, [name for _, name in asked])
    return (*head, *told)


def _of_losses(table: pd.DataFrame, missing: str) -> tuple[Answer, ...]:
    """The answers of a study that has recorded losses only."""
    pieces = scaling_slices(table, LOSS)
    todo = f"{missing}." if missing else "Write [[evaluation]] into the sweep, and launch: no sample is measured yet."
    if not pieces:
        return cannot("What does compute buy?", "no row has a metric or a held-out loss"), Answer(_NEXT, todo)
    found = fit_slice(pieces[0])
    if not missing and len(found.rows) < FEW_POINTS:
        todo = f"Add sizes: a law needs {FEW_POINTS} models, there {_are(len(found.rows))}. {todo}"
    return _compute(found), _memory(pieces[0])[0], _larger(found), Answer(_NEXT, todo)


def _fits_of(topic: Topic, fitted: Sequence[SliceFits]) -> SliceFits:
    rows = topic.piece.table.index
    return next((found for found in fitted if found.piece.table.index.equals(rows)), None) or fit_slice(topic.piece)


def _answers_of(topic: Topic, found: SliceFits, curves: pd.DataFrame, several: bool, missing: str) -> list[Answer]:
    """The answers of one topic."""
    piece = topic.piece
    compared, fall = verdicts(piece), find_fall(piece, curves)
    memory, copied = _memory(piece)
    compute = [_compute(found)]
    if piece.group.table["block"].nunique() > 1:
        compute.insert(len(found.fits) and 1, blocks_answer(compared, piece))
    equal = equal_answer(found.pairs, piece.metric)
    told = [
        *compute, *([equal] if equal else []), converged(piece, fall), memory, _larger(found),
        Answer(_NEXT, _next(found, compared, fall, copied, missing)),
    ]  # fmt: skip
    return [replace(answer, about=topic.about) for answer in told] if several else told


def answers_of(folder: Path, unfinished: Sequence[Unfinished] = ()) -> tuple[str, ...]:
    """The answers of a study's folder as lines of text.

    Raises:
        InputError: as `analysis.table.load_study`.
    """
    return tuple(a.line for a in answers(load_study(folder), load_curves(folder), unfinished=unfinished))


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
    return Answer("Is it trained?", text, trust), Answer(_NEXT, longer)


def untrained_models(table: pd.DataFrame) -> list[str]:
    """Names of the models whose samples look like noise after their last step."""
    last, noise = _noisy(table)
    return [str(name) for name in dict.fromkeys(last.loc[noise, "name"])]


def _noisy(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series[bool]]:
    """The rows of every cell's last step that have precision and recall, and whether their samples look like noise."""
    rows = table[table["precision"].notna() & table["recall"].notna()]
    last = rows[rows["step"] == rows.groupby("cell")["step"].transform("max")]
    return last, (last["precision"] <= _NOISE) & (last["recall"] <= _NOISE)


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
        return cannot(question, f"no fit over {plural(len(found.rows), 'model')} ({why})")
    low, high = sorted(_change(slope) for slope in law.slope_t)
    change = _change(law.slope)
    models = f"{plural(law.n, 'model')} of {block_name(found.piece.block)}"
    if low <= 0 <= high:
        said = f"{number(change, 3)} % (95 %: {interval((low, high))} %)"
        text = f"No trend is shown: twice the Gflops change {metric} by {said}"
        return Answer(question, minus(f"{text} over {models}.{_by_patch(found)}"), _trust(found, law))
    ends = sorted((abs(low), abs(high)))
    verb = "lower" if change < 0 else "raise"
    text = f"Twice the Gflops {verb} {metric} by {number(abs(change), 3)} % (95 %: {interval(ends)} %)"
    text += f": {law_text(law, metric)} over {models}."
    return Answer(question, minus(f"{text}{_by_patch(found)}"), _trust(found, law))


def _by_patch(found: SliceFits) -> str:
    """What twice the Gflops change within each patch size; empty where fewer than two sizes have enough models."""
    if not found.slopes:
        return ""
    told = [
        f"{number(_change(law.slope), 3)} % at {patch_name(patch)} "
        f"({interval(sorted(_change(slope) for slope in law.slope_t))} %, {plural(law.n, 'model')})"
        for patch, law in found.slopes.items()
    ]
    return f" Within one patch size: {listed(*told)}."


def law_text(law: LineFit, metric: str) -> str:
    """A power law in print: "FID = 138 G^−0.365"."""
    return f"{metric} = {number(law.coefficient, 3)} G^{law.slope:.3f}".replace("^-", "^−")


def _change(slope: float) -> float:
    """Percent by which a power law changes when its variable doubles."""
    return float((2**slope - 1) * 100)


def _trust(found: SliceFits, law: LineFit) -> str:
    errors = {test.form: test.mape for test in found.held if test.scheme == "leave one out"}
    missed = errors.get("power law", float("inf"))
    level = "low" if law.flags or missed > _FAR_OFF else "high" if missed <= _CLOSE else "fair"
    why = [f"the law misses a model left out by {number(missed, 3)} %"] if "power law" in errors else []
    if found.winner in errors and found.winner != "power law":
        why.append(f"the form “{found.winner}”, which predicts best, by {number(errors[found.winner], 3)} %")
    why += ["one seed a model"] if found.repeats == 1 else []
    return f"{level}: {'; '.join([*why, *law.flags]) or 'too few models to leave one out'}"


# --- memorisation --------------------------------------------------------------------------------------------------


def _memory(piece: Slice) -> tuple[Answer, bool]:
    """The answer, and whether there are signs of memorisation."""
    question, parts, signs, trust = "Does it memorise?", [], False, "low: from the losses alone"
    rows = piece.siblings
    rows = rows[rows["step"] == piece.step]
    copies = rows[rows["copies"].notna()]
    if not copies.empty:
        from scipy.stats import binomtest

        worst = copies.iloc[int(copies["copies"].to_numpy(float).argmax())]
        samples = int(worst["samples"])
        count = round(float(worst["copies"]) * samples)
        ends = binomtest(count, samples).proportion_ci(method="exact")
        signs |= float(ends.low) > _COPIED
        low, high = (number(end * 100, 2) for end in (ends.low, ends.high))
        at = f", at {worst['name']}" if count and len(copies) > 1 else ""
        each = " of each model" if len(copies) > 1 and not count else ""
        parts.append(f"{count:,} of {samples:,} samples{each} copy a training image{at} (95 %: {low} to {high} %)")
        trust = "fair: copies are looked for in the features of the extractor"
    both = rows[(rows["loss_train"] > 0) & rows["loss_heldout"].notna()]
    if not both.empty:
        gaps = (both["loss_heldout"] / both["loss_train"] - 1) * 100
        signs |= bool(gaps.median() > _GAP * 100)
        span = f" ({number(gaps.min(), 2)} to {number(gaps.max(), 2)} %)" if len(gaps) > 1 else ""
        where = "above" if gaps.median() >= 0 else "below"
        parts.append(f"the held-out loss lies {number(abs(gaps.median()), 2)} % {where} that on train images{span}")
    if not parts:
        return cannot(question, "neither copies nor losses were measured"), False
    told = "There are signs" if signs else "No sign of it"
    return Answer(question, f"{told}: {minus('; '.join(parts))}.", trust), signs


# --- a larger model, and what next ---------------------------------------------------------------------------------


def _larger(found: SliceFits) -> Answer:
    question, metric = f"What would a {FAR:g} times larger model reach?", found.piece.metric
    usable = {f.form: f for f in forecasts_at(found, FAR) if f.mean > 0}
    if not usable:
        return cannot(question, "no fit")
    order = [*(ranked.form for ranked in found.ranking), *usable]
    best = next(usable[form] for form in order if form in usable)
    means = [f.mean for f in usable.values()]
    low, high = min(means), max(means)
    text = (
        f"About {number(best.mean, 3)} {metric} at {number(best.gmacs, 3)} Gflops "
        f"(95 %: {interval((best.low, best.high))}; {best.form}{_only_block(found.piece)})"
    )
    text += f"; the forms say {interval((low, high))}." if len(means) > 1 else "."
    doubts = [f"the form that predicts best, {found.winner}, cannot say"] if found.winner not in ("", best.form) else []
    doubts += [*best.flags] + ([f"the forms differ {high / low:.2g} times"] if high > _AGREE * low else [])
    law = found.lines["power law"]
    doubts += [flag for flag in (law.flags if law is not None else ()) if flag not in doubts]
    why = "; ".join(doubts) or "the forms agree, but nothing of that size was trained"
    return Answer(question, minus(text), f"{'low' if doubts else 'fair'}: {why}")


def _only_block(piece: Slice) -> str:
    """Which block it is, where the table holds several."""
    return f"; {block_name(piece.block)}" if piece.group.table["block"].nunique() > 1 else ""


def _next(found: SliceFits, compared: list[Verdict], fall: Fall | None, copied: bool, missing: str) -> str:
    """The two most useful things to do."""
    steps = [f"{missing}."] if missing else []
    if copied:
        steps.append("Use more data or smaller models: the samples copy training images.")
    if fall is not None and fall.settled == "no":
        steps.append("Train longer before sizes are compared: it still improves.")
    steps += filter(None, [seeds_advice(compared)])
    if len(found.rows) < FEW_POINTS:
        steps.append(f"Add sizes: a law needs {FEW_POINTS} models, there {_are(len(found.rows))}.")
    elif found.repeats == 1 and not compared:
        steps.append("Train some models with more seeds: noise between seeds is not known.")
    gmacs = next_gmacs(found.piece)
    if gmacs is not None:
        steps.append(f"With twice the training compute, the frontier points to a model of {number(gmacs, 3)} Gflops.")
    steps.append("Train a larger model and hold the forecast against it.")
    return " ".join(steps[:2])


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"
