"""The pages of docs/ that are generated are current."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_generated_tables_are_current() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_field_says_what_it_is() -> None:
    cells = [line.split(" | ") for line in (ROOT / "docs/sweeps.md").read_text().splitlines() if line.startswith("| `")]
    assert len(cells) > 60
    assert [line[0] for line in cells if len(line) != 5 or not line[-1].strip(" |")] == []
