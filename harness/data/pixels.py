"""Conversion between stored pixels (uint8, 0 to 255) and the values a network sees ([-1, 1])."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.finite import require_finite


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


def require_finite_values(x: Tensor, what: str, first: int = 0) -> None:
    """As `finite.require_finite`, of values (N, ...) on any device."""
    finite = torch.isfinite(x)
    if not finite.all():
        require_finite(finite.cpu().numpy(), what, first)


#: What `to_uint8` does, for records: other rules give other FIDs.
UINT8_RULE = "127.5 x + 128, clamped to 0..255, the fraction dropped"


def to_uint8(x: Tensor, what: str = "images", first: int = 0) -> Tensor:
    """Images (N, ...) in [-1, 1] as bytes of the same shape, by the rule above.

    Raises:
        NonFiniteError: a value is infinite or no number, and no level stands for it; `what` they are and the number of
            the `first` are for the message.
    """
    require_finite_values(x, what, first)
    return (127.5 * x + 128).clamp(0, 255).to(torch.uint8)
