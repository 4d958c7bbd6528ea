"""The losses of a training, as JSON lines."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from harness.files import fsync, full_disk_named, write_text
from harness.runs.state import Run

#: So many bytes at the end of a log hold its last rows.
_TAIL = 4096


def _rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The rows of the lines that are whole."""
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(row := json.loads(line), dict):
                yield row


class TrainLog:
    """`train.jsonl`: losses as JSON lines, in the order of steps."""

    def __init__(self, run: Run) -> None:
        self._path = run.train_log

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines; a torn last line counts as not written."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        with contextlib.suppress(ValueError, RecursionError):  # all at once is several times as quick
            rows: list[Any] = json.loads(b"[%b]" % b",".join(lines))
            if len(rows) == len(lines) and all(isinstance(row, dict) for row in rows):
                return rows
        return list(_rows(lines))

    def seconds(self) -> float | None:
        """Wall time of the training so far; None before its first row."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            for lines in (file.read().splitlines()[1:], self._path.read_bytes().splitlines()):
                for row in _rows(reversed(lines)):
                    if row.get("seconds"):
                        return float(row["seconds"])
        return None

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replace all rows, to go on after the last of them."""
        if rows:
            write_text(self._path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        else:
            self._path.unlink(missing_ok=True)

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Add rows; NaN is refused."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        with full_disk_named(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def sync(self) -> None:
        """Make the rows last. Comes before every file that makes their steps not needed again."""
        if self._path.exists():
            fsync(self._path)
            fsync(self._path.parent)
