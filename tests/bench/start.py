"""What a cell waits for: the time from its claim to the end of its first step, against importing torch alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.pairs import Row, Told, pair
from tests.small_study import Bench, sweep_text


def _first_step() -> Told:
    """Seconds from the claim of a cell of one step to its weights, which are written after that step."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), sweep_text("depth = [2]", steps=1))
        assert bench.launch("--slots", "1").returncode == 0
        (run,) = bench.runs().values()
        (weights,) = run.glob("checkpoints/weights-*")
        return Told(weights.stat().st_mtime - (run / "attempts" / "001.json").stat().st_mtime)


def rows() -> list[Row]:
    """One row."""
    command = [sys.executable, "-c", "import torch"]
    torch_alone = "import torch", lambda: subprocess.run(command, check=True)
    return [pair("from the claim of a cell to its first step", torch_alone, ("claim to step 1", _first_step))]
