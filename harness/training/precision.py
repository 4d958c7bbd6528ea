"""The precisions of a training: what computes in each, and which device can.

TF32 rounds the factors of a matrix product or a convolution to 10 bits of mantissa and sums in float32. torch has one
switch for each of both, and turns that of convolutions on by default. Here both are off, but in a step of a training in
tf32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from harness.errors import CellFailedError
from harness.spec.training import CPU_PRECISIONS, Precision

#: Least compute capability of a GPU with TF32 and bfloat16.
_CAPABILITY = (8, 0)


def require(precision: Precision, device: str) -> None:
    """Check that a device can compute in a precision.

    Raises:
        CellFailedError: it cannot.
    """
    if precision == "fp32" or (device == "cpu" and precision in CPU_PRECISIONS):
        return
    if device == "cpu":
        allowed, lack = CPU_PRECISIONS, "the CPU, on which the cell runs, cannot do it"
    else:
        allowed, capability = ("fp32",), torch.cuda.get_device_capability()
        if capability >= _CAPABILITY:
            return
        lack = (
            f"{torch.cuda.get_device_name()} has compute capability {'.'.join(map(str, capability))}, "
            f"and it takes {'.'.join(map(str, _CAPABILITY))}"
        )
    raise CellFailedError(f'training.precision "{precision}": {lack}; allowed here: {", ".join(allowed)}')


def use_fp32() -> None:
    """Let float32 be float32 in this process, whatever the environment says."""
    _set_tf32(products=False, convolutions=False)


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """What is multiplied in here, in forward and backward passes, is rounded to TF32 if and only if that is asked."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _set_tf32(precision == "tf32", precision == "tf32")
    try:
        yield
    finally:
        _set_tf32(*before)


def autocast(precision: Precision, device: str) -> torch.autocast:
    """The context of a forward pass."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def _set_tf32(products: bool, convolutions: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
