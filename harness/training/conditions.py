"""What must be the same for two runs to agree bit for bit, and what makes two of one run agree."""

from __future__ import annotations

from typing import TypedDict

import torch

from harness.training.precision import use_fp32


class NumericConditions(TypedDict):
    """The machine and the settings that decide the last bits; a part of every record."""

    torch: str
    device: str
    hardware: str
    threads: int
    sampling_batch: int


def numeric_conditions(threads: int, sampling_batch: int, device: str) -> NumericConditions:
    """The conditions of this process; `sampling_batch` is in images, `device` is "cpu" or "cuda"."""
    name = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    version = torch.__version__
    return NumericConditions(
        torch=version, device=device, hardware=name, threads=threads, sampling_batch=sampling_batch
    )


def be_deterministic(*, compiled: bool) -> None:
    """Let torch use kernels that give the same bits again, in float32, and warn where it has none.

    `torch.use_deterministic_algorithms` says so to the compiler, too; it imports it, 3 s that only a compiled network
    needs.
    """
    use_fp32()
    if compiled:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn")
