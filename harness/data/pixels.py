"""Conversion between stored pixels (uint8, 0 to 255) and the values a network sees ([-1, 1])."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_model_range(images: Tensor) -> Tensor:
    """Map levels 0..255 to float32 in [-1, 1] (x / 127.5 - 1), any shape.

    Raises:
        TypeError: `images` is not uint8, so its range is unknown.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8, got {str(images.dtype).removeprefix('torch.')}")
    return images.float() / 127.5 - 1


def to_model(images: Tensor) -> Tensor:
    """uint8 (N, S, S, C) to float32 (N, C, S, S) in [-1, 1]."""
    return to_model_range(images.permute(0, 3, 1, 2))


def channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, C) -> (N, C, H, W), contiguous."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


#: The rule of `to_uint8`, for records: another rule gives another FID.
UINT8_RULE = "127.5 x + 128, clamped to 0..255, the fraction dropped"


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] to uint8 of the same shape, by the rule above."""
    return (127.5 * x + 128).clamp(0, 255).to(torch.uint8)
