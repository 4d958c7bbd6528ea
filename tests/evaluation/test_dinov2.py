"""DINOv2's features with made-up weights of the official format, against an independent computation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from harness.errors import InputError
from harness.evaluation import dinov2
from harness.evaluation.extractors import extractor_label
from harness.evaluation.features import Extraction
from harness.runs.columns import metric_name
from harness.spec.data import Data
from harness.spec.evaluation import EXTRACTORS, fitting
from harness.spec.resources import Resources

pytest.importorskip("timm", reason="the extra dinov2 is not installed")

SMALL = dinov2.Shape("ViT-tiny/14", 32, 2, 4)

NAME = "dinov2-vit-l14"


def official(shape: dinov2.Shape) -> dict[str, Tensor]:
    """Random weights under the names of the official files."""
    width, generator = shape.width, torch.Generator().manual_seed(0)

    def draw(*size: int, scale: float = 0.1) -> Tensor:
        return torch.randn(size, generator=generator) * scale

    state = {"cls_token": draw(1, 1, width), "pos_embed": draw(1, 1370, width), "mask_token": draw(1, width)}
    state |= {"patch_embed.proj.weight": draw(width, 3, 14, 14, scale=0.05), "patch_embed.proj.bias": draw(width)}
    for i in range(shape.depth):
        sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, size in sizes.items():
            state |= {f"blocks.{i}.{name}.weight": draw(*size, scale=0.2), f"blocks.{i}.{name}.bias": draw(size[0])}
        for name in ("norm1", "norm2"):
            state |= {f"blocks.{i}.{name}.weight": 1 + draw(width), f"blocks.{i}.{name}.bias": draw(width)}
        state |= {f"blocks.{i}.{name}.gamma": 1 + draw(width) for name in ("ls1", "ls2")}
    return state | {"norm.weight": 1 + draw(width), "norm.bias": draw(width)}


def by_hand(state: dict[str, Tensor], images: np.ndarray, heads: int) -> Tensor:
    """The class tokens, in float64, from the formulas of the paper and of the official code."""
    s = {name: value.double() for name, value in state.items()}
    pillow = [np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)) for image in images]
    x = torch.from_numpy(np.stack(pillow)).permute(0, 3, 1, 2).double() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = F.conv2d(x, s["patch_embed.proj.weight"], s["patch_embed.proj.bias"], stride=14).flatten(2).transpose(1, 2)
    x = torch.cat((s["cls_token"].expand(len(x), -1, -1), x), dim=1)
    grid = s["pos_embed"][:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=16.1 / 37, mode="bicubic").permute(0, 2, 3, 1).reshape(1, 256, -1)
    x = x + torch.cat((s["pos_embed"][:, :1], grid), dim=1)
    for i in range(sum(name.endswith("ls1.gamma") for name in s)):
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in s.items() if name.startswith(f"blocks.{i}.")}
        width = x.shape[-1]
        h = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        qkv = (h @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(2, 3) / math.sqrt(width / heads)).softmax(-1)
        h = (weights @ qkv[2]).transpose(1, 2).flatten(2) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + b["ls1.gamma"] * h
        h = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        h = F.gelu(h @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]) @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
        x = x + b["ls2.gamma"] * h
    return F.layer_norm(x, (x.shape[-1],), s["norm.weight"], s["norm.bias"], 1e-6)[:, 0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "small.pth"
    torch.save(official(SMALL), path)
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dinov2, "DINOV2", dinov2.DinoV2(SMALL))


@pytest.mark.parametrize("side", [32, 256])
@pytest.mark.usefixtures("small")
def test_features_are_those_of_an_independent_computation(weights: Path, side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    found = Extraction(NAME, weights=str(weights)).features_of(images)
    expected = by_hand(official(SMALL), images, SMALL.heads)
    assert found.logits is None
    assert found.pool.dtype == torch.float64
    # a pixel may round to the next level
    assert ((found.pool - expected).norm() / expected.norm()) < 2e-3
    assert Extraction(NAME, weights=str(weights)).label == extractor_label(NAME, str(weights))
    assert metric_name(Extraction(NAME, weights=str(weights)).label) == "FD-dinov2-vit-l14"


@pytest.mark.parametrize("side", [20, 64, 300])
def test_images_are_resized_as_pillow_does(side: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pillow = np.asarray(Image.fromarray(image).resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
    ours = dinov2.resized(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - pillow).max() <= 1
    assert (ours != pillow).mean() < 0.02


def test_the_large_one_fits_the_official_layout_and_its_price() -> None:
    facts = EXTRACTORS.facts(NAME)
    with torch.device("meta"):
        network = dinov2.transformer(dinov2.VIT_L, dinov2.SIZE).eval()
        with FlopCounterMode(display=False) as counter:
            tokens = network.forward_features(torch.zeros(1, 3, 224, 224))
    assert tokens.shape == (1, 257, facts.dims)
    assert counter.get_total_flops() / 2e9 == pytest.approx(facts.gmacs, rel=0.1)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(304e6, rel=0.01)


def test_other_weights_are_refused_in_one_line(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"small.pth: other weights than DINOv2 ViT-L/14 has \(\d+ tensors differ"
    ) as raised:
        dinov2.DINOV2.check(str(weights))
    assert "\n" not in str(raised.value)
    assert "dinov2_vitl14_pretrain.pth" in str(raised.value)
    for name, change, message in (
        ("odd", {"norm.bias": torch.full((32,), torch.nan)}, "32 of .* values are not finite"),
        (
            "more",
            {"register_tokens": torch.zeros(1, 4, 32)},
            r"1 tensors differ, for example register_tokens: \(1, 4, 32\), expected unknown",
        ),
    ):
        path = tmp_path / f"{name}.pth"
        torch.save(official(SMALL) | change, path)
        with pytest.raises(InputError, match=message):
            dinov2.read_weights(path, SMALL)
    with pytest.raises(InputError, match=r"resources\.dinov2_weights: .*none: no such file"):
        dinov2.DINOV2.check(str(tmp_path / "none"))
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(InputError, match="no readable PyTorch checkpoint"):
        dinov2.DINOV2.check(str(tmp_path / "text"))


def test_its_file_is_a_resource_of_its_own() -> None:
    resources = Resources(inception_weights="a", dinov2_weights="b")
    assert [resources.weights_of(name) for name in ("inception-v3-compat", NAME, "digits-cnn")] == ["a", "b", None]
    assert NAME in fitting(Data(name="imagenet", resolution=256).image_shape)
