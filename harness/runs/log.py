"""The losses of a training, as JSON lines."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Self

from harness.files import full_disk_named, write_text
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

    def rewind(self, step: int) -> Self:
        """Forget what was logged after `step`, to go on from there."""
        rows = [row for row in self.rows() if row["step"] <= step]
        if rows:
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            self._path.unlink(missing_ok=True)
        return self

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; NaN is refused."""
        with full_disk_named(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
