"""What can be more than one and is chosen by name: blocks, networks, objectives, data sets, extractors, executors.

A built-in one is a line in its spec: its name, where it is, and what must be known of it before torch is imported. A
sweep may also name files of the user's own (see `harness.spec.extension`): what stands there in a dict of the kind's
name is used like a built-in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar, cast

from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Facts(Protocol):
    """What the spec knows of a built-in one."""

    @property
    def at(self) -> str:
        """Where it is: "package.module:attribute"."""


FactsT = TypeVar("FactsT", bound=Facts)


class Kind(Generic[FactsT]):
    """One kind of thing; `Annotated[str, KIND]` is the type of a field that names one.

    Args:
        table: name of the dict in a user's file.
        built_in: facts by name. An object of a user's file has the same facts as its attributes, `at` excepted.
        noun: what messages call one; pydantic's own words by default.
    """

    #: All kinds, by `table`.
    tables: dict[str, Kind[Any]] = {}  # noqa: RUF012  # one for all kinds, not one a kind

    def __init__(self, table: str, built_in: Mapping[str, FactsT], noun: str | None = None) -> None:
        self.table = table
        self.built_in = built_in
        self._noun = noun
        self._added: dict[str, tuple[Any, str]] = {}  # of users' files: the object, and the hash of its file
        Kind.tables[table] = self

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, the built-in ones first."""
        return (*self.built_in, *self._added)

    def missing(self, value: Any) -> list[str]:
        """Names of the facts that `value`, of a user's file, lacks."""
        facts = dict.fromkeys(name for known in self.built_in.values() for name in type(known).__annotations__)
        return [name for name in facts if name != "at" and not hasattr(value, name)]

    def add(self, name: str, value: Any, content_hash: str) -> None:
        """Take up what a user's file defines."""
        self._added[name] = (value, content_hash)

    def facts(self, name: str) -> FactsT:
        """What is known of it without importing it."""
        return cast(FactsT, self._added[name][0]) if name in self._added else self.built_in[name]

    def load(self, name: str) -> Any:
        """The thing itself; imports its module."""
        if name in self._added:
            return self._added[name][0]
        module, _, attribute = self.built_in[name].at.partition(":")
        return getattr(import_module(module), attribute)

    def identity(self, name: str | None) -> str | None:
        """What stands for the name in an id: of a user's file, the content too."""
        return f"{name}#{self._added[name][1]}" if name in self._added else name

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        """Accept the known names, and say which they are."""
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str | None) -> str | None:
        if name is None or name in self.names:
            return name
        if self._noun is not None:
            raise ValueError(f"unknown {self._noun} {name!r}; allowed: {', '.join(self.names)}")
        *others, last = map(repr, self.names)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
