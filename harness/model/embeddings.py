"""What enters a Diffusion Transformer: patches with their positions, and the timestep (paper, section 3.2, "Patchify").

Shapes: N images, C channels, S positions a side, p patch size, T = (S / p)^2 tokens, D width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Length of the sinusoidal timestep vector: 128 cosines, then 128 sines.
FREQUENCIES = 256


class PatchEmbedding(nn.Module):
    """Cuts images into p x p patches and projects each to the model's width: (N, C, S, S) -> (N, T, D).

    The weight has the shape of a convolution with kernel = stride = p, (D, C, p, p), as in published checkpoints. It is
    applied as one matrix product: the numbers are the same, and fvcore can trace it on the meta device, where it cannot
    trace a convolution. Tokens run row by row.
    """

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, channels, patch_size, patch_size))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (N, T, D) of images (N, C, S, S)."""
        p = self.weight.shape[-1]
        x = x.view(*x.shape[:2], x.shape[2] // p, p, -1, p)  # (N, C, S/p, p, S/p, p)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (N, T, C*p*p)
        return F.linear(x, self.weight.flatten(1), self.bias)


def unpatchify(x: Tensor, patch_size: int) -> Tensor:
    """Lay tokens (N, T, p*p*C), each ordered (row, column, channel), back into images (N, C, S, S)."""
    side, p = math.isqrt(x.shape[1]), patch_size
    x = x.view(x.shape[0], side, side, p, p, -1)  # (N, S/p, S/p, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (N, C, S, S)


def sincos_positions(side: int, width: int) -> Tensor:
    """Build the fixed 2-D sine-cosine positions of a square grid, row by row: (side * side, width), float32.

    The first half of the channels encodes the column, the second half the row; each half is [sines | cosines] of
    coordinate / 10000^(i / (width / 4)). Computed in float64 as the published table is. `width` must divide by 4.
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, D/4)
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)  # (side, D/2)
    column = axis[None, :, :].expand(side, side, -1)
    row = axis[:, None, :].expand(side, side, -1)
    return torch.cat((column, row), dim=2).flatten(0, 1).float()


class TimestepEmbedding(nn.Module):
    """Maps timesteps (N,) to vectors (N, D): 256 sinusoids, then Linear, SiLU, Linear.

    The sinusoids are [cos | sin] of t * 10000^(-i / 128), i = 0..127, computed in float32 also under autocast and in
    float64 models, as in the published code.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = FREQUENCIES // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Return the embedding (N, D) of timesteps (N,), integer or float."""
        angles = t.float()[:, None] * self.frequencies.float()  # (N, 128)
        sinusoids = torch.cat((angles.cos(), angles.sin()), dim=1)  # (N, 256)
        embedding: Tensor = self.mlp(sinusoids.to(next(self.mlp.parameters()).dtype))  # (N, D)
        return embedding
