"""Whether a cell's network is compiled: as asked, or by what compiling saves in the whole training and what it costs.

Compiled and eager networks agree within rounding, not bit for bit. So the first attempt at a cell decides, and the
later ones keep its choice. Compiled code is kept in the results folder, and found there by the next cell of one shape.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from harness.errors import CellFailedError
from harness.files import write_text
from harness.launch.estimate import ASSUMED_BLOCK_SECONDS, ASSUMED_TFLOPS
from harness.model.cost import count_cell
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.identity import spec_id
from harness.spec.resources import Resources

#: Seconds that compiling takes: without compiled code of the same shape, and with it.
COLD_SECONDS, WARM_SECONDS = 30.0, 3.0

#: Share of a CPU's overhead per block that compiled blocks save, and of a GPU's time. Orders of magnitude only.
_SAVED_OF_OVERHEAD, _SAVED_ON_GPU = 0.7, 0.3

#: A CPU is busy with matrix products above this width, in float32; then compiling saves nothing.
_WIDEST_ON_CPU = 256


class Choice(NamedTuple):
    """Whether the network is compiled, and why, for the log."""

    compiled: bool
    why: str


class Compiled(Protocol):
    """What is compiled, and where the code is kept."""

    @property
    def cell(self) -> Cell:
        """Its network and its training."""

    @property
    def resources(self) -> Resources:
        """What it runs on."""

    @property
    def shared(self) -> Shared:
        """The folder of compiled code."""


def choose(job: Compiled, device: str) -> Choice:
    """Decide for the first attempt at a cell.

    Raises:
        CellFailedError: it is to be compiled, and this machine cannot.
    """
    option = job.resources.compile
    if option == "off":
        return Choice(compiled=False, why="as asked")
    if option == "on":
        require_compiler(device, 'resources.compile is "on" (allowed: auto, off)')
        return Choice(compiled=True, why="as asked")
    if lack := missing_compiler(device):
        return Choice(compiled=False, why=lack)
    saved = saved_seconds(job.cell, device, job.resources.world)
    cost = WARM_SECONDS if _mark(job).exists() else COLD_SECONDS
    return Choice(saved > 2 * cost, f"it would save about {saved:.0f} s of the training and cost about {cost:.0f} s")


def require_compiler(device: str, wanted: str) -> None:
    """Check that this machine can compile; `wanted` says why it has to.

    Raises:
        CellFailedError: it cannot.
    """
    if lack := missing_compiler(device):
        raise CellFailedError(f"{wanted}, and {lack}")


def missing_compiler(device: str) -> str:
    """What this machine lacks to compile; empty when it lacks nothing."""
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        return f"no C++ compiler ({', '.join(compilers)}) is here"
    if device == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return "triton is not installed"
    return ""


def saved_seconds(cell: Cell, device: str, ranks: int) -> float:
    """About the seconds of the whole training that compiling saves."""
    recipe = cell.training
    if device == "cuda":
        macs = 3 * count_cell(cell).macs * recipe.batch_size * recipe.steps / ranks
        return _SAVED_ON_GPU * 2 * macs / (ASSUMED_TFLOPS * 1e12)
    if recipe.precision == "fp32" and getattr(cell.model, "width", 0) > _WIDEST_ON_CPU:
        return 0.0
    return _SAVED_OF_OVERHEAD * recipe.steps * ASSUMED_BLOCK_SECONDS * (cell.model.layers + 2)


def use_cache(job: Compiled) -> None:
    """Let torch keep compiled code in the results folder, and compile with as many threads as the cell has."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(job.resources.threads))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(job.shared.compiled_folder.resolve()))


def record_compiled(job: Compiled) -> None:
    """Remember that code of the cell's shape is in the results folder."""
    if not _mark(job).exists():
        _mark(job).parent.mkdir(parents=True, exist_ok=True)
        write_text(_mark(job), f"{torch.__version__}\n")


def _mark(job: Compiled) -> Path:
    cell, ranks = job.cell, job.resources.world
    share = job.resources.micro_batch or cell.training.batch_size // ranks
    shape = (*cell.data.shape, share, cell.training.precision, job.resources.threads, torch.__version__)
    return job.shared.compiled_folder / "-".join(map(str, (cell.model.network, spec_id(cell.model), *shape)))
