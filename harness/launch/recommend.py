"""DiTs of a given compute, in the proportions of a sweep's own, and trainings of them as a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import count as numbers

import numpy as np

from harness.errors import InputError
from harness.model.cost import count_cell
from harness.spec.cell import Cell
from harness.spec.model import DiTSpec
from sweeps.cells import Grid
from sweeps.grid import Sweep
from sweeps.text import settings_of

_TRIED = 6  # shapes of about the compute wanted that are looked at
_GIGA = 1e9


def pattern_of(sweep: Sweep) -> Cell:
    """The cell of a sweep after whose recipe others are made: the largest DiT.

    Raises:
        InputError: it has no DiT.
    """
    cells = [cell for _, cell in sweep.cells() if isinstance(cell.model, DiTSpec)]
    if not cells:
        raise InputError(f"{sweep.path}: has no DiT, so there is no shape to recommend; allowed: a sweep of DiTs")
    return max(cells, key=lambda cell: cell.model.macs_proxy(cell.data.shape))


def trained_within(sweep: Sweep, gmacs: float, images: float, patch_size: int | None) -> Cell:
    """The largest DiT of at most so much compute, of the sweep's own or in their proportions, and its training.

    Args:
        sweep: its largest DiT gives the recipe, the data, and the channels of a head.
        gmacs: 1e9 multiply-adds of one forward pass of one image, at most.
        images: to train on; a smaller model than asked for does not train longer.
        patch_size: of the DiT; None: as the pattern.

    Raises:
        InputError: the smallest DiT has more, or a training of less than one step.
    """
    pattern = pattern_of(sweep)
    steps = round(images / pattern.training.batch_size)
    if steps < 1:
        raise InputError(f"--budget: {images:.3g} images are less than one step of {pattern.training.batch_size}")
    best = _largest(_about(sweep, pattern, gmacs, patch_size), gmacs * _GIGA)
    if best is None:
        raise InputError(f"--budget: it pays {gmacs:.3g} GMACs an image, less than the smallest DiT of this kind has")
    return _with(best, training={"steps": steps})


def _largest(cells: Sequence[Cell], macs: float) -> Cell | None:
    """The cell of most multiply-adds, up to so many: the first that fits in the order of the rough count.

    Counting is slow. The rough count leaves out a little, so what has more by it has too many.
    """
    rough = {cell: cell.model.macs_proxy(cell.data.shape) for cell in cells}
    fitting = (cell for cell in sorted(cells, key=rough.__getitem__, reverse=True) if rough[cell] <= macs)
    return next((cell for cell in fitting if count_cell(cell).macs <= macs), None)


def as_sweep(sweep: Sweep, cells: Sequence[Cell], title: str) -> Sweep:
    """The trainings as a sweep with the evaluations of another one."""
    own = ("depth", "width", "heads", "patch_size")
    base = settings_of(cells[0], without={"model": set(own), "training": {"steps"}})
    shapes = tuple(
        {**{f"model.{name}": getattr(cell.model, name) for name in own}, "training.steps": cell.training.steps}
        for cell in cells
    )
    return replace(
        sweep,
        title=title,
        grid=Grid(sweep.path, base, {"model": shapes}),
        evaluations=tuple(evaluation.model_copy(update={"at": ()}) for evaluation in sweep.evaluations),
        recording=sweep.recording.model_copy(update={"loss_steps": ()}),
        rules=(),
    )


def _about(sweep: Sweep, pattern: Cell, gmacs: float, patch_size: int | None) -> list[Cell]:
    """DiTs around so much compute, nearest first by a rough count; the sweep's own first of all."""
    shapes = {(c.model.width, c.model.depth) for _, c in sweep.cells() if isinstance(c.model, DiTSpec)}
    widths, depths = np.log(np.array(sorted(shapes), float).T)
    slope = np.polyfit(widths, depths, 1)[0] if np.ptp(widths) else 1.0
    level = float(np.mean(depths) - slope * np.mean(widths))
    model = pattern.model
    assert isinstance(model, DiTSpec)
    head, wanted, found = model.width // model.heads, gmacs * _GIGA, []
    for heads in numbers(1):
        width = head * heads
        depth = max(1, round(math.exp(level + slope * math.log(width))))
        for layers in {max(1, depth - 1), depth, depth + 1}:
            fields: dict[str, object] = {
                "depth": layers,
                "width": width,
                "heads": heads,
                "patch_size": patch_size or model.patch_size,
            }
            cell = _with(pattern, model=fields)
            found.append((abs(math.log(cell.model.macs_proxy(cell.data.shape) / wanted)), cell))
        if cell.model.macs_proxy(cell.data.shape) > 4 * wanted:
            break
    nearest = [cell for _, cell in sorted(found, key=lambda pair: pair[0])[:_TRIED]]
    patch = getattr(nearest[0].model, "patch_size", None)
    own = dict.fromkeys(cell.model for _, cell in sweep.cells() if getattr(cell.model, "patch_size", None) == patch)
    return [*(_with(pattern, model=model.model_dump()) for model in own), *nearest]


def _with(cell: Cell, **sections: dict[str, object]) -> Cell:
    """The cell with other fields, checked."""
    dumped = cell.model_dump()
    return Cell.model_validate({**dumped, **{name: {**dumped[name], **new} for name, new in sections.items()}})
