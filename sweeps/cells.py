"""The product of a grid's axes: its cells, each validated and named once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from harness.errors import InputError
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.identity import describe_validation_error, spec_id
from sweeps.budgets import BUDGET, checked_budget, steps_for
from sweeps.fields import Setting
from sweeps.rates import with_rate

#: Fields whose check needs the steps; they change no cost.
_FOLLOWS_STEPS = ("training.warmup_steps", "training.schedule")


class NamedCell(NamedTuple):
    """A cell and its readable name; the name is for people, the id of the cell is its identity."""

    name: str
    cell: Cell


@dataclass(frozen=True)
class Grid:
    """The cells are the product of the axes over `base`, without those that `exclude` drops.

    `axes` maps each axis to its settings, in the order of the file; `path` is that file, for messages.
    """

    path: Path
    base: Mapping[str, Any]
    axes: Mapping[str, tuple[Setting, ...]]
    exclude: tuple[Mapping[str, tuple[Any, ...]], ...] = ()

    @cached_property
    def cells(self) -> tuple[NamedCell, ...]:
        """All cells, the last axis fastest.

        Raises:
            InputError: a combination is not a valid cell.
        """
        return tuple(self._cells())

    @cached_property
    def sources(self) -> tuple[Data, ...]:
        """The different data that cells learn, in their order."""
        return tuple(dict.fromkeys(cell.data for _, cell in self.cells))

    def _cells(self) -> Iterator[NamedCell]:
        varying = [frozenset().union(*settings) for settings in self.axes.values()]
        for combination in product(*self.axes.values()):
            fields = dict(self.base)
            for setting in combination:
                fields.update(setting)
            if any(all(fields.get(k) in v for k, v in rule.items()) for rule in self.exclude):
                continue
            try:
                cell = _cell(with_rate(fields))
            except ValidationError as error:
                point = _point(error, {k: v for setting in combination for k, v in setting.items()})
                raise InputError(f"{self.path}: {describe_validation_error(error, spec=Cell)}{point}") from None
            yield NamedCell(_readable_name(cell, varying, fields.get(BUDGET)), cell)


def _cell(fields: Mapping[str, Any]) -> Cell:
    budget, own = checked_budget(fields), {name: value for name, value in fields.items() if name != BUDGET}
    if budget is None:
        return Cell.model_validate(_nested(own))
    recipe = {name: value for name, value in own.items() if name not in _FOLLOWS_STEPS}
    steps = steps_for(Cell.model_validate(_nested(recipe)), budget)
    return Cell.model_validate(_nested({**own, "training.steps": steps}))


def _point(error: ValidationError, settings: Setting) -> str:
    """Where in the grid an error is, by the settings that have to do with it; empty where no axis has."""
    shown: set[str] = set()
    for item in error.errors():
        # what is missing may be due to another field of its table
        place = ".".join(map(str, item["loc"][: -1 if item["type"] == "missing" else None]))
        below = {field for field in settings if not place or f"{field}.".startswith(f"{place}.")}
        if item["type"] == "value_error":  # of several fields together, which its message names
            words = set(re.findall(r"\w+", item["msg"]))
            below = {field for field in below if field.rpartition(".")[2] in words}
        shown |= below
    point = ", ".join(f"{field}={value}" for field, value in settings.items() if field in shown)
    return f" (at {point})" if point else ""


def _readable_name(cell: Cell, varying: Sequence[frozenset[str]], budget: float | None) -> str:
    """What differs between cells; `varying` are the fields that each axis sets. A cell has steps, its name a budget."""
    model = cell.model
    parts = [model.readable_name]
    follows = {f"model.{field}": f"model.{other}" for field, other in model.follows.items()}
    varied = {field for axis in varying for field in axis if follows.get(field) not in axis}
    for field in sorted(varied - {f"model.{name}" for name in model.named}):
        section, _, leaf = field.rpartition(".")
        if section == "model" and not hasattr(model, leaf):  # of another network
            continue
        if field == BUDGET:
            parts.append(f"{leaf}{budget:g}".replace("e+", "e"))
            continue
        value = getattr(getattr(cell, section), leaf) if section else getattr(cell, leaf)
        if isinstance(value, BaseModel):  # a VAE
            value = spec_id(value)[:6]
        parts.append(str(value) if isinstance(value, str) else f"{leaf}{value}")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts))


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {"model": {}}
    for field, value in fields.items():
        section, _, leaf = field.rpartition(".")
        (out.setdefault(section, {}) if section else out)[leaf] = value
    return out
