"""Adaptive LayerNorm (adaLN)."""

from __future__ import annotations

from torch import Tensor

from harness.model.blocks.block import Block, Modulation, modulate
from harness.spec.model import DiTSpec


class AdaLNBlock(Block):
    """A ViT block whose LayerNorms are shifted and scaled by vectors regressed from the condition.

    The vectors are shift and scale for attention, then for the MLP. The paper does not say how the modulation is
    initialised. Here it is like any other Linear: from zero, the block would start by ignoring its condition.
    """

    adaptive = True

    def __init__(self, model: DiTSpec) -> None:
        super().__init__(model)
        self.modulation = Modulation(model.width, 4)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D), condition (N, D) -> (N, T, D)."""
        shift1, scale1, shift2, scale2 = self.modulation.vectors(c)  # each (N, 1, D)
        x = x + self.attention(modulate(self.norm1(x), shift1, scale1))
        x = x + self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x
