"""Kept weights measured again, otherwise: which evaluations are asked for, of which cells, and what they cost.

Never trains. Its jobs claim on a track of their own (see `harness.runs`), so they run beside a training of the same
cell, and are launched, resumed and taken over as those of a training are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from harness.errors import InputError
from harness.files import read_json
from harness.launch.plan import ASSUMED_GMACS_PER_S, sampling_passes
from harness.model.cost import closed_form_macs
from harness.runs.attempts import EVALUATING
from harness.runs.cellruns import CellRun, owed_evaluations
from harness.runs.state import State
from harness.spec.evaluation import Evaluation
from sweeps.grid import Sweep, check_evaluation
from sweeps.protocols import Origin, evaluations, named

#: Fields of an evaluation that take several values, as texts with commas between: how one value is read, in words.
_KINDS: dict[str, tuple[type[int] | type[float] | type[str], str]] = {
    "samples": (int, "whole numbers"),
    "sampler": (str, "names"),
    "sampling_steps": (int, "whole numbers"),
    "guidance": (float, "numbers"),
    "guidance_channels": (str, "names"),
    "labels": (str, "names"),
    "extractor": (str, "names"),
    "reference": (str, "names"),
    "seed": (int, "whole numbers"),
}

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
    """Of a selection: measurements, those done already, and of the others sampling compute and seconds on one slot.

    `measured` says whether records of the study tell the speed.
    """

    total: int
    done: int
    sampling_gmacs: float
    seconds: float
    measured: bool


def values(text: str, field: str) -> list[Any]:
    """The values in a text with commas between, such as "16,32,64".

    Raises:
        InputError: one line naming the option.
    """
    kind, words = _KINDS.get(field, (int, "whole numbers"))
    try:
        found = [kind(part.strip()) for part in text.split(",")]
        if "" in found:
            raise ValueError(text)
    except ValueError:
        option = f"--{field.replace('_', '-')}"
        raise InputError(f"{option}: {text!r}; allowed: {words} with commas between, none empty") from None
    return found


def with_evaluations(sweep: Sweep, protocol: str | None, options: Mapping[str, str | bool | None]) -> Sweep:
    """The sweep with the evaluations asked for in place of its own.

    Args:
        sweep: its first evaluation is what the options change.
        protocol: a name, to start from that instead.
        options: texts with commas between by field, whose product is meant; a flag for ema. None: as it is.

    Raises:
        InputError: an unknown protocol, a malformed list, or an evaluation that some cell cannot have.
    """
    source = named(protocol, sweep.protocols, "--protocol") if protocol is not None else None
    fields = dict(source.fields) if source else sweep.evaluations[0].model_dump()
    fields.pop("at", None)
    for field, given in options.items():
        if given is not None:
            fields[field] = values(given, field) if isinstance(given, str) else given
    asked = tuple(evaluations(fields, _KEY))
    changed = replace(sweep, evaluations=asked, origins=tuple(Origin("evaluation", source) for _ in asked))
    for _, cell in sweep.cells():
        for evaluation in changed.evaluations_of(cell):
            check_evaluation(_KEY, evaluation, cell)
    return changed


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
        kept = set(item.run.weights_steps())
        steps = []
        for step in sorted(set(at or (cell.training.steps,))):
            # what is measured already needs no weights: they may be left out of a clone
            if step in kept or not item.run.missing_evaluations(list(owed_evaluations(cell, asked, (step,)))):
                steps.append(step)
            else:
                there = ", ".join(map(str, sorted(kept))) or "none"
                skipped.append(f"{item.name}: no weights at step {step}; kept: {there}")
        if steps:
            owed = list(owed_evaluations(cell, asked, tuple(steps)))
            found.append(CellRun(item.name, cell, item.run.on(EVALUATING), owed, asked, tuple(steps)))
    if not found:
        more = f"; and {len(skipped) - 1} more cells or steps" if len(skipped) > 1 else ""
        raise InputError(f"nothing can be measured: {skipped[0]}{more}" if skipped else "nothing can be measured")
    return Selection(found, skipped)


def cost(items: Sequence[CellRun], trained: Sequence[CellRun]) -> Cost:
    """What is left to do.

    Args:
        items: of a `Selection`.
        trained: all cells of the study, whose records tell how long sampling and scoring takes.
    """
    speeds = [speed for item in trained for speed in _gmacs_per_s(item)]
    speed = median(speeds) if speeds else ASSUMED_GMACS_PER_S
    total = left = 0
    gmacs = 0.0
    for item in items:
        owed = owed_evaluations(item.cell, item.evaluations, item.steps)
        missing = item.run.missing_evaluations(list(owed))
        total, left = total + len(owed), left + len(missing)
        passes = sum(sampling_passes(owed[key][0]) for key in missing)
        gmacs += passes * closed_form_macs(item.cell.model, item.cell.data.shape) / 1e9
    return Cost(total, total - left, gmacs, gmacs / speed, bool(speeds))


def _gmacs_per_s(item: CellRun) -> list[float]:
    """Sampling speed of a cell's evaluations, scoring included."""
    found = []
    for path in item.run.evaluation_files():
        record = read_json(path)
        if record is not None and record.get("seconds"):
            evaluation = Evaluation.model_validate(record["evaluation"])
            found.append(record["macs"] / 1e9 * sampling_passes(evaluation) / record["seconds"])
    return found


def of_evaluating(item: CellRun) -> CellRun:
    """The same cell on the track of evaluations, owing nothing."""
    return CellRun(item.name, item.cell, item.run.on(EVALUATING), [])


def at_work(items: Sequence[CellRun]) -> list[CellRun]:
    """Those of the cells that `evaluate` is measuring, or about to, on that track."""
    return [item for item in map(of_evaluating, items) if item.now.state in (State.QUEUED, State.RUNNING)]
