"""The losses of a training, as JSON lines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from harness.files import fsync, full_disk_named, write_text
from harness.runs.state import Run


class TrainLog:
    """`train.jsonl`: losses as JSON lines, in the order of steps."""

    def __init__(self, run: Run) -> None:
        self._path = run.train_log

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines; a torn last line counts as not written."""
        rows = []
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    if isinstance(row := json.loads(line), dict):
                        rows.append(row)
        return rows

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
