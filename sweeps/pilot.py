"""A pilot: the sweep of short trainings that finds the learning rate at some widths of another sweep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.errors import InputError
from harness.spec.cell import Cell
from harness.spec.training import Training
from sweeps.cells import Grid
from sweeps.grid import Sweep
from sweeps.rules import Rule
from sweeps.text import settings_of

#: A pilot trains for one step in so many.
SHORTER = 4

#: Seeds of each rate.
SEEDS = 2

#: The rates, as multiples of the sweep's own.
_MULTIPLES = (1 / 9, 1 / 3, 1, 3, 9)

_RATE = "training.learning_rate"


def widths(sweep: Sweep) -> dict[int, Cell]:
    """The cheapest cell of every width, the smallest width first.

    Only cells with the data, objective and network of the first one that has a width, and with its recipe apart from
    steps, batch and learning rate.

    Raises:
        InputError: there are fewer than two widths.
    """
    found: dict[int, Cell] = {}
    shared = None
    for _, cell in sweep.cells():
        width = getattr(cell.model, "width", None)
        if not isinstance(width, int):
            continue
        alike = (cell.data, cell.diffusion, cell.model.network, _recipe(cell))
        shared = shared or alike
        if alike == shared and (width not in found or _price(cell) < _price(found[width])):
            found[width] = cell
    if len(found) < 2:
        have = f"width {next(iter(found))} alone" if found else "no width"
        raise InputError(f"{sweep.path}: a pilot compares widths, and its cells have {have}; needed: two or more")
    return dict(sorted(found.items()))


def rates_around(cells: Sequence[Cell]) -> tuple[float, ...]:
    """Five rates around those of the cells, each three times the one before."""
    product = 1.0
    for cell in cells:
        product *= cell.training.learning_rate ** (1 / len(cells))
    return tuple(float(f"{product * multiple:.2g}") for multiple in _MULTIPLES)


def pilot(sweep: Sweep, cells: Sequence[Cell], rates: Sequence[float]) -> Sweep:
    """The pilot of a sweep: every cell at every rate, for a quarter of its steps, with two seeds.

    What the recipe counts in steps is a quarter too: the warm-up, and the reach of the averaged weights.
    """
    short = [_short(cell) for cell in cells]
    given = [settings_of(cell, without={"seed": True, "seeds": True, "training": {"learning_rate"}}) for cell in short]
    base = {name: value for name, value in given[0].items() if all(other.get(name) == value for other in given)}
    own = dict.fromkeys(name for fields in given for name in fields if name not in base)
    shapes = tuple({name: _value(cell, name) for name in own} for cell in short)
    axes = {
        "shape": shapes,
        "rate": tuple({_RATE: rate} for rate in rates),
        "seed": tuple({"seed": seed} for seed in _seeds(sweep)),
    }
    return replace(
        sweep,
        study=f"{sweep.study}-pilot",
        title=f"Learning rates for: {sweep.title}",
        grid=Grid(sweep.path, base, axes),
        evaluations=(),
        origins=(),
        protocols={},
        recording=sweep.recording.model_copy(update={"loss_steps": ()}),
        rules=tuple(_rule(rule, cells) for rule in sweep.rules if any(map(rule.fits, cells))),
    )


def _recipe(cell: Cell) -> dict[str, Any]:
    free = {"steps", "batch_size", "learning_rate", "warmup_steps"}
    return cell.training.model_dump(exclude=free)


def _price(cell: Cell) -> float:
    return cell.model.macs_proxy(cell.data.shape) * cell.training.batch_size * cell.training.steps


def _short(cell: Cell) -> Cell:
    """The cell with a quarter of its steps."""
    recipe = cell.training
    times: dict[str, float] = {
        "steps": -(-recipe.steps // SHORTER),
        "warmup_steps": recipe.warmup_steps // SHORTER,
    }
    if recipe.ema_window is None:
        times["ema_decay"] = max(0.0, round(1 - SHORTER * (1 - recipe.ema_decay), 12))
    training = Training.model_validate({**recipe.model_dump(), **times})
    return cell.model_copy(update={"training": training})


def _value(cell: Cell, name: str) -> Any:
    section, _, leaf = name.partition(".")
    return getattr(getattr(cell, section), leaf)


def _seeds(sweep: Sweep) -> list[int]:
    """The first two of the sweep; where it has one only, the next number too."""
    seeds = list(dict.fromkeys(cell.seed for _, cell in sweep.cells()))[:SEEDS]
    return seeds if len(seeds) == SEEDS else [*seeds, *(seeds[-1] + more for more in range(1, SEEDS))]


def _rule(rule: Rule, cells: Sequence[Cell]) -> Rule:
    """The rule with the values alone that one of these cells has: a sweep must have all that its rules name."""
    conditions = []
    for condition in rule.conditions:
        kept = [pair for pair in condition.allowed if any(replace(condition, allowed=(pair,)).fits(c) for c in cells)]
        conditions.append(replace(condition, allowed=tuple(kept)))
    return replace(rule, conditions=tuple(conditions))
