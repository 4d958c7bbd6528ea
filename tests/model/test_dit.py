"""The whole model: shapes, conditioning, initialisation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import InputError
from harness.model.dit import DiT
from harness.spec.data import InputShape
from harness.spec.model import BLOCKS, DiTSpec

EVERY_BLOCK = pytest.mark.parametrize("block", sorted(BLOCKS.names))


def build(shape: InputShape, seed: int = 0, **options: Any) -> DiT:
    dit = DiT(DiTSpec(**{"depth": 2, "width": 24, "heads": 3, "patch_size": 2, **options}), shape)
    dit.initialise(seed)
    return dit


def stir(dit: DiT, scale: float = 0.3) -> DiT:
    """Draw every parameter at random, so that nothing is zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.normal_(0, scale, generator=generator)
    return dit


@EVERY_BLOCK
@pytest.mark.parametrize("classes", [0, 1, 10])
@pytest.mark.parametrize(("channels", "size", "patch_size"), [(1, 8, 2), (3, 9, 3), (5, 7, 7), (2, 5, 1)])
def test_output_has_noise_and_variance(block: str, classes: int, channels: int, size: int, patch_size: int) -> None:
    dit = stir(build(InputShape(channels, size, classes), block=block, patch_size=patch_size))
    y = torch.tensor([0, classes]) if classes else None
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0, 999])
    out = dit(x, t, y)
    assert out.shape == (2, 2 * channels, size, size)
    assert out.isfinite().all()
    torch.testing.assert_close(dit(x[1:], t[1:].float(), None if y is None else y[1:]), out[1:], rtol=1e-3, atol=1e-3)


def test_noise_channels_come_first() -> None:
    dit = build(InputShape(3, 4, 0))
    with torch.no_grad():
        dit.final.linear.bias.copy_(torch.arange(6.0).repeat(4))  # ordered (row, column, channel)
    out = dit(torch.randn(1, 3, 4, 4), torch.zeros(1))
    assert (out == torch.arange(6.0).view(1, 6, 1, 1)).all()


@EVERY_BLOCK
def test_bf16_autocast(block: str) -> None:
    dit = stir(build(InputShape(1, 8, 10), block=block), 0.1)  # larger weights magnify the rounding
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([1, 500]), torch.tensor([3, 10])
    with torch.autocast("cpu", torch.bfloat16):
        out = dit(*inputs)
        out.float().sum().backward()
    expected = dit(*inputs)
    assert (out.float() - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("classes", [0, 4])
def test_in_context_tokens_join_at_the_end_and_leave_before_the_last_layer(classes: int) -> None:
    dit = stir(build(InputShape(1, 6, classes), block="in-context"))
    seen: dict[str, Tensor] = {}
    dit.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.update(first=inputs[0]))
    dit.final.register_forward_pre_hook(lambda _, inputs: seen.update(final=inputs[0]))
    x, t, y = torch.randn(2, 1, 6, 6), torch.tensor([5, 6]), torch.tensor([1, 4]) if classes else None
    dit(x, t, y)
    extra = 2 if classes else 1
    assert seen["first"].shape == (2, 9 + extra, 24)
    torch.testing.assert_close(seen["first"][:, :9], dit.patch_embedding(x) + dit.positions)
    torch.testing.assert_close(seen["first"][:, 9], dit.timestep_embedding(t))
    if classes:
        torch.testing.assert_close(seen["first"][:, 10], dit.label_embedding.weight[y])  # type: ignore[union-attr]
    assert seen["final"].shape == (2, 9, 24)


def test_the_null_class_is_the_last_row_of_the_label_table() -> None:
    dit = stir(build(InputShape(1, 4, 7)))
    assert dit.null_class == 7
    assert dit.label_embedding is not None
    assert dit.label_embedding.weight.shape == (8, 24)
    x, t, y = torch.randn(2, 1, 4, 4), torch.tensor([1, 2]), torch.tensor([dit.null_class, 6])
    before = dit(x, t, y)
    with torch.no_grad():
        dit.label_embedding.weight[7] += 1
    after = dit(x, t, y)
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_bad_input_is_refused() -> None:
    x, t, y = torch.zeros(1, 1, 4, 4), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(InputError, match="takes no labels"):
        build(InputShape(1, 4, 0))(x, t, y)
    with pytest.raises(InputError, match="needs labels"):
        build(InputShape(1, 4, 3))(x, t)
    with pytest.raises(InputError, match="no null class"):
        _ = build(InputShape(1, 4, 0)).null_class
    with pytest.raises(InputError, match="patch_size 3 does not divide"):
        build(InputShape(1, 4, 3), patch_size=3)
    with pytest.raises(InputError, match="hidden unit"):
        build(InputShape(1, 4, 3), mlp_ratio=0.01)


