"""Norms of queries and keys: in every design, and in no other program's format."""

from __future__ import annotations

import pytest
import torch

from harness.errors import InputError
from harness.model.blocks.block import Attention, Block
from harness.model.blocks.cross_attention import CrossAttention
from harness.model.diffusers import to_diffusers
from harness.model.dit import DiT
from harness.model.official import to_official
from harness.spec.data import InputShape
from harness.spec.model import BLOCKS, DiTSpec

WIDTH, TOKENS = 24, 5


def spec_of(block: str, *, qk_norm: bool = True) -> DiTSpec:
    return DiTSpec(depth=1, width=WIDTH, heads=3, patch_size=1, block=block, qk_norm=qk_norm)


@pytest.mark.parametrize("name", sorted(BLOCKS.names))
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_is_blind_to_the_length_of_queries_and_keys(name: str, precision: torch.dtype) -> None:
    block: Block = BLOCKS.load(name)(spec_of(name))
    generator = torch.Generator().manual_seed(0)
    block.initialise(generator)
    with torch.no_grad():
        for matrix in block.parameters():
            if matrix.ndim > 1:  # the gates of adaLN-Zero, too
                matrix.normal_(0, 0.2, generator=generator)
    attentions = [part for part in block.modules() if isinstance(part, (Attention, CrossAttention))]
    assert len(attentions) == 1 + (name == "cross-attention")
    x, c = torch.randn(2, TOKENS, WIDTH, generator=generator), torch.randn(2, 2, WIDTH, generator=generator)
    c = c.sum(1) if block.adaptive else c
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        before = block(x, c)
        for attention in attentions:
            if isinstance(attention, Attention):
                attention.qkv.weight[: 2 * WIDTH] *= 8  # queries and keys; biases are 0
            else:
                attention.query.weight *= 8
        torch.testing.assert_close(block(x, c), before, atol=1e-4, rtol=1e-3)
        for attention in attentions:
            assert attention.qk_norm is not None
            attention.qk_norm.q_norm.weight.mul_(8)  # the learned scale decides instead
        assert not torch.allclose(block(x, c), before, atol=1e-2)


def test_without_it_nothing_is_added() -> None:
    plain, normed = (
        {name for name, _ in BLOCKS.load("adaln-zero")(spec_of("adaln-zero", qk_norm=asked)).named_parameters()}
        for asked in (False, True)
    )
    assert plain < normed
    assert normed - plain == {"attention.qk_norm.q_norm.weight", "attention.qk_norm.k_norm.weight"}


def test_no_other_format_has_it() -> None:
    dit = DiT(spec_of("adaln-zero"), InputShape(4, 4, 10))
    for convert in (to_official, to_diffusers):
        with pytest.raises(InputError, match="a model with qk_norm cannot be exported: official code and diffusers"):
            convert(dit)
