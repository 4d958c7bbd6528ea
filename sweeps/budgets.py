"""The steps of a cell where the sweep gives the training compute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from harness.errors import InputError
from harness.spec.cell import Cell

BUDGET, _STEPS = "training.budget", "training.steps"

#: Operations of training, for each multiply-add of a forward pass: 2, and twice as many backward.
_OPERATIONS = 6

_MOST = 1e26  # operations; the largest trainings of 2025 are near it


def checked_budget(fields: Mapping[str, Any]) -> float | None:
    """The training compute that the fields of a cell give in the place of steps, in operations; None without one.

    Raises:
        InputError: it is no such number, or the steps are given too.
    """
    budget = fields.get(BUDGET)
    if budget is None:
        return None
    if _STEPS in fields:
        raise InputError(f"{BUDGET}: {_STEPS} is set too; keep one of them")
    is_number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    if not is_number or not 0 < budget <= _MOST:  # not so of NaN either
        raise InputError(f"{BUDGET}: {budget!r}; allowed: operations, a number above 0 and up to {_MOST:g}")
    return float(budget)


def steps_for(cell: Cell, budget: float) -> int:
    """Optimizer steps that a training compute pays: C = 6 M I, M multiply-adds an image and I images.

    So a budget is a way to write a sweep: cells, ids and tables hold the steps. Rounded to the nearest step.

    Args:
        cell: its steps do not matter.
        budget: operations.

    Raises:
        InputError: it is less than one step.
    """
    # Counting needs torch, which a sweep does without; so it is imported only where a sweep has a budget.
    macs: int = import_module("harness.model.cost").count_cell(cell).macs
    step = _OPERATIONS * macs * cell.training.batch_size
    if budget < step:
        raise InputError(
            f"{BUDGET}: {budget:g} is less than one step of {cell.model.readable_name} with batch_size "
            f"{cell.training.batch_size}, which takes {step:.3g}; allowed: {math.ceil(step):.3g} to {_MOST:g}"
        )
    return round(budget / step)
