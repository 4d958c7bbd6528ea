"""The base of all specs, ids, and validation errors in one line.

An id hashes the fields that differ from the schema's defaults, so a field added later with a default leaves every
older id unchanged. Therefore a default never changes; a new behaviour is a new value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import InputError, did_you_mean
from harness.spec.kinds import Kind

ID_DIGITS = 12

SpecT = TypeVar("SpecT", bound=BaseModel)


class Spec(BaseModel):
    """Base of all specs: frozen, unknown keys refused, scalars strict, floats finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _differences(spec: BaseModel) -> dict[str, Any]:
    """What differs from the schema's defaults; required fields always count."""
    out: dict[str, Any] = {}
    for name, default, kind in _fields(type(spec)):
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            if nested := _differences(value):
                out[name] = nested
        elif value != default:
            out[name] = kind.identity(value) if kind else _canonical(value)
    return out


@cache
def _fields(spec: type[BaseModel]) -> list[tuple[str, Any, Kind[Any] | None]]:
    """Name, default and kind of each field; what is required has a default that equals nothing."""
    return [
        (
            name,
            object() if field.is_required() else field.get_default(call_default_factory=True),
            next((given for given in field.metadata if isinstance(given, Kind)), None),
        )
        for name, field in spec.model_fields.items()
    ]


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        return value + 0.0  # turns -0.0 into 0.0
    if isinstance(value, tuple):
        return [_canonical(v) for v in value]
    return value


def canonical_json(spec: BaseModel) -> str:
    """Canonical JSON of what differs from the defaults: sorted keys, no spaces, no NaN."""
    return json.dumps(_differences(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)


def spec_id(spec: BaseModel) -> str:
    """First 12 hex digits of sha256 over `canonical_json`."""
    return _spec_id(spec, Kind.additions)


@lru_cache(maxsize=100_000)  # a sweep needs the id of a cell often, and that of an evaluation for every cell
def _spec_id(spec: BaseModel, additions: int) -> str:
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:ID_DIGITS]


def spec_of_kind(value: Any, base: type[SpecT], tag: str, spec_of: Callable[[str], type[SpecT]]) -> SpecT:
    """The spec that a table asks for, where one field decides which other fields there are.

    Args:
        value: the table, or a spec.
        base: of all such specs.
        tag: the field, such as "network".
        spec_of: the spec of a value of it.

    Raises:
        ValueError: no table, an unknown value of the tag, or a field that its spec does not have.
    """
    if isinstance(value, base):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"should be a table (got {value!r})")
    name = getattr(base.model_validate({key: name for key, name in value.items() if key == tag}), tag)
    spec = spec_of(name)
    if unknown := [key for key in value if key not in spec.model_fields]:
        raise ValueError(
            f"{', '.join(unknown)}: unknown key of {tag} {name}{did_you_mean(unknown[0], spec.model_fields)}; "
            f"allowed: {', '.join(spec.model_fields)}"
        )
    return spec.model_validate(value)


#: What a value should be, by the type of pydantic's error; other errors keep pydantic's words.
_SHOULD_BE = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a table"),
    "string_type": "a text",
}


def describe_validation_error(error: ValidationError, prefix: str = "", spec: type[BaseModel] | None = None) -> str:
    """One line of a pydantic error: the key, what is wrong, what is allowed; the `spec` tells which keys there are."""
    parts = []
    for item in error.errors():
        key = ".".join(str(p) for p in (prefix, *item["loc"]) if p != "")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            allowed = _spec_at(spec, item["loc"]).model_fields if spec else ()
            message = f"unknown key{did_you_mean(str(item['loc'][-1]), allowed)}"
            message += f"; allowed: {', '.join(allowed)}" if allowed else ""
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"] in ("union_tag_not_found", "union_tag_invalid"):
            message = "needs a kind; allowed: 'pretrained', 'trained'"  # the one union there is: vae
        elif "ctx" not in item or "error" not in item["ctx"]:
            should = _SHOULD_BE.get(item["type"])
            message = f"should be {should}" if should else message.removeprefix("Input ")
            message = f"{message} (got {item['input']!r})"
        parts.append(f"{key}: {message}" if key else message)
    return "; ".join(parts)


def _spec_at(spec: type[BaseModel], place: tuple[int | str, ...]) -> type[BaseModel]:
    """The spec of the table that holds a key; the place of one with a kind names its kind after it."""
    for name, kind in pairwise(place):
        if name in spec.model_fields:
            tables = list(_tables(spec.model_fields[str(name)].annotation))
            of_kind = (table for table in tables if kind in _kinds(table))
            spec = next(of_kind, tables[0] if tables else spec)
    return spec


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """The specs in the type of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _tables(part)


def _kinds(spec: type[BaseModel]) -> tuple[Any, ...]:
    """The values that its field `kind` may have."""
    return get_args(spec.model_fields["kind"].annotation) if "kind" in spec.model_fields else ()


def validated(spec: type[SpecT], table: Mapping[str, Any], key: str) -> SpecT:
    """A spec from a table of its fields.

    Raises:
        InputError: one line with every wrong key below `key`, what is wrong, and what is allowed.
    """
    try:
        return spec.model_validate(table)
    except ValidationError as error:
        raise InputError(describe_validation_error(error, key, spec)) from None
