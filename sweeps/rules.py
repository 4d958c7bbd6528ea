"""Which cells run on other resources than the rest: the tables [[resources.for]] of a sweep file.

Such a table names fields of a cell (which cells; a list allows several values) and fields of the resources.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import InputError, did_you_mean
from harness.spec.cell import Cell
from harness.spec.resources import Resources
from sweeps.fields import Fields, Setting

#: Fields of `Resources` that one launch has once: who runs the cells, how many at once, and where the files are.
ONCE = frozenset(
    (
        *("executor", "slots", "max_parallel", "data_folder", "data_download"),
        *("inception_weights", "dinov2_weights", "adm_reference"),
    )
)


@dataclass(frozen=True)
class Condition:
    """A field of a cell as the file names it, and the values that it may have, each with what it sets."""

    field: str
    allowed: tuple[tuple[Any, Setting], ...]

    def fits(self, cell: Cell) -> bool:
        """Whether the cell has one of the values."""
        return any(_has(cell, setting) for _, setting in self.allowed)


@dataclass(frozen=True)
class Rule:
    """The cells that meet all conditions run on these fields of `Resources`; `key` is what messages call the rule."""

    key: str
    conditions: tuple[Condition, ...]
    resources: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, int]]

    def fits(self, cell: Cell) -> bool:
        """Whether it is a rule for this cell."""
        return all(condition.fits(cell) for condition in self.conditions)

    def without(self, names: Collection[str]) -> Rule:
        """The rule without these resources."""
        return replace(self, resources={name: value for name, value in self.resources.items() if name not in names})

    def check(self, cells: Sequence[Cell]) -> None:
        """Check that the grid has every value that the rule names, and a cell that meets all conditions.

        Raises:
            InputError: it has not.
        """
        for condition in self.conditions:
            for value, setting in condition.allowed:
                if not any(_has(cell, setting) for cell in cells):
                    found = ", ".join(self._values(condition, cells)) or "none here: name another field, such as depth"
                    raise InputError(
                        f"{self.key}.{condition.field}: no cell of the grid has {value!r}; allowed: {found}"
                    )
        if not any(map(self.fits, cells)):
            names = ", ".join(condition.field for condition in self.conditions)
            raise InputError(f"{self.key}: no cell of the grid has these values of {names} together")

    def _values(self, condition: Condition, cells: Sequence[Cell]) -> list[str]:
        """The values of the condition's field in the grid."""
        if condition.field.rpartition(".")[2] == "size":
            sizes = {f"{size!r}": {f"model.{k}": v for k, v in of.items()} for size, of in self.sizes.items()}
            return [size for size, setting in sizes.items() if any(_has(cell, setting) for cell in cells)]
        field = next(iter(condition.allowed[0][1]))
        return list(dict.fromkeys(repr(_value(cell, field)) for cell in cells))


def rules(tables: Sequence[Mapping[str, Any]], fields: Fields) -> tuple[Rule, ...]:
    """The rules of a sweep file.

    Raises:
        InputError: a key is no field of a cell or of the resources, or its value is not allowed.
    """
    return tuple(_rule(table, f"resources.for {number}", fields) for number, table in enumerate(tables, 1))


def _rule(table: Mapping[str, Any], key: str, fields: Fields) -> Rule:
    conditions, resources = [], {}
    each = [name for name in Resources.model_fields if name not in ONCE]
    for field, value in table.items():
        if field in ONCE:
            raise InputError(f"{key}.{field}: holds for the whole sweep, under [resources]; allowed: {', '.join(each)}")
        if field in each:
            resources[field] = value
        elif not fields.names(field):
            allowed = "a field of a cell, such as size or patch_size, or of the resources"
            near = did_you_mean(field, [*each, *fields.known])
            raise InputError(f"{key}.{field}: unknown key{near}; allowed: {allowed}: {', '.join(each)}")
        else:
            values = value if isinstance(value, list) else [value]
            if not values:
                raise InputError(f"{key}.{field}: is an empty list")
            settings = tuple((single, fields.setting(field, single, f"{key}.{field}")) for single in values)
            conditions.append(Condition(field, settings))
    if not conditions:
        raise InputError(f'{key}: says for no cells; name a field of theirs, such as size = "XL"')
    if not resources:
        raise InputError(f"{key}: sets no resource; allowed: {', '.join(each)}")
    return Rule(key, tuple(conditions), resources, fields.sizes)


def _has(cell: Cell, setting: Setting) -> bool:
    return all(_value(cell, field) == value for field, value in setting.items())


def _value(cell: Cell, field: str) -> Any:
    """The value of a dotted field; None where the cell's network has no such field."""
    value: Any = cell
    for name in field.split("."):
        value = getattr(value, name, None)
    return [*value] if isinstance(value, tuple) else value  # as the file has it
