"""What the seeds of a sweep can show, in one line."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.runs.cellruns import CellRun
    from sweeps.grid import Sweep

#: Seeds that are proposed where every model has one.
_FEW = 3


def seeds_line(sweep: Sweep, items: Sequence[CellRun], folder: Path) -> str:
    """The smallest gap between two models that the sweep's seeds show; empty where nothing is known of the noise.

    Args:
        sweep: says what is measured.
        items: its cells.
        folder: of the study, whose report has measured the noise, or not.
    """
    from analysis.numbers import number
    from analysis.power import LITERATURE_SD, smallest_gap

    cells = [item.cell for item in items]
    trainings = min(Counter((cell.model, cell.diffusion, cell.data, cell.training) for cell in cells).values())
    alike = Counter(own.model_copy(update={"seed": 0}).id for own in sweep.evaluations_of(cells[0]))
    sd = _measured(folder, "frechet" if alike else "loss_heldout", max(alike.values(), default=1))
    known = "measured in this study"
    if sd is None:
        if not alike:
            return ""
        sd, known = LITERATURE_SD, "assumed, as FID in the literature; small models are noisier"
    noise = f"at {number(100 * sd, 2)} % between trainings ({known})"
    if trainings > 1:
        gap = 100 * smallest_gap(sd, trainings)
        return f"{trainings} seeds a model: gaps below {number(gap, 2)} % cannot be told from noise, {noise}."
    gap = 100 * smallest_gap(sd, _FEW)
    return f"1 seed a model: no gap can be told from noise; {_FEW} seeds show gaps from {number(gap, 2)} % on, {noise}."


def _measured(folder: Path, column: str, samplings: int) -> float | None:
    """The standard deviation between trainings that the last report found; None where it found none."""
    try:
        found: list[dict[str, Any]] = json.loads((folder / "fits.json").read_text(encoding="utf-8"))["noise"]
        noise = next(one["together"] for one in found if one["column"] == column)
        within = noise["sampling"]["sd"] ** 2 / samplings if noise["sampling"] else 0.0
        sd = math.sqrt(float(noise["training"]["sd"]) ** 2 + within)
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RecursionError):
        return None
    return sd if 0 < sd < math.inf else None
