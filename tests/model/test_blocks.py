"""The four block designs against the same arithmetic written with torch's own modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.model.blocks.block import Attention, Block
from harness.model.blocks.cross_attention import CrossAttention, CrossAttentionBlock
from harness.model.dit import DiT
from harness.spec.data import InputShape
from harness.spec.model import BLOCKS, DiTSpec

WIDTH, HEADS, TOKENS = 24, 3, 5


def filled(block: str, mlp_ratio: float = 4.0) -> Block:
    """A block with every parameter, also the zero ones, drawn at random."""
    spec = DiTSpec(depth=1, width=WIDTH, heads=HEADS, patch_size=1, block=block, mlp_ratio=mlp_ratio)
    module: Block = BLOCKS.load(block)(spec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.2, generator=generator)
    return module.double()


def inputs(adaptive: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64)
    c = torch.randn(2, 2, WIDTH, generator=generator, dtype=torch.float64)
    return x, c.sum(1) if adaptive else c


def reference_attention(attention: Attention | CrossAttention, x: Tensor, context: Tensor) -> Tensor:
    reference = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    inner = [attention.qkv] if isinstance(attention, Attention) else [attention.query, attention.key_value]
    reference.in_proj_weight.data = torch.cat([linear.weight.data for linear in inner])
    reference.in_proj_bias.data = torch.cat([linear.bias.data for linear in inner])
    reference.out_proj.weight.data = attention.projection.weight.data
    reference.out_proj.bias.data = attention.projection.bias.data
    out: Tensor = reference(x, context, context, need_weights=True)[0]
    return out


def reference_mlp(block: Block, x: Tensor) -> Tensor:
    hidden = x @ block.get_parameter("mlp.0.weight").T + block.get_parameter("mlp.0.bias")
    hidden = 0.5 * hidden * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    return hidden @ block.get_parameter("mlp.2.weight").T + block.get_parameter("mlp.2.bias")


def reference_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    return x if weight is None or bias is None else x * weight + bias


def test_in_context_is_a_plain_vit_block() -> None:
    block = filled("in-context")
    x, c = inputs(adaptive=False)
    normed = reference_norm(x, block.norm1.weight, block.norm1.bias)
    expected = x + reference_attention(block.attention, normed, normed)
    expected = expected + reference_mlp(block, reference_norm(expected, block.norm2.weight, block.norm2.bias))
    torch.testing.assert_close(block(x, c), expected)


def test_cross_attention_reads_the_condition_between_attention_and_mlp() -> None:
    block = filled("cross-attention")
    assert isinstance(block, CrossAttentionBlock)
    x, c = inputs(adaptive=False)
    normed = reference_norm(x, block.norm1.weight, block.norm1.bias)
    expected = x + reference_attention(block.attention, normed, normed)
    query = reference_norm(expected, block.norm_cross.weight, block.norm_cross.bias)
    expected = expected + reference_attention(block.cross_attention, query, c)
    expected = expected + reference_mlp(block, reference_norm(expected, block.norm2.weight, block.norm2.bias))
    torch.testing.assert_close(block(x, c), expected)


@pytest.mark.parametrize("name", ["adaln", "adaln-zero", "adaln-gate"])
def test_adaln_shifts_scales_and_gates(name: str) -> None:
    block, gated = filled(name), name != "adaln"
    x, c = inputs(adaptive=True)
    weight, bias = block.get_parameter("modulation.1.weight"), block.get_parameter("modulation.1.bias")
    regressed = ((c * torch.sigmoid(c)) @ weight.T + bias)[:, None]
    parts = list(regressed.split(WIDTH, dim=2))
    if not gated:
        one = torch.ones_like(parts[0])
        parts = [*parts[:2], one, *parts[2:], one]
    shift1, scale1, gate1, shift2, scale2, gate2 = parts
    normed = reference_norm(x) * (1 + scale1) + shift1
    expected = x + gate1 * reference_attention(block.attention, normed, normed)
    normed = reference_norm(expected) * (1 + scale2) + shift2
    expected = expected + gate2 * reference_mlp(block, normed)
    torch.testing.assert_close(block(x, c), expected)


def test_mlp_ratio_sets_the_hidden_size() -> None:
    assert filled("adaln-zero", mlp_ratio=2.5).get_parameter("mlp.0.weight").shape == (60, WIDTH)


def test_adaln_zero_blocks_start_as_exactly_the_identity() -> None:
    dit = DiT(DiTSpec(depth=3, width=WIDTH, heads=HEADS, patch_size=1), InputShape(1, 3, 10))
    dit.initialise(0)
    x, c = (tensor.float() for tensor in inputs(adaptive=True))
    for block in dit.blocks:
        assert torch.equal(block(x, 100 * c), x)


def test_adaln_gate_is_adaln_zero_but_for_its_start() -> None:
    """Same parameters, same function; only what `initialise` makes of the modulation differs."""
    gate, zero = (DiT(DiTSpec(depth=2, width=WIDTH, heads=HEADS, patch_size=1, block=b), InputShape(1, 3, 10))
                  for b in ("adaln-gate", "adaln-zero"))  # fmt: skip
    gate.initialise(0)
    x, c = (tensor.float() for tensor in inputs(adaptive=True))
    assert not torch.equal(gate.blocks[0](x, c), x)
    assert (gate.get_parameter("blocks.0.modulation.1.weight") != 0).any()
    zero.load_state_dict(gate.state_dict())
    assert torch.equal(gate.blocks[1](x, c), zero.blocks[1](x, c))
    assert not gate(torch.ones(1, 1, 3, 3), torch.ones(1), torch.tensor([1])).any()  # the final layer starts at zero


@pytest.mark.parametrize("name", sorted(BLOCKS.names))
@pytest.mark.parametrize("classes", [0, 3])
def test_every_design_learns_to_use_its_condition(name: str, classes: int) -> None:
    dit = DiT(DiTSpec(depth=2, width=16, heads=2, patch_size=2, block=name), InputShape(1, 4, classes))
    dit.initialise(0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 1, 4, 4, generator=generator)
    target = torch.randn(8, 2, 4, 4, generator=generator)
    t = torch.arange(8) * 120
    y = torch.arange(8) % 4 if classes else None
    assert (dit(x, t, y) == 0).all()
    optimiser = torch.optim.AdamW(dit.parameters(), lr=1e-2)
    for _ in range(4):
        optimiser.zero_grad()
        F.mse_loss(dit(x, t, y), target).backward()
        optimiser.step()
    with torch.no_grad():
        out = dit(x, t, y)
        assert (dit(x, t + 400, y) - out).abs().amax() > 1e-3
        if y is not None:
            change = (dit(x, t, (y + 1) % 4) - out).abs().flatten(1).amax(1)
            assert (change > 1e-4).all()  # for every label, the null class included
