"""The base of the transformer blocks of a DiT, and the parts that the designs share (paper, section 3.2, Figure 3).

Each design is a subclass of `Block` in its own file, with a line in `BLOCKS` in `harness.spec.model`. Where the paper
leaves it open, the choice here gives the published parameter counts and Gflops: LayerNorm has eps 1e-6 everywhere. It
has a learned scale and shift in the in-context and cross-attention designs, as in a plain ViT, and none in the adaLN
designs, where the regressed ones take their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.spec.model import DiTSpec


def layer_norm(width: int, affine: bool) -> nn.LayerNorm:
    """LayerNorm over the last axis, eps 1e-6; `affine`: with a learned scale and shift."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return x * (1 + scale) + shift, for x (N, T, D) and shift, scale (N, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class Modulation(nn.Sequential):
    """SiLU and Linear that regress `parts` vectors from a condition."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, parts * width))
        self.parts = parts

    def vectors(self, c: Tensor) -> tuple[Tensor, ...]:
        """Condition (N, D) -> `parts` vectors (N, 1, D)."""
        return self(c).unsqueeze(1).chunk(self.parts, dim=2)  # type: ignore[no-any-return]


class QKNorm(nn.Module):
    """RMSNorm of every head's queries and keys, each with a learned scale, eps 1e-6.

    It bounds the logits of the attention (Dehghani et al. 2023, arXiv:2302.05442, section 2.1, with LayerNorm; RMSNorm
    as Esser et al. 2024, arXiv:2403.03206, section 5.3.2). Values stay as they are.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_norm = nn.RMSNorm(channels, eps=1e-6)
        self.k_norm = nn.RMSNorm(channels, eps=1e-6)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (N, H, T, D/H), normalised over the last axis, in the type of the scales."""
        kind = self.q_norm.weight.dtype  # under autocast q and k have 16 bits, and mixed types have no fused kernel
        return self.q_norm(q.to(kind)), self.k_norm(k.to(kind))


class Attention(nn.Module):
    """Multi-head self-attention: (N, T, D) -> (N, T, D), one fused qkv Linear."""

    def __init__(self, model: DiTSpec) -> None:
        super().__init__()
        width, self.heads = model.width, model.heads
        self.qkv = nn.Linear(width, 3 * width)
        self.qk_norm = QKNorm(width // model.heads) if model.qk_norm else None
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens (N, T, D)."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (N, T, 3, H, D/H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 times (N, H, T, D/H)
        if self.qk_norm is not None:
            q, k = self.qk_norm(q, k)
        x = F.scaled_dot_product_attention(q, k, v)  # (N, H, T, D/H)
        x = self.projection(x.transpose(1, 2).flatten(2))  # (N, T, D)
        return x


class Block(nn.Module):
    """A transformer block: built from a `DiTSpec`, called with tokens (N, T, D) and a condition, returns (N, T, D)."""

    #: True: the condition is the sum of the embeddings of timestep and label, (N, D), and the final layer adapts to it.
    #: False: it is their sequence (N, K, D): timestep, then label; K = 1 in a model without labels.
    adaptive: ClassVar[bool] = False
    #: The condition also joins the sequence as K extra tokens, from before the first block until after the last.
    in_context: ClassVar[bool] = False
    #: Submodules whose matrices start at 0; every other matrix starts Xavier uniform.
    starts_at_zero: ClassVar[tuple[str, ...]] = ()

    def __init__(self, model: DiTSpec) -> None:
        super().__init__()
        hidden = int(model.mlp_ratio * model.width)
        self.norm1 = layer_norm(model.width, affine=not self.adaptive)
        self.attention = Attention(model)
        self.norm2 = layer_norm(model.width, affine=not self.adaptive)
        self.mlp = nn.Sequential(
            nn.Linear(model.width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, model.width)
        )

    def initialise(self, generator: torch.Generator) -> None:
        """Overwrite every parameter; draws come from `generator`, in the order of `named_parameters`."""
        fill(self, xavier_uniform(generator), self.starts_at_zero)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return the tokens (N, T, D) after the block."""
        raise NotImplementedError


@torch.no_grad()
def fill(module: nn.Module, draw: Callable[[Tensor], Tensor], zero: tuple[str, ...] = ()) -> None:
    """Overwrite every parameter: biases 0, LayerNorm scales 1, matrices 0 in the submodules `zero` and drawn elsewhere.

    Draws are made in the order of `named_parameters`, on the CPU and in float32 whatever the device and type of
    `module`. Constants draw nothing.
    """
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1)
        elif name.startswith(zero):
            parameter.zero_()
        else:
            parameter.copy_(draw(torch.empty(parameter.shape, device="cpu")))


def xavier_uniform(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Draws within +-sqrt(6 / (fan in + fan out)); a fused qkv is one matrix, the patch weight is (D, C*p*p)."""

    def draw(matrix: Tensor) -> Tensor:
        bound = math.sqrt(6 / sum(matrix.flatten(1).shape))
        return matrix.uniform_(-bound, bound, generator=generator)

    return draw
