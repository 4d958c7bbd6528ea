"""What this machine has to give: GPUs, cores, slots."""

from __future__ import annotations

import functools
import math
import os
import re
import shutil
import subprocess
from fractions import Fraction

from harness.errors import InputError
from harness.runs import provenance
from harness.spec.resources import Resources


def visible_gpus() -> list[str]:
    """GPUs of this machine, or of the Slurm allocation it is used in, as CUDA_VISIBLE_DEVICES names them; no torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None and "SLURM_JOB_ID" in os.environ:  # the node's other GPUs are other people's
        chosen = os.environ.get("SLURM_STEP_GPUS", os.environ.get("SLURM_JOB_GPUS", ""))
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = _nvidia_smi().stdout
    return [str(i) for i, line in enumerate(line for line in listing.splitlines() if line.startswith("GPU "))]


def gpus_unseen() -> str:
    """Why it is not known which GPUs this machine has, in one line; empty where it is known."""
    if visible_gpus() or "CUDA_VISIBLE_DEVICES" in os.environ or shutil.which("nvidia-smi") is None:
        return ""
    asked = _nvidia_smi()
    return "" if asked.returncode == 0 else " ".join((asked.stdout + asked.stderr).split()) or "nvidia-smi fails"


def hardware(device: str) -> str:
    """The model of this machine's processor, or for the device "cuda" of its first GPU."""
    if device == "cpu":
        return provenance.cpu_name()
    names = re.findall(r"^GPU \d+: (.+?) \(UUID", _nvidia_smi().stdout, re.MULTILINE)
    return str(names[0]) if names else "unknown"


@functools.cache
def _nvidia_smi() -> subprocess.CompletedProcess[str]:
    command = ["nvidia-smi", "-L"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def usable_cores() -> int:
    """CPU cores this process may use, within its Slurm allocation if it is in one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allocated = os.environ.get("SLURM_CPUS_ON_NODE", "")  # not every cluster binds processes to it
    return min(cores, int(allocated)) if allocated.isdigit() else cores


def share_of(resources: Resources, gpus: list[str]) -> Fraction:
    """The share of this machine that a cell takes: of its slots, else of its GPUs, else of its cores at its threads."""
    if resources.slots is not None:
        return Fraction(1, resources.slots)
    if gpus and resources.device != "cpu":
        return Fraction(resources.ranks, len(gpus) * resources.cells_per_gpu)
    return Fraction(resources.ranks * resources.threads, usable_cores())


def default_slots(resources: Resources, gpus: list[str]) -> int:
    """Cells at once, if all take the same share of this machine; at least one."""
    return max(1, math.floor(1 / share_of(resources, gpus)))


def own_device(resources: Resources, sweep: str) -> str:
    """What this process computes on, where no executor has given it a GPU; `sweep` is the file, for messages.

    Raises:
        InputError: torch does not see the GPU that was asked for, or that the machine has.
    """
    import torch

    key, asked, given = f"{sweep}: resources.device", resources.device, visible_gpus()
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError(f'{sweep}: resources.device: "cuda", but no GPU is visible here; allowed: "auto", "cpu"')
    if asked == "auto" and given and not torch.cuda.is_available():
        raise InputError(
            f'{key}: this machine gives GPU {",".join(given)}, and torch sees none; mend that, or allowed: "cpu"'
        )
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"
