"""What the fields of a spec are, for the command line and the docs: type, default, bounds, allowed names, help."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from harness.spec.kinds import Kind

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True)
class FieldFacts:
    """One field of a spec.

    Attributes:
        name: as in a sweep file.
        types: of its value, or of the items of a list; `str` for a choice of names; a spec for a table.
        many: whether it is a list.
        required: whether it has no default.
        default: None for a required field, and for one whose absence has its own meaning.
        bounds: of a number, for example "x>=1"; otherwise empty.
        allowed: the names to choose from; empty if any text is allowed.
        help: what it means.
        marks: what else the spec says about it: `format` ("path"), `executor` (the one that reads it).
    """

    name: str
    types: tuple[type, ...]
    many: bool
    required: bool
    default: Any
    bounds: str
    allowed: tuple[str, ...]
    help: str
    marks: dict[str, Any]


def fields_of(spec: type[BaseModel]) -> dict[str, FieldFacts]:
    """The fields of a spec by name, in its order."""
    return {name: _facts(name, field) for name, field in spec.model_fields.items()}


def _facts(name: str, field: FieldInfo) -> FieldFacts:
    parts = [*_parts(field.annotation), *field.metadata]
    types = dict.fromkeys(part if isinstance(part, type) else str for part in parts if isinstance(part, (type, str)))
    kinds = [part for part in parts if isinstance(part, Kind)]
    return FieldFacts(
        name=name,
        types=tuple(types),
        many=get_origin(field.annotation) is tuple,
        required=field.is_required(),
        default=None if field.is_required() else field.default,
        bounds=_bounds(parts, whole=int in types),
        allowed=(*(name for kind in kinds for name in kind.names), *(part for part in parts if isinstance(part, str))),
        help=field.description or "",
        marks=field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {},
    )


def _parts(annotation: Any) -> Iterator[Any]:
    """The parts of an annotation: types, texts of `Literal`, and marks; without None."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from inner
    elif origin is Annotated:
        yield from _parts(inner[0])
        for mark in inner[1:]:
            yield from mark.metadata if isinstance(mark, FieldInfo) else [mark]
    elif origin in (Union, UnionType, tuple):
        for part in inner:
            yield from () if part in (type(None), ...) else _parts(part)
    else:
        yield annotation


def _bounds(parts: list[Any], *, whole: bool) -> str:
    """The bounds of a field from its parts, as "x>=0, x<1"; for a whole number "x>0" is written "x>=1"."""
    found = []
    for key, sign in _SIGNS.items():
        for limit in (value for part in parts if (value := getattr(part, key, None)) is not None):
            found.append(f"x>={limit + 1}" if whole and key == "gt" else f"x{sign}{limit}")
    return ", ".join(found)
