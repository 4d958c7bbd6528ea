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
from harness.spec.resources import Compilation, Resources

#: Seconds that compiling takes: the compiler's start, each layer, and all of it with compiled code of the same shape.
COLD_SECONDS, COLD_LAYER_SECONDS, WARM_SECONDS = 12.0, 3.5, 3.0

#: Share of a CPU's overhead per block that compiled blocks save, and of a GPU's time. Orders of magnitude only.
_SAVED_OF_OVERHEAD, _SAVED_ON_GPU = 0.7, 0.3

#: A CPU is busy with matrix products above this width, in float32; then compiling saves nothing.
_WIDEST_ON_CPU = 256

#: Share of a CPU's sampling time that compiling saves, up to that width and above. Orders of magnitude only.
_SAVED_OF_SAMPLING, _SAVED_OF_WIDE_SAMPLING = 0.15, 0.03


class Choice(NamedTuple):
    """How the network is compiled, and why, for the log."""

    how: Compilation
    why: str

    @property
    def compiled(self) -> bool:
        """Whether it is."""
        return self.how != "off"


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
    way = _way(job.resources, device)
    return _choose(job, device, way, saved, training_code(job, way), "training")


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
        return Choice("on" if before else "off", "as for the samples so far")
    saved = saved_in_sampling(job, evaluation, device)
    return _choose(job, device, "on", saved, sampling_code(job, evaluation), "sampling")


def _way(resources: Resources, device: str) -> Compilation:
    """How a training is compiled, if it is.

    As one graph it is faster on a CPU, and compiles longer, by the number of its layers. Ranks send the gradients of
    the last parts while those of the first are computed, and a graph gives all at once; activations are computed again
    part by part.
    """
    return "whole" if device == "cpu" and resources.world == 1 and not resources.recompute else "on"


def _choose(job: Compiled, device: str, way: Compilation, saved: float, code: Path, what: str) -> Choice:
    option = job.resources.compile
    if option == "off":
        return Choice("off", "as asked")
    if option == "on":
        require_compiler(device, 'resources.compile is "on" (allowed: auto, off)')
        return Choice(way, "as asked")
    if lack := missing_compiler(device):
        return Choice("off", lack)
    layers = job.cell.model.layers if way == "whole" else job.cell.model.compiled_layers
    cost = WARM_SECONDS if code.exists() else COLD_SECONDS + layers * COLD_LAYER_SECONDS
    why = f"it would save about {saved:.0f} s of the {what} and cost about {cost:.0f} s"
    return Choice(way if saved > 2 * cost else "off", why)


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


def record_compiled(code: Path) -> None:
    """Remember that code is in the results folder; see `training_code` and `sampling_code`."""
    if not code.exists():
        code.parent.mkdir(parents=True, exist_ok=True)
        write_text(code, f"{torch.__version__}\n")


def training_code(job: Compiled, way: Compilation) -> Path:
    """The file that says that there is code of the training of a job's cell, compiled in this way."""
    share = job.resources.micro_batch or job.cell.training.batch_size // job.resources.world
    precision = job.cell.training.precision
    return _code(job, share, f"{precision}-whole" if way == "whole" else precision)


def sampling_code(job: Compiled, evaluation: Evaluation) -> Path:
    """The file that says that there is code of an evaluation's samples."""
    batch = min(job.resources.sampling_batch, evaluation.samples)
    return _code(job, batch * (1 if evaluation.guidance == 1 else 2), "sampling")


def _code(job: Compiled, images: int, kind: str) -> Path:
    cell = job.cell
    shape = (*cell.data.shape, images, kind, job.resources.threads, torch.__version__)
    return job.shared.compiled_folder / "-".join(map(str, (cell.model.network, spec_id(cell.model), *shape)))
