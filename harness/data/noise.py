"""Normal noise as a tensor, made where it is used: by numpy for a CPU, by a Triton kernel on a GPU.

Both make the numbers of `harness.data.draws.Normals`; the integers agree on every device, the floats within rounding.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from harness.data.draws import BLOCK, Normals

#: Lanes of the kernel's programs, each of which makes a block of numbers.
LANES = 128


def noise_rows(normals: Normals, part: slice, shape: tuple[int, ...], device: str) -> Tensor:
    """Rows `part` of the noise (see `Normals.rows`), float32 (n, *shape) on the device."""
    if device == "cpu" or (kernel := kernel_of_gpu()) is None:
        return torch.from_numpy(normals.rows(part, shape)).to(device)
    out = torch.empty((part.stop - part.start, *shape), dtype=torch.float32, device=device)
    fill(kernel, normals, part, out)
    return out


def fill(kernel: Any, normals: Normals, part: slice, out: Tensor) -> None:
    """Fill `out`, (n, *shape), with rows `part` of the noise, by the kernel."""
    begin, skip = divmod(part.start * math.prod(out.shape[1:]), BLOCK)
    k0, k1 = (half - (half >> 63 << 64) for half in (normals.key & (1 << 64) - 1, normals.key >> 64))  # as signed
    lanes = -(-(skip + out.numel()) // BLOCK)
    kernel[(-(-lanes // LANES),)](out, k0, k1, begin, skip, out.numel())


@functools.cache
def kernel_of_gpu() -> Any:
    """The kernel, or None where Triton is not installed."""
    try:
        from harness.data.noise_kernel import normals
    except ImportError:
        return None
    return normals
