"""The U-Net: shapes, conditioning, cost by two counters, and what its spec refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import InputError
from harness.model.cost import count
from harness.model.formats import check_exportable
from harness.model.network import build
from harness.model.unet import UNet
from harness.spec.cell import Cell
from harness.spec.data import InputShape
from harness.spec.model import UNetSpec

SHAPE = InputShape(1, 8, 10)


def spec(**fields: Any) -> UNetSpec:
    return UNetSpec(**{"network": "unet", "channels": [8, 16], "blocks": 1, "norm_groups": 4, **fields})


def unet(shape: InputShape = SHAPE, outputs: int = 2, seed: int = 0, **fields: Any) -> UNet:
    network = build(spec(**fields), shape, outputs)
    assert isinstance(network, UNet)
    network.initialise(seed)
    return network.eval()


@pytest.mark.parametrize(
    ("shape", "outputs", "fields"),
    [
        (SHAPE, 2, {}),
        (InputShape(4, 8, 3), 1, {"channels": [4, 12, 8], "attention": [1, 2], "blocks": 2}),
        (InputShape(3, 5, 0), 2, {"channels": [8], "attention": [0], "norm_groups": 1}),
    ],
)
def test_shapes_and_two_counters(shape: InputShape, outputs: int, fields: dict[str, Any]) -> None:
    network = unet(shape, outputs, **fields)
    y = torch.tensor([0, shape.classes]) if shape.classes else None
    x = torch.randn(2, shape.channels, shape.size, shape.size, generator=torch.Generator().manual_seed(1))
    out = network(x, torch.tensor([0, 999]), y)
    assert out.shape == (2, outputs * shape.channels, shape.size, shape.size)
    one = network(x[1:], torch.tensor([999.0]), None if y is None else y[1:])
    torch.testing.assert_close(one, out[1:], rtol=1e-3, atol=1e-4)
    cost = count(spec(**fields), shape, outputs)
    with FlopCounterMode(display=False) as counter:
        network(x[:1], torch.zeros(1), None if y is None else y[:1])
    assert (2 * cost.macs, cost.params) == (counter.get_total_flops(), sum(p.numel() for p in network.parameters()))


def test_two_counters_agree_on_a_large_one() -> None:
    model = UNetSpec(network="unet", channels=(192, 384, 768), attention=(1, 2), blocks=1)
    shape = InputShape(4, 32, 1000)
    with torch.device("meta"):
        network = build(model, shape, 2)
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert 2 * count(model, shape).macs == counter.get_total_flops()
    assert 0.5 < model.macs_proxy(shape) / count(model, shape).macs < 1, "it orders a queue; attention is left out"
    assert model.head_channels == 64
    assert (model.layers, model.compiled_layers) == (11, 11)


def test_time_and_label_decide_and_the_null_class_is_the_last_row() -> None:
    network = unet()
    assert network.null_class == 10
    x, t, y = torch.randn(1, 1, 8, 8), torch.tensor([10]), torch.tensor([10])
    before = network(x, t, y)
    assert not torch.allclose(before, network(x, torch.tensor([500]), y), atol=1e-3)
    assert not torch.allclose(before, network(x, t, torch.tensor([3])), atol=1e-3)
    with torch.no_grad():
        network.unet.class_embedding.weight[10] += 1
    assert not torch.equal(before, network(x, t, y))
    with pytest.raises(InputError, match="needs labels"):
        network(x, t)
    with pytest.raises(InputError, match="takes no labels"):
        unet(InputShape(1, 8, 0))(x, t, y)


def test_the_seed_alone_decides_the_initialisation() -> None:
    torch.manual_seed(1)
    first = unet(seed=3).state_dict()
    torch.manual_seed(2)
    again, other = unet(seed=3).state_dict(), unet(seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["unet.conv_in.weight"], other["unet.conv_in.weight"])
    assert not [name for name, value in first.items() if name.endswith("weight") and not value.any()], "none is zero"


def test_bf16_autocast() -> None:
    network = unet(attention=[1])
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([1, 500]), torch.tensor([3, 10])
    with torch.autocast("cpu", torch.bfloat16):
        out = network(*inputs)
        out.float().sum().backward()
    expected = network(*inputs)
    assert (out.float() - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"channels": [8, 18]},
            "channels 18 is not divisible by norm_groups 4; allowed: multiples of it, or fewer groups",
        ),
        ({"channels": []}, "channels"),
        ({"channels": [8, 0]}, "channels.1"),
        ({"channels": [8, 16.5]}, "channels.1"),
        ({"norm_groups": 64}, "norm_groups"),
        ({"attention": [2]}, "allowed: the levels 0 to 1, each once and in this order"),
        ({"attention": [1, 0]}, "each once and in this order"),
        ({"patch_size": 2}, "patch_size"),
    ],
)
def test_what_cannot_be_built_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        spec(**fields)
    assert message in str(raised.value).replace("\n", " ")


def test_levels_must_halve_the_input() -> None:
    model = spec(channels=[4] * 5).model_dump()
    with pytest.raises(
        ValidationError, match="5 levels halve the 8x8 input of digits 4 times; allowed: up to 4 levels"
    ):
        Cell.model_validate({"model": model})
    with pytest.raises(ValidationError, match="a tensor of"):
        Cell.model_validate(
            {"model": spec(channels=[10**6]).model_dump(), "data": {"name": "imagenet", "resolution": 2**20}}
        )


def test_a_name_holds_the_shape_and_export_is_refused() -> None:
    assert spec(attention=[0, 1]).readable_name == "unet-8-16-b1-a0.1-g4"
    assert UNetSpec(network="unet", channels=(32, 64)).readable_name == "unet-32-64-b2"
    with pytest.raises(InputError, match="a network unet cannot be exported"):
        check_exportable(spec(), SHAPE)
