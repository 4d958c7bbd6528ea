"""The user's own files that a sweep names (`extend`). What they define is used like what is built in."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import traceback
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from harness.errors import InputError
from harness.spec.identity import ID_DIGITS
from harness.spec.kinds import Kind


@dataclass(frozen=True)
class Extension:
    """A Python file: its name as in the sweep, and its content."""

    name: str
    text: str

    @property
    def content_hash(self) -> str:
        """First 12 hex digits of sha256; part of the id of whatever uses the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:ID_DIGITS]

    def __reduce__(self) -> tuple[Any, ...]:
        """Unpickling loads the file: what is unpickled next may be an instance of a class that it defines."""
        return _unpickled, (self.name, self.text)

    def load(self) -> None:
        """Run the file and register what its dicts BLOCKS, NETWORKS, OBJECTIVES, ... define. It may be called twice.

        Raises:
            InputError: it fails, defines nothing or a name that is built in, or one of its objects lacks a fact.
        """
        module = ModuleType(f"dit_harness_extension_{self.content_hash}")
        module.__file__ = self.name
        if module.__name__ in sys.modules:
            module = sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = module  # dataclasses and pydantic look themselves up there
            try:
                exec(compile(self.text, self.name, "exec"), module.__dict__)
            except Exception as error:
                del sys.modules[module.__name__]
                line = traceback.extract_tb(error.__traceback__)[-1].lineno if error.__traceback__ else None
                line = error.lineno if isinstance(error, SyntaxError) else line
                raise InputError(f"extend: {self.name}, line {line}: {type(error).__name__}: {error}") from error
        found = {
            table: getattr(module, table) for table in Kind.tables if isinstance(getattr(module, table, None), dict)
        }
        if not any(found.values()):
            raise InputError(
                f"extend: {self.name} defines nothing; allowed: a dict named {', '.join(sorted(Kind.tables))}"
            )
        for table, entries in found.items():
            for name, value in entries.items():
                if name in Kind.tables[table].built_in:
                    raise InputError(f"extend: {self.name}: {table}: {name!r} is built in; choose another name")
                if missing := Kind.tables[table].missing(value):
                    raise InputError(f"extend: {self.name}: {table}: {name!r} lacks {', '.join(missing)}")
                Kind.tables[table].add(name, value, self.content_hash)


def _unpickled(name: str, text: str) -> Extension:
    extension = Extension(name, text)
    with contextlib.suppress(InputError):  # an explicit `load` reports the error
        extension.load()
    return extension
