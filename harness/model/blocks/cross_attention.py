"""Conditioning by cross-attention to the sequence [timestep, label]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from harness.model.blocks.block import Block, QKNorm, layer_norm
from harness.spec.model import DiTSpec


class CrossAttention(nn.Module):
    """Multi-head attention of tokens (N, T, D) to a condition (N, K, D); returns (N, T, D)."""

    def __init__(self, model: DiTSpec) -> None:
        super().__init__()
        width, self.heads = model.width, model.heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.qk_norm = QKNorm(width // model.heads) if model.qk_norm else None
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return what the tokens (N, T, D) read from c (N, K, D)."""
        q = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, H, T, D/H)
        kv = self.key_value(c).unflatten(2, (2, self.heads, -1))  # (N, K, 2, H, D/H)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # 2 times (N, H, K, D/H)
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        x = F.scaled_dot_product_attention(q, k, v)  # (N, H, T, D/H)
        x = self.projection(x.transpose(1, 2).flatten(2))  # (N, T, D)
        return x


class CrossAttentionBlock(Block):
    """A ViT block with a multi-head cross-attention between self-attention and MLP.

    Where the paper leaves it open: pre-norm on the query side only, biases on the four D x D projections, key and value
    from one fused Linear.
    """

    def __init__(self, model: DiTSpec) -> None:
        super().__init__(model)
        self.norm_cross = layer_norm(model.width, affine=True)
        self.cross_attention = CrossAttention(model)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D), condition (N, K, D) -> (N, T, D)."""
        x = x + self.attention(self.norm1(x))
        x = x + self.cross_attention(self.norm_cross(x), c)
        x = x + self.mlp(self.norm2(x))
        return x
