"""A TOML file as Python values, or one line that says why not; and values as TOML."""

from __future__ import annotations

import json
import re
import reprlib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import InputError


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a byte order mark is skipped.

    Raises:
        InputError: no such file, no TOML, or a number that TOML does not allow; one line that names the file.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such sweep file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # also thousands of digits, or of brackets
        raise InputError(f"{path}: not valid TOML: {error}") from None
    _check_numbers(path, document)
    return document


def _check_numbers(path: Path, value: Any, key: str = "") -> None:
    """TOML's whole numbers have 64 bits, Python's any number of digits."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_numbers(path, inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(path, inner, key)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{path}: {key}: {reprlib.repr(value)}; allowed: whole numbers of 64 bits")


def toml_lines(table: Mapping[str, Any]) -> list[str]:
    """The lines of a table."""
    return [f"{_key(name)} = {as_toml(value)}" for name, value in table.items()]


def table_lines(table: Mapping[str, Any]) -> list[str]:
    """As `toml_lines`; each table of a list has a line of its own."""
    lines: list[str] = []
    for name, value in table.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            lines += [f"{name} = [", *(f"    {as_toml(each)}," for each in value), "]"]
        else:
            lines += toml_lines({name: value})
    return lines


def as_toml(value: Any) -> str:
    """A value as TOML, which writes texts, numbers, booleans and lists as JSON does."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(toml_lines(value))} }}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