def test_positions_are_no_parameter_and_not_saved() -> None:
    dit = build(InputShape(1, 4, 3))
    assert "positions" in dict(dit.named_buffers())
    assert dit.state_dict().keys() == dict(dit.named_parameters()).keys()


# Initialisation


def is_uniform(weight: Tensor, bound: float) -> bool:
    """Whether values fill [-bound, bound] with the standard deviation of a uniform distribution."""
    inside = bool(weight.abs().max() <= bound) and bool(weight.abs().max() > 0.98 * bound)
    return inside and math.isclose(weight.std().item(), bound / math.sqrt(3), rel_tol=0.05)


@EVERY_BLOCK
@pytest.mark.parametrize("classes", [0, 200])
def test_initial_weights_by_kind(block: str, classes: int) -> None:
    dit = build(InputShape(4, 8, classes), block=block, width=64, heads=4)
    kinds = {"zero": 0, "one": 0, "normal": 0, "uniform": 0}
    for name, parameter in dit.named_parameters():
        starts_zero = name.startswith(("final.linear", "final.modulation"))
        starts_zero |= "modulation" in name and block == "adaln-zero"
        if name.endswith(".bias") or starts_zero:
            kind, holds = "zero", bool((parameter == 0).all())
        elif "norm" in name:
            kind, holds = "one", bool((parameter == 1).all())
        elif name.startswith(("timestep_embedding", "label_embedding")):
            mean, deviation = parameter.mean().item(), parameter.std().item()
            kind, holds = "normal", abs(mean) < 0.001 and math.isclose(deviation, 0.02, rel_tol=0.05)
            holds = holds and parameter.abs().max().item() > 0.05  # not uniform
        else:
            rows, columns = len(parameter), parameter.numel() // len(parameter)
            kind, holds = "uniform", is_uniform(parameter.detach(), math.sqrt(6 / (rows + columns)))
        assert holds, f"{name} is not {kind}"
        kinds[kind] += 1
    per_block = {"in-context": 4, "cross-attention": 7, "adaln": 5, "adaln-zero": 4, "adaln-gate": 5}[block]
    norms = {"in-context": 2 * 2 + 1, "cross-attention": 2 * 3 + 1}.get(block, 0)
    assert kinds["uniform"] == 1 + 2 * per_block
    assert kinds["normal"] == (3 if classes else 2)
    assert kinds["one"] == norms


def test_the_seed_alone_decides_the_weights() -> None:
    shape = InputShape(1, 8, 10)
    torch.manual_seed(1)
    one = build(shape, seed=3)
    torch.manual_seed(2)
    two = DiT(one.model, shape)
    state = torch.get_rng_state()
    two.initialise(3)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other = build(shape, seed=4)
    assert not torch.equal(one.patch_embedding.weight, other.patch_embedding.weight)


def test_a_model_in_another_type_starts_from_the_same_draws() -> None:
    shape = InputShape(1, 8, 10)
    single, double = build(shape), DiT(build(shape).model, shape).double()
    double.initialise(0)
    assert all(torch.equal(a.double(), b) for a, b in zip(single.parameters(), double.parameters(), strict=True))


def test_the_order_of_the_draws_is_as_documented() -> None:
    dit = build(InputShape(2, 8, 10), seed=11)
    generator = torch.Generator().manual_seed(11)
    bound = math.sqrt(6 / (24 + 2 * 2 * 2))
    assert torch.equal(
        dit.patch_embedding.weight, torch.empty(24, 2, 2, 2).uniform_(-bound, bound, generator=generator)
    )
    for parameter in (
        dit.get_parameter("timestep_embedding.mlp.0.weight"),
        dit.get_parameter("timestep_embedding.mlp.2.weight"),
        dit.get_parameter("label_embedding.weight"),
    ):
        assert torch.equal(parameter, torch.empty_like(parameter).normal_(0, 0.02, generator=generator))
    qkv = dit.get_parameter("blocks.0.attention.qkv.weight")
    bound = math.sqrt(6 / (24 + 72))  # the fused matrix, not three of 24 x 24
    assert torch.equal(qkv, torch.empty(72, 24).uniform_(-bound, bound, generator=generator))
