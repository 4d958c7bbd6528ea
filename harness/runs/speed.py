"""The speed of a training in floating-point operations."""

from __future__ import annotations


def train_tflops(macs: int, images_per_s: float) -> float:
    """1e12 operations per second of a training, whose images cost three forward passes each.

    An operation is half a multiply-add; `macs` are those of one forward pass of one image.
    """
    return 6 * macs * images_per_s / 1e12
