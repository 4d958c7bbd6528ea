"""In-context conditioning: timestep and label are tokens like the others."""

from __future__ import annotations

from torch import Tensor

from harness.model.blocks.block import Block


class InContextBlock(Block):
    """A plain ViT block. The extra tokens come after the image tokens and have no positions."""

    in_context = True

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T + K, D) -> (N, T + K, D); c is among them."""
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x
