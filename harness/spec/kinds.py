"""Registries of what a sweep chooses by name: blocks, networks, objectives, data sets, extractors, executors.

A built-in object has one line in its spec: its name, where its code is, and what must be known about it before torch is
imported. A sweep may also name the user's own files (see `harness.spec.extension`). The objects in their dicts, such as
BLOCKS, are used like the built-in ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Facts(Protocol):
    """What the spec knows about a built-in object."""

    @property
    def at(self) -> str:
        """Where its code is: "package.module:attribute"."""


def imported(at: str) -> Any:
    """The object at a place, "package.module:attribute"; imports its module."""
    module, _, attribute = at.partition(":")
    return getattr(import_module(module), attribute)


FactsT = TypeVar("FactsT", bound=Facts)


class Kind(Generic[FactsT]):
    """The registry of one kind; `Annotated[str, KIND]` is the type of a field that names an object of it.

    Args:
        table: name of the dict in a user's file.
        built_in: facts by name. An object in a user's file has the same facts, except `at`, as attributes.
        noun: what messages call such an object; by default pydantic's own words.
    """

    #: All kinds, by `table`.
    tables: dict[str, Kind[Any]] = {}  # noqa: RUF012  # one for all kinds, not one a kind

    #: How often an object was added to any kind: what is remembered of a spec holds until then, for a name may mean
    #: something else afterwards.
    additions: ClassVar[int] = 0

    def __init__(self, table: str, built_in: Mapping[str, FactsT], noun: str | None = None) -> None:
        self.table = table
        self.built_in = built_in
        self._noun = noun
        self._added: dict[str, tuple[Any, str]] = {}  # by users' files: the object, and the hash of its file
        Kind.tables[table] = self

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the built-in ones first."""
        return (*self.built_in, *self._added)

    def missing(self, value: Any) -> list[str]:
        """Names of the facts that `value`, an object in a user's file, lacks."""
        facts = dict.fromkeys(name for known in self.built_in.values() for name in type(known).__annotations__)
        return [name for name in facts if name != "at" and not hasattr(value, name)]

    def add(self, name: str, value: Any, content_hash: str) -> None:
        """Register an object of a user's file."""
        self._added[name] = (value, content_hash)
        Kind.additions += 1

    def facts(self, name: str) -> FactsT:
        """Its facts; imports nothing."""
        return cast(FactsT, self._added[name][0]) if name in self._added else self.built_in[name]

    def load(self, name: str) -> Any:
        """The object itself; imports its module."""
        if name in self._added:
            return self._added[name][0]
        return imported(self.built_in[name].at)

    def identity(self, name: str | None) -> str | None:
        """What an id holds for the name: the name, and the content hash of a user's file."""
        return f"{name}#{self._added[name][1]}" if name in self._added else name

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        """Accept the known names; an error lists them."""
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: Any) -> Any:
        if not isinstance(name, str) or name in self.names:  # no name: nothing, or a table with a recipe
            return name
        if self._noun is not None:
            raise ValueError(f"unknown {self._noun} {name!r}; allowed: {', '.join(self.names)}")
        *others, last = map(repr, self.names)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
