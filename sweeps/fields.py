"""What a sweep file may set: the tables of a TOML document, and the fields of a cell by their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydantic import BaseModel

from harness.errors import InputError, did_you_mean
from harness.spec.data import Data
from harness.spec.diffusion import OBJECTIVES, DiffusionSpec, spec_of
from harness.spec.kinds import Kind
from harness.spec.model import NETWORKS, ModelSpec
from harness.spec.seeds import Seeds
from harness.spec.training import Training
from sweeps.budgets import BUDGET

SECTIONS: dict[str, type[BaseModel]] = {
    "seeds": Seeds,
    "model": ModelSpec,
    "diffusion": DiffusionSpec,
    "data": Data,
    "training": Training,
}

#: One setting of an axis: dotted field name -> value.
Setting = dict[str, Any]


@dataclass(frozen=True)
class Fields:
    """The fields that a sweep may set; they depend on the networks and objectives that it names.

    Attributes:
        sections: names of the fields of each section of a cell.
        sizes: named sizes: the fields of `model` that each one sets.
    """

    sections: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Fields:
        """The fields for this document; if it names several networks or objectives, the fields of all of them."""
        networks = [NETWORKS.facts(name).Spec for name in _named(document, ModelSpec, "model", "network", NETWORKS)]
        objectives = [spec_of(name) for name in _named(document, DiffusionSpec, "diffusion", "objective", OBJECTIVES)]
        sections = {section: tuple(spec.model_fields) for section, spec in SECTIONS.items()}
        sections["training"] += (BUDGET.rpartition(".")[2],)
        for section, specs in (("model", networks), ("diffusion", objectives)):
            sections[section] = tuple(dict.fromkeys(field for spec in specs for field in spec.model_fields))
        return cls(sections, {size: fields for spec in reversed(networks) for size, fields in spec.sizes.items()})

    def setting(self, field: str, value: Any, key: str) -> Setting:
        """One field and value as dotted names; `size` sets several fields.

        Raises:
            InputError: no such field or size; `key` names it.
        """
        if self.sizes and field in ("size", "model.size"):
            if not isinstance(value, str) or value not in self.sizes:
                raise InputError(f"{key}: unknown size {value!r}; allowed: {', '.join(self.sizes)}")
            return {f"model.{name}": number for name, number in self.sizes[value].items()}
        return {self._dotted(field, key): value}

    def names(self, field: str) -> bool:
        """Whether a sweep may set this field of a cell."""
        section, _, leaf = field.rpartition(".")
        if field in ("size", "model.size"):
            return bool(self.sizes)
        return leaf in self.sections.get(section, ()) or field == "seed" or field in chain(*self.sections.values())

    @property
    def known(self) -> list[str]:
        """The names of all fields of a cell that a sweep may set."""
        return [*(["size"] if self.sizes else []), "seed", *chain(*self.sections.values())]

    def settings(self, table: Mapping[str, Any], key: str | None = None) -> Setting:
        """The settings of a table of fields and values.

        Raises:
            InputError: no such field, or one that is set twice; `key` names the table, by default the field.
        """
        found: Setting = {}
        for field, value in table.items():
            setting = self.setting(field, value, key or field)
            for name in setting:
                if name in found:
                    raise InputError(f"{key or field}: {name} is set twice; keep one of them")
            found |= setting
        return found

    def _dotted(self, field: str, key: str) -> str:
        section, _, leaf = field.rpartition(".")
        if leaf in self.sections.get(section, ()):
            return field
        size = ["size"] if self.sizes else []
        if section in self.sections:
            allowed = [*self.sections[section], *(size if section == "model" else [])]
            raise InputError(
                f"{key}: unknown key{did_you_mean(leaf, allowed)}; allowed in {section}: {', '.join(allowed)}"
            )
        dotted = {name: f"{section}.{name}" for section, names in self.sections.items() for name in names}
        dotted["seed"] = "seed"
        if field not in dotted:
            allowed = [*size, *sorted(dotted)]
            near = did_you_mean(leaf, allowed)
            raise InputError(f"{key}: {field!r} is no field of a cell{near}; allowed: {', '.join(allowed)}")
        return dotted[field]


def _named(document: Mapping[str, Any], base: type[BaseModel], section: str, tag: str, kind: Kind[Any]) -> list[str]:
    """The values of a field that decides which others there are: known ones, or its default.

    In a list of tables of which only some name it, the others have the default.
    """
    default, grid = str(base.model_fields[tag].default), table_of(document, "grid")

    def given(table: Mapping[str, Any]) -> list[Any]:
        values = [table[key] for key in (tag, f"{section}.{tag}") if key in table]
        return [name for value in values for name in (value if isinstance(value, list) else [value])]

    names = given(table_of(document, section)) + given(grid)
    for axis in grid.values():
        found = [given(entry) for entry in axis if isinstance(entry, dict)] if isinstance(axis, list) else []
        names += [name for entry in found for name in entry or [default]] if any(found) else []
    return [name for name in names if name in kind.names] or [default]


def table_of(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table of the document; empty where it has none.

    Raises:
        InputError: it is no table.
    """
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"{key}: should be a table [{key}] (got {value!r})")
    return value


def tables_of(document: Mapping[str, Any], key: str, path: str = "") -> list[dict[str, Any]]:
    """A list of tables of the document; empty where it has none. `path` is what messages call it.

    Raises:
        InputError: it is no list of tables.
    """
    value = document.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InputError(f"{path or key}: should be tables [[{path or key}]] (got {value!r})")
    return value
