"""The four block designs of the paper (section 3.2, "DiT block design"; Figure 3), and one more, behind one signature.

Every block maps tokens x (N, T, D) and a condition c to tokens of the same shape. What c is, the block says:
adaptive blocks take the sum of the timestep and label embeddings, (N, D); the others take them as a sequence,
(N, K, D), K = 2 (timestep first, then label) or 1 in a model without labels. To add a design, write a `Block` and name
it in `BLOCKS`.

What the paper leaves open, and the choice here (it gives the published parameter counts and Gflops):

- LayerNorm has eps 1e-6 everywhere; a learned scale and shift in the in-context and cross-attention designs, as in a
  plain ViT, and none in the adaLN designs, where the regressed ones take their place.
- In-context: the extra tokens come after the image tokens, without positions.
- Cross-attention: after self-attention and before the MLP, pre-norm on the query side only, with biases on its four
  D x D projections; key and value are one fused Linear.
- Plain adaLN: shift and scale for attention, then shift and scale for the MLP; no gate.
- The order within adaLN-Zero is shift, scale, gate for attention, then the same for the MLP.

The paper's step from adaLN to adaLN-Zero adds two things at once, the gates and their start at zero. `adaln-gate`,
which is not in the paper, has the first without the second.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec.model import Model


def layer_norm(width: int, affine: bool) -> nn.LayerNorm:
    """LayerNorm over the last axis, eps 1e-6; `affine` says whether it learns a scale and a shift."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x * (1 + scale) + shift, for x (N, T, D) and shift, scale (N, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


def modulation(width: int, parts: int) -> nn.Sequential:
    """SiLU and Linear that regress `parts` vectors from c: (N, D) -> (N, parts * D)."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def mlp(model: Model) -> nn.Sequential:
    """Linear, tanh-approximated GELU, Linear over the last axis; hidden size floor(mlp_ratio * width)."""
    hidden = int(model.mlp_ratio * model.width)
    return nn.Sequential(nn.Linear(model.width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, model.width))


class Attention(nn.Module):
    """Multi-head self-attention: (N, T, D) -> (N, T, D), one fused qkv Linear."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens (N, T, D)."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (N, T, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 times (N, H, T, D/H)
        x = F.scaled_dot_product_attention(q, k, v)  # (N, H, T, D/H)
        x = self.projection(x.transpose(1, 2).flatten(2))  # (N, T, D)
        return x


class CrossAttention(nn.Module):
    """Multi-head attention of tokens (N, T, D) to a condition (N, K, D); returns (N, T, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return what the tokens (N, T, D) read from c (N, K, D)."""
        q = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, H, T, D/H)
        kv = self.key_value(c).unflatten(2, (2, self.heads, -1))  # (N, K, 2, H, D/H)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # 2 times (N, H, K, D/H)
        x = F.scaled_dot_product_attention(q, k, v)  # (N, H, T, D/H)
        x = self.projection(x.transpose(1, 2).flatten(2))  # (N, T, D)
        return x


class Block(nn.Module):
    """A transformer block: built from a `Model`, called with tokens (N, T, D) and a condition, returns (N, T, D)."""

    #: The condition is the sum (N, D) instead of the sequence (N, K, D), and the final LayerNorm adapts to it too.
    adaptive: ClassVar[bool] = False
    #: The condition also joins the tokens as K extra ones, from before the first block until after the last.
    in_context: ClassVar[bool] = False

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.norm1 = layer_norm(model.width, affine=not self.adaptive)
        self.attention = Attention(model.width, model.heads)
        self.norm2 = layer_norm(model.width, affine=not self.adaptive)
        self.mlp = mlp(model)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return the tokens (N, T, D) after the block."""
        raise NotImplementedError


class InContextBlock(Block):
    """A plain ViT block; timestep and label are tokens like the others, so c is not read here."""

    in_context = True

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T + K, D) -> (N, T + K, D); c is among them."""
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class CrossAttentionBlock(Block):
    """A ViT block with a multi-head cross-attention to [timestep, label] between self-attention and MLP."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.norm_cross = layer_norm(model.width, affine=True)
        self.cross_attention = CrossAttention(model.width, model.heads)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D), condition (N, K, D) -> (N, T, D)."""
        x = x + self.attention(self.norm1(x))
        x = x + self.cross_attention(self.norm_cross(x), c)
        x = x + self.mlp(self.norm2(x))
        return x


class AdaLNBlock(Block):
    """A ViT block whose LayerNorms are shifted and scaled by vectors regressed from the condition."""

    adaptive = True

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.modulation = modulation(model.width, 4)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D), condition (N, D) -> (N, T, D)."""
        shift1, scale1, shift2, scale2 = self.modulation(c).unsqueeze(1).chunk(4, dim=2)  # each (N, 1, D)
        x = x + self.attention(modulate(self.norm1(x), shift1, scale1))
        x = x + self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x


class AdaLNZeroBlock(Block):
    """adaLN with a gate before each residual sum; the gates start at zero, so the block starts as the identity."""

    adaptive = True

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.modulation = modulation(model.width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D), condition (N, D) -> (N, T, D)."""
        parts = self.modulation(c).unsqueeze(1).chunk(6, dim=2)  # each (N, 1, D)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        x = torch.addcmul(x, gate1, self.attention(modulate(self.norm1(x), shift1, scale1)))
        x = torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))
        return x


class AdaLNGateBlock(AdaLNZeroBlock):
    """adaLN-Zero's block, gates and all, whose modulation starts like any other Linear (see `initialise`)."""


BLOCKS: dict[str, type[Block]] = {
    "in-context": InContextBlock,
    "cross-attention": CrossAttentionBlock,
    "adaln": AdaLNBlock,
    "adaln-zero": AdaLNZeroBlock,
    "adaln-gate": AdaLNGateBlock,
}
