"""A CSV file as a typed data frame, checked against its columns: types, empty values, unknown and missing columns."""

from __future__ import annotations

import csv
import difflib
import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from harness.errors import InputError, did_you_mean
from harness.runs.columns import PUBLISHED_TITLES, Column

#: What programs put between fields instead of a comma, by what it is called.
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

#: Largest whole number of a table: all up to it are floats too.
_MOST = 2**53


def read_csv(path: Path, columns: Mapping[str, Column], common: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of a file, in the order of `columns`; columns added since it was written are empty.

    Texts are strings, "" where empty. Integers are int64 where the column is required, Int64 otherwise; numbers are
    float64 with NaN where not measured; booleans are pandas' own. `common` are the columns that a message about a table
    by hand names.

    Raises:
        InputError: file missing or no CSV, wrong columns, or a wrong value. One line: file, row, column, what is
            allowed.
    """
    header, rows = _lines(path)
    _check_header(path, header, columns, common)
    values = {name: [] for name in header} if not any(rows) else _values(path, header, rows, columns)
    count = len(values[header[0]])
    for name, column in columns.items():
        values.setdefault(name, [_empty(column)] * count)
    return pd.DataFrame({name: pd.Series(values[name], dtype=_dtype(column)) for name, column in columns.items()})


def _values(
    path: Path, header: list[str], rows: list[list[str]], columns: Mapping[str, Column]
) -> dict[str, list[Any]]:
    """The values by column. Equal texts of a column, such as names, are read once.

    Raises:
        InputError: a value that is not allowed, or a row of another length.
    """
    kept = [row for _, row in _numbered(path, header, rows)]
    values: dict[str, list[Any]] = {}
    for place, name in enumerate(header):
        texts = [row[place] for row in kept]
        known: dict[str, Any] = {}
        for text in dict.fromkeys(texts):
            try:
                known[text] = _value(columns[name], text)
            except ValueError:
                odd = next(number for number, row in _numbered(path, header, rows) if row[place] == text)
                where = f"{path}: row {odd}, column {name}: {reprlib.repr(text)}"
                raise InputError(f"{where} is not allowed; allowed: {_allowed(columns[name], text)}") from None
        values[name] = [known[text] for text in texts]
    return values


def read_numbers(path: Path, columns: Sequence[str]) -> list[npt.NDArray[np.float64]]:
    """Some columns of a table of anyone's as numbers above 0, each of shape [rows]; the others may hold anything.

    Raises:
        InputError: file missing or no CSV, no such column, no rows, or a value that is no number above 0.
    """
    header, lines = _lines(path)
    for name in columns:
        if header.count(name) != 1:
            what = "occurs twice" if name in header else f"is missing{did_you_mean(name, header)}"
            raise InputError(f"{path}: column {name!r} {what}; there are: {', '.join(header) or 'none'}")
    values: list[list[float]] = [[] for _ in columns]
    for number, row in _numbered(path, header, lines):
        for name, found in zip(columns, values, strict=True):
            text = row[header.index(name)]
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0 < value < math.inf:
                shown = reprlib.repr(text) if text.strip() else "nothing"
                raise InputError(f"{path}: row {number}, column {name}: {shown}; allowed: a number above 0")
            found.append(value)
    if not values[0]:
        raise InputError(f"{path}: has no rows; at least one run is needed")
    return [np.array(found) for found in values]


def header_of(path: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        InputError: file missing or no CSV.
    """
    return _lines(path)[0]


def _lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a CSV file as text."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            _check_separator(path, file.readline())
            file.seek(0)
            lines = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; `dit-harness collect` writes a study's tables") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from None
    return (lines[0], lines[1:]) if lines else ([], [])


def _numbered(path: Path, header: list[str], rows: list[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, by their line in the file.

    Raises:
        InputError: a row has more or fewer fields than the header.
    """
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"{path}: row {number} has {len(row)} fields; allowed: {len(header)}, as in the header")
        yield number, row


def _check_separator(path: Path, line: str) -> None:
    """Refuse what a spreadsheet saves with other separators, by its first line."""
    for mark, name in _SEPARATORS.items():
        if line.count(mark) > line.count(","):
            raise InputError(f"{path}: is saved with {name} between its fields; allowed: commas, and points in numbers")


def _check_header(path: Path, header: list[str], columns: Mapping[str, Column], common: Sequence[str]) -> None:
    for name, column in columns.items():
        if name not in header and not column.added:
            needed = ", ".join(column.name for column in columns.values() if not column.added)
            raise InputError(f"{path}: column {name} is missing; needed: {needed}")
    for name in header:
        again = header.count(name) > 1
        if again or name not in columns:
            what = "occurs twice" if again else f"is unknown: {_meant(name, columns, common)}"
            if common and not again:
                raise InputError(f"{path}: column {name!r} {what}")
            raise InputError(f"{path}: column {name!r} {what}; allowed: {', '.join(columns)}")


def _meant(name: str, columns: Mapping[str, Column], common: Sequence[str]) -> str:
    """What an unknown column may be; of a table by hand also those that it needs or mostly has."""
    if not common:
        return "a newer version may have written the table"
    known = {title.lower(): column for column, title in PUBLISHED_TITLES.items()}
    known |= {column: column for column in columns}
    close = difflib.get_close_matches(name.lower(), list(known), n=1)
    needed = [column.name for column in columns.values() if not column.added]
    words = f"did you mean {known[close[0]]!r}? " if close else ""
    return f"{words}needed: {', '.join(needed)}; common: {', '.join(common)}"


def _empty(column: Column) -> str | None:
    return "" if column.type == "text" else None


def _value(column: Column, text: str) -> str | bool | float | None:
    """A value of its column's type; raises `ValueError` where the text is not allowed."""
    word = text.strip().lower()
    if not word and not column.required:
        return _empty(column)
    if column.type == "text" and word:
        return text
    if column.type == "boolean" and word in ("true", "false"):
        return word == "true"
    number = float(text)
    if not math.isfinite(number) or (number <= 0 and not column.may_be_zero):
        raise ValueError(text)
    if column.type == "number":
        return number
    if column.type != "integer" or not 0 <= number <= _MOST or number != int(number):
        raise ValueError(text)
    return int(number)


def _allowed(column: Column, text: str) -> str:
    """What a column's values may be, in words, where `text` is not allowed."""
    words = {
        "text": "a text",
        "boolean": "True or False",
        "integer": f"a whole number of at least {0 if column.may_be_zero else 1}",
        "number": "a finite number" if column.may_be_zero else "a number above 0",
    }
    allowed = words[column.type]
    if column.type == "number" and re.fullmatch(r"\s*-?\d+,\d+\s*", text):
        allowed += " with a point, not a comma"
    return allowed + ("" if column.required else ", or empty where not measured")


def _dtype(column: Column) -> Any:
    dtypes = {"text": "str", "boolean": "boolean", "number": "float64"}
    return dtypes.get(column.type, "int64" if column.required else "Int64")
