"""adaLN-Zero: adaptive LayerNorm with gates that start at zero."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from harness.model.blocks.block import Block, Modulation, modulate
from harness.spec.model import DiTSpec


class AdaLNZeroBlock(Block):
    """adaLN with a gate before each residual sum; the gates start at zero, so the block starts as the identity.

    The vectors are shift, scale and gate for attention, then for the MLP.
    """

    adaptive = True
    starts_at_zero: ClassVar[tuple[str, ...]] = ("modulation.",)

    def __init__(self, model: DiTSpec) -> None:
        super().__init__(model)
        self.modulation = Modulation(model.width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D), condition (N, D) -> (N, T, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation.vectors(c)  # each (N, 1, D)
        x = torch.addcmul(x, gate1, self.attention(modulate(self.norm1(x), shift1, scale1)))
        x = torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))
        return x
