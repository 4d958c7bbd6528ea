"""Part of `make bench`: seconds of a full report of a 200-row study and of 1,000 bootstrap refits; decides no test."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from analysis.fit.floor import refit_floors
from analysis.report import write_report

from .conftest import result_row, write_extras, write_results


def main() -> None:
    """Print wall and processor seconds of both."""
    shapes = [(depth, width, patch) for depth, width in ((2, 32), (4, 64), (6, 96), (8, 128)) for patch in (8, 4, 2, 1)]
    rows = [
        result_row(*shape, block=block, step=step, loss_heldout=0.2 * step**-0.1 / shape[1] ** 0.2)
        for shape in shapes for block in ("adaln-zero", "adaln") for step in (250, 400, 500, 650, 800, 1000)
    ]  # fmt: skip
    rows += [result_row(*shapes[0], seed=seed) for seed in range(1, 9)]
    with tempfile.TemporaryDirectory() as folder:
        place = write_results(Path(folder) / "made-up", rows)
        write_extras(place, rows)
        wall, own = time.monotonic(), _processor_seconds()
        written = write_report(place)
        wall, own = time.monotonic() - wall, _processor_seconds() - own
        print(f"report of {len(rows)} rows, {len(written.paths)} files: {wall:.1f} s wall, {own:.1f} s of a core")
    x = np.log(np.geomspace(0.3, 120, 12))
    y = np.log(80 * np.exp(-0.5 * x) + 5) + np.random.default_rng(0).normal(0, 0.1, (1000, 12))
    wall, own = time.monotonic(), _processor_seconds()
    refit_floors(np.broadcast_to(x, y.shape), y, np.array([np.log(80), 0.5, 5.0]))
    wall, own = time.monotonic() - wall, _processor_seconds() - own
    print(f"1,000 refits of the power law with floor to 12 models: {wall:.2f} s wall, {own:.2f} s of a core")


def _processor_seconds() -> float:
    """Of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
