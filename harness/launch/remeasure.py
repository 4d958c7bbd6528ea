"""Kept weights measured again by other evaluations: which are asked for, of which cells, and what they cost.

Trains nothing. The jobs claim on a track of their own (see `harness.runs`), so that they run beside a training of the
same cell; they are launched, resumed and taken over like those of a training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from harness.errors import InputError
from harness.launch.estimate import ASSUMED_GMACS_PER_S, sampled, sampling_passes
from harness.model.cost import count_cell
from harness.runs.cellruns import CellRun, owed_evaluations
from harness.runs.layout import EVALUATING
from harness.runs.state import ACTIVE
from harness.spec.evaluation import Evaluation
from harness.spec.fields import fields_of
from sweeps.grid import Sweep
from sweeps.protocols import Origin, evaluations, named

#: What messages call the values of a field.
_WORDS = {int: "whole numbers", float: "numbers", str: "names"}

_KEY = "command line, evaluation"


@dataclass(frozen=True)
class Selection:
    """What there is to measure.

    Attributes:
        items: cells with weights to measure, their runs on the track of evaluations.
        skipped: what was asked for and cannot be measured, one line each.
    """

    items: list[CellRun]
    skipped: list[str]


@dataclass(frozen=True)
class Cost:
    """What a selection costs.

    Attributes:
        total: evaluations that are asked for.
        done: those that are measured already.
        sampling_gmacs: 1e9 multiply-adds of sampling for the others.
        seconds: their wall time on one slot.
        measured: whether that rests on records of the study; else the speed is assumed.
        at_most: whether fewer evaluations may do.
    """

    total: int
    done: int
    sampling_gmacs: float
    seconds: float
    measured: bool
    at_most: bool = False


def values(text: str, field: str) -> list[Any]:
    """The values of a field of `Evaluation` in a text with commas between, such as "16,32,64".

    Raises:
        InputError: one line naming the option.
    """
    kind = fields_of(Evaluation)[field].types[0]
    try:
        found = [kind(part.strip()) for part in text.split(",")]
        if "" in found:
            raise ValueError(text)
    except ValueError:
        option = f"--{field.replace('_', '-')}"
        raise InputError(f"{option}: {text!r}; allowed: {_WORDS[kind]} with commas between, none empty") from None
    return found


def with_evaluations(sweep: Sweep, protocol: str | None, options: Mapping[str, str | bool | None]) -> Sweep:
    """The sweep with the evaluations asked for in place of its own.

    Args:
        sweep: its first evaluation is what the options change; the defaults if it has none. Of several objectives it is
            the first of each, unless the options name the sampler.
        protocol: a name, to start from that instead.
        options: texts with commas between by field, of which the product is asked for; a flag for ema. None: unchanged.

    Raises:
        InputError: an unknown protocol, a malformed list, or an evaluation that some cell cannot have.
    """
    source = named(protocol, sweep.protocols, "--protocol") if protocol is not None else None
    asked_for = {field: given for field, given in options.items() if given is not None}
    lists = {field: values(given, field) if isinstance(given, str) else given for field, given in asked_for.items()}
    bases = [source.fields] if source else [e.model_dump() for e in _firsts(sweep, each="sampler" not in asked_for)]
    asked = tuple(e for base in bases for e in evaluations({**base, "at": (), **lists}, _KEY))
    changed = replace(sweep, evaluations=asked, origins=(Origin("evaluation", source),) * len(asked))
    changed.check_evaluations(_KEY)
    return changed


def _firsts(sweep: Sweep, *, each: bool) -> list[Evaluation]:
    """The sweep's first evaluation, or the first of each objective; the default one if it has none."""
    if not each or not sweep.evaluations:
        return [*sweep.evaluations[:1]] or [Evaluation()]
    samplers = {cell.diffusion.samplers for _, cell in sweep.cells()}
    firsts = [next(e for e in sweep.evaluations if e.sampler in names) for names in samplers]
    return [evaluation for evaluation in sweep.evaluations if evaluation in firsts]


def select(sweep: Sweep, items: Sequence[CellRun], at: Sequence[int] | None) -> Selection:
    """What can be measured of these cells.

    Args:
        sweep: of `with_evaluations`.
        items: its cells, or some of them, as `harness.runs.cellruns.cell_runs` gives them.
        at: training steps; None: the last one of each cell.

    Raises:
        InputError: nothing of it can be measured.
    """
    found, skipped = [], []
    for item in items:
        cell, asked = item.cell, sweep.evaluations_of(item.cell)
        kept, steps = item.run.weights_steps(), []
        for step in sorted(set(at or (cell.training.steps,))):
            # what is measured already needs no weights, which a clone may lack
            if step in kept or not item.run.missing_evaluations(list(owed_evaluations(cell, asked, (step,)))):
                steps.append(step)
            else:
                there = ", ".join(map(str, kept)) or "none"
                skipped.append(f"{item.name}: no weights at step {step}; kept: {there}")
        if steps:
            owed = list(owed_evaluations(cell, asked, tuple(steps)))
            found.append(CellRun(item.name, cell, item.run.on(EVALUATING), owed, asked, tuple(steps), study=item.study))
    if not found:
        more = f"; and {len(skipped) - 1} more cells or steps" if len(skipped) > 1 else ""
        raise InputError(": ".join(["nothing can be measured", *skipped[:1]]) + more)
    return Selection(found, skipped)


def cost(items: Sequence[CellRun], trained: Sequence[CellRun]) -> Cost:
    """What the items of a selection cost.

    Args:
        items: of a `Selection`.
        trained: all cells of the study, whose records say how long sampling and scoring takes.
    """
    speeds = [speed for item in trained for speed in _gmacs_per_s(item)]
    total, left, gmacs = 0, 0, 0.0
    for item in items:
        owed = item.asked
        missing = item.run.missing_evaluations(list(owed))
        total, left = total + len(owed), left + len(missing)
        passes = sum(sampling_passes(e, item.cell.diffusion) for e in sampled(owed[key] for key in missing))
        gmacs += passes * count_cell(item.cell).macs / 1e9
    seconds = gmacs / (median(speeds) if speeds else ASSUMED_GMACS_PER_S)
    searches = left > 0 and any(item.search for item in items)
    return Cost(total, total - left, gmacs, seconds, measured=bool(speeds), at_most=searches)


def _gmacs_per_s(item: CellRun) -> list[float]:
    """Sampling speed of a cell's evaluations, scoring included; of those that made all their samples at once."""
    found = []
    for record in item.run.all_measured().values():
        evaluation = Evaluation.model_validate(record["evaluation"])
        if record.get("seconds") and record.get("drawn", evaluation.samples) == evaluation.samples:
            passes = sampling_passes(evaluation, item.cell.diffusion)
            found.append(record["macs"] / 1e9 * passes / record["seconds"])
    return found


def of_evaluating(item: CellRun) -> CellRun:
    """The same cell on the track of evaluations, owing nothing."""
    return CellRun(item.name, item.cell, item.run.on(EVALUATING), [])


def at_work(items: Sequence[CellRun]) -> list[CellRun]:
    """Those of the cells that `evaluate` measures now, or is about to, on that track."""
    return [item for item in map(of_evaluating, items) if item.now.state in ACTIVE]
