"""Whether a cell's network is compiled: as asked, or by what compiling saves and what it costs.

Training and each sampling decide by themselves. Compiled and eager networks agree within rounding, not bit for bit. So
the first attempt at a cell decides for its training, the first samples that are kept for theirs, and what resumes them
keeps the choice. Compiled code is kept in the results folder, and found there by the next cell of one shape.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from harness.errors import CellFailedError
from harness.files import write_text
from harness.launch.estimate import ASSUMED_BLOCK_SECONDS, ASSUMED_GMACS_PER_S, ASSUMED_TFLOPS, sampling_passes
from harness.model.cost import count_cell
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.identity import spec_id
from harness.spec.resources import Resources

#: Seconds that compiling takes: a layer without compiled code of the same shape, and the whole with it.
COLD_SECONDS, WARM_SECONDS = 30.0, 3.0

#: Share of a CPU's overhead per block that compiled blocks save, and of a GPU's time. Orders of magnitude only.
_SAVED_OF_OVERHEAD, _SAVED_ON_GPU = 0.7, 0.3

#: A CPU is busy with matrix products above this width, in float32; then compiling saves nothing.
_WIDEST_ON_CPU = 256

#: Share of a CPU's sampling time that compiling saves, up to that width and above. Orders of magnitude only.
_SAVED_OF_SAMPLING, _SAVED_OF_WIDE_SAMPLING = 0.15, 0.03


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
    """Decide on the training, for the first attempt at a cell.

    Raises:
        CellFailedError: it is to be compiled, and this machine cannot.
    """
    saved = saved_seconds(job.cell, device, job.resources.world)
    return _choose(job, device, saved, _training_code(job), "training")


def choose_sampling(job: Compiled, evaluation: Evaluation, device: str, before: bool | None) -> Choice:
    """Decide on the samples of an evaluation.

    Args:
        job: whose cell is sampled.
        evaluation: how.
        device: "cpu" or "cuda".
        before: whether the network was compiled for those that are kept; None: there are none.

    Raises:
        CellFailedError: it is to be compiled, and this machine cannot.
    """
    if before:
        require_compiler(device, "the samples so far are of a compiled network")
    if before is not None:
        return Choice(before, "as for the samples so far")
    return _choose(job, device, saved_in_sampling(job, evaluation, device), _sampling_code(job, evaluation), "sampling")


def _choose(job: Compiled, device: str, saved: float, code: Path, what: str) -> Choice:
    option = job.resources.compile
    if option == "off":
        return Choice(compiled=False, why="as asked")
    if option == "on":
        require_compiler(device, 'resources.compile is "on" (allowed: auto, off)')
        return Choice(compiled=True, why="as asked")
    if lack := missing_compiler(device):
        return Choice(compiled=False, why=lack)
    cost = WARM_SECONDS if code.exists() else COLD_SECONDS * job.cell.model.compiled_layers
    return Choice(saved > 2 * cost, f"it would save about {saved:.0f} s of the {what} and cost about {cost:.0f} s")


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
        return _SAVED_ON_GPU * 2 * macs / (ASSUMED_TFLOPS[recipe.precision] * 1e12)
    if recipe.precision != "bf16" and getattr(cell.model, "width", 0) > _WIDEST_ON_CPU:
        return 0.0
    return _SAVED_OF_OVERHEAD * recipe.steps * ASSUMED_BLOCK_SECONDS * (cell.model.layers + 2)


def saved_in_sampling(job: Compiled, evaluation: Evaluation, device: str) -> float:
    """About the seconds of the sampling of an evaluation that compiling saves."""
    macs = sampling_passes(evaluation, job.cell.diffusion) * count_cell(job.cell).macs / job.resources.world
    if device == "cuda":
        return _SAVED_ON_GPU * 2 * macs / (ASSUMED_TFLOPS["fp32"] * 1e12)  # whatever the training had
    wide = getattr(job.cell.model, "width", 0) > _WIDEST_ON_CPU
    seconds = macs / (ASSUMED_GMACS_PER_S * 1e9 * job.resources.threads)
    return seconds * (_SAVED_OF_WIDE_SAMPLING if wide else _SAVED_OF_SAMPLING)


def use_cache(job: Compiled) -> None:
    """Let torch keep compiled code in the results folder, and compile with as many threads as the cell has."""
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(job.resources.threads))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(job.shared.compiled_folder.resolve()))


def record_compiled(job: Compiled, sampled: Evaluation | None = None) -> None:
    """Remember that code is in the results folder: of the training of the job's cell, or of an evaluation's samples."""
    code = _training_code(job) if sampled is None else _sampling_code(job, sampled)
    if not code.exists():
        code.parent.mkdir(parents=True, exist_ok=True)
        write_text(code, f"{torch.__version__}\n")


def _training_code(job: Compiled) -> Path:
    share = job.resources.micro_batch or job.cell.training.batch_size // job.resources.world
    return _code(job, share, job.cell.training.precision)


def _sampling_code(job: Compiled, evaluation: Evaluation) -> Path:
    batch = min(job.resources.sampling_batch, evaluation.samples)
    return _code(job, batch * (1 if evaluation.guidance == 1 else 2), "sampling")


def _code(job: Compiled, images: int, kind: str) -> Path:
    """The file that says that there is code for so many images at once."""
    cell = job.cell
    shape = (*cell.data.shape, images, kind, job.resources.threads, torch.__version__)
    return job.shared.compiled_folder / "-".join(map(str, (cell.model.network, spec_id(cell.model), *shape)))
