"""What this machine can do at best: the rate of a large matrix product, which a training is measured against."""

from __future__ import annotations

import time

import torch

from harness.spec.training import Precision
from harness.training.precision import products

#: Side of the square matrices, and for about how many seconds products are repeated.
_SIDE = {"cuda": 8192, "cpu": 768}
_SECONDS = {"cuda": 0.2, "cpu": 0.05}


def gemm_tflops(device: str, precision: Precision) -> float:
    """Rate of a matrix product in 1e12 floating-point operations (half a multiply-add each) per second.

    Args:
        device: "cpu", with the threads of this process, or "cuda", the current GPU.
        precision: what it computes in.
    """
    side, dtype = _SIDE[device], torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))

    def seconds_of(count: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(count):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    with products(precision):
        seconds_of(1)  # the first one loads the library
        count = max(1, round(_SECONDS[device] / max(seconds_of(1), 1e-6)))
        return 2 * side**3 * count / seconds_of(count) / 1e12
