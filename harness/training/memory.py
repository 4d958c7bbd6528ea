"""The largest micro-batch that fits the memory of a GPU, found by trying.

On a CPU nothing is tried: there a want of memory is no error, it ends the process.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from harness.diffusion.objective import Objective
from harness.diffusion.objective import build as build_objective
from harness.errors import CellFailedError
from harness.model.network import build
from harness.spec.cell import Cell
from harness.spec.resources import Compilation
from harness.training.feed import Inputs
from harness.training.passes import losses_backward, make_ready
from harness.training.precision import products
from harness.training.ranks import Ranks

_LOG = logging.getLogger(__name__)

#: The share of a GPU's memory that a trial may take; the rest is for the data, the measuring and the driver.
_SHARE = 0.9


def largest_micro_batch(
    cell: Cell, device: str, ranks: Ranks, *, compiled: Compilation, recompute: bool, cells_per_gpu: int = 1
) -> int:
    """How many images of its share a rank can pass at once: all, or the largest half, quarter, ... that divides it.

    The trials pass zeros through networks of their own, beside tensors as large as what the training holds besides. So
    they change neither weights nor draws. All ranks find the same.

    Raises:
        CellFailedError: not even one image fits.
    """
    share = cell.training.batch_size // ranks.world
    size = share
    with _limited(device, _SHARE / cells_per_gpu):
        while ranks.any_rank(not _fits(cell, size, share, device, ranks.world, compiled, recompute)):
            if size == 1:
                raise CellFailedError(
                    "out of memory: not even one image at once fits the GPU; a smaller model, a larger GPU"
                    f"{'' if recompute else ', or --recompute'}"
                )
            smaller = max(n for n in range(1, size // 2 + 1) if share % n == 0)
            _LOG.info("%s images at once do not fit the GPU's memory; trying %s", size, smaller)
            size = smaller
    _LOG.info("micro-batch: %s of the %s images of a rank, %s", size, share, "all" if size == share else "what fits")
    return size


def _fits(cell: Cell, size: int, share: int, device: str, world: int, compiled: Compilation, recompute: bool) -> bool:
    """Whether forward and backward passes of so many images fit."""
    try:
        with torch.random.fork_rng(devices=[]):
            network = build(cell.model, cell.data.shape, cell.diffusion.outputs).to(device)
        copies = 3 + (world > 1)  # averaged weights, two moments; the buffers in which ranks average gradients
        held = [torch.empty_like(weight) for weight in network.parameters() for _ in range(copies)]
        make_ready(network, compiled=compiled, recompute=recompute)
        objective = build_objective(cell.diffusion)
        inputs = _zeros(cell, objective, size, device)
        with products(cell.training.precision):
            for _ in range(1 if size == share else 2):  # the second one finds the gradients of the first
                losses_backward(network, objective, inputs, slice(None), cell.training.precision)
        del held
    except torch.OutOfMemoryError:
        return False
    return True


def _zeros(cell: Cell, objective: Objective, count: int, device: str) -> Inputs:
    shape = cell.data.shape
    x0 = torch.zeros(count, shape.channels, shape.size, shape.size, device=device)
    y = torch.zeros(count, dtype=torch.int64, device=device) if shape.classes else None
    t = torch.from_numpy(objective.draw(np.random.default_rng(0), count)).to(device)
    return Inputs(x0, y, t, torch.zeros_like(x0))


@contextmanager
def _limited(device: str, share: float) -> Iterator[None]:
    """Give this process a share of the GPU's memory in here, and give back afterwards what the trials took."""
    if device == "cpu":
        yield
        return
    torch.cuda.set_per_process_memory_fraction(share)
    try:
        yield
    finally:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)
