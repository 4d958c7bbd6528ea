"""Weights of other people's making: other precisions and names are read, what cannot be right is one line."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import InputError
from harness.model import formats
from harness.model.diffusers import (
    Decoder,
    diffusers_config,
    from_diffusers,
    read_diffusers,
    to_diffusers,
    write_diffusers,
)
from harness.model.official import from_official, read_official, to_official, write_official
from harness.spec.data import InputShape
from harness.spec.diffusion import Diffusion
from harness.spec.model import DiTSpec
from tests.model.test_formats import TINY, TINY_SHAPE, random_dit, same, small_vae

#: To other people's names; True: official.
FORMATS = {True: to_official, False: to_diffusers}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read_exactly(dtype: torch.dtype, tmp_path: Path) -> None:
    model = DiTSpec(depth=1, width=64, heads=2, patch_size=1)
    dit = random_dit(model, InputShape(1, 16, 5))
    stored = {name: tensor.to(dtype) for name, tensor in to_official(dit).items()}
    widened = {name: tensor.float() for name, tensor in stored.items()}  # as a file that was bf16 before
    for given in (stored, widened):
        state = from_official(given, heads=model.heads).state
        assert torch.equal(state["final.linear.weight"], stored["final_layer.linear.weight"].float())
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    with pytest.raises(InputError, match="pos_embed is not the fixed"):
        from_official({**stored, "pos_embed": stored["pos_embed"] + 0.02}, heads=model.heads)
    write_diffusers(dit, tmp_path, Diffusion())
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(weights).items()}, weights)
    assert same(read_diffusers(tmp_path).state, state)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.module."]
)
def test_names_of_wrapped_models_are_read(prefix: str) -> None:
    dit = random_dit()
    official = {f"{prefix}{name}": tensor for name, tensor in to_official(dit).items()}
    diffusers = {f"{prefix}{name}": tensor for name, tensor in to_diffusers(dit).items()}
    assert same(from_official(official, heads=3).state, dit.state_dict())
    assert same(from_diffusers(diffusers, diffusers_config(TINY, TINY_SHAPE)).state, dit.state_dict())
    blocks = {re.sub(r"^(blocks\.\d+\.)", rf"\1{prefix}", name): value for name, value in to_official(dit).items()}
    assert same(from_official(blocks, heads=3).state, dit.state_dict())
    with pytest.raises(InputError, match=r"these stand twice: pos_embed, x_embedder\.proj\.weight"):
        from_official({**official, **to_official(dit)}, heads=3)


def test_the_averaged_weights_alone_are_read(tmp_path: Path) -> None:
    dit = random_dit()
    torch.save({"ema": {f"module.{name}": value for name, value in to_official(dit).items()}}, tmp_path / "ema.pt")
    assert same(read_official(tmp_path / "ema.pt", heads=3).state, dit.state_dict())
    with pytest.raises(InputError, match=r"ema\.pt: holds the averaged weights only; leave out --raw"):
        read_official(tmp_path / "ema.pt", heads=3, ema=False)


@pytest.mark.parametrize("kind", [dict, argparse.Namespace])
def test_the_table_of_labels_has_a_row_for_no_label(tmp_path: Path, kind: Any) -> None:
    name, path = "y_embedder.embedding_table.weight", tmp_path / "x.pt"
    state = to_official(random_dit())
    for rows, told in ((5, 5), (4, 5), (6, 6), (6, 4)):
        table = state[name][:rows].clone()
        torch.save({"ema": {**state, name: table}, "args": kind(num_classes=told)}, path)
        with pytest.raises(InputError, match=rf"has {rows} rows; allowed: {told + 1} for {told} classes, the last"):
            read_official(path, heads=3)
    torch.save({"ema": state, "args": kind(num_classes=5)}, path)
    assert read_official(path, heads=3).shape.classes == 5
    with pytest.raises(InputError, match="has 1 rows; allowed: 2 or more, the last one for no label"):
        from_official({**state, name: state[name][:1]}, heads=3)
    with pytest.raises(InputError, match="has 1000 rows; allowed: 1001 for 1000 classes"):
        from_official({**state, name: torch.zeros(1000, 24)}, heads=3)
    copies = (f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight" for i in range(2))
    cut = dict.fromkeys(copies, torch.zeros(5, 24))
    with pytest.raises(InputError, match=r"misshapen: .*class_embedder.* \(5, 24\), not \(6, 24\)"):
        from_diffusers({**to_diffusers(random_dit()), **cut}, diffusers_config(TINY, TINY_SHAPE))


# values that are not finite


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), None), (float("-inf"), None), (1e300, torch.float64)])
@pytest.mark.parametrize("format", ["official", "ema", "safetensors", "bin"])
def test_values_that_are_not_finite_are_not_imported(
    tmp_path: Path, format: str, value: float, dtype: torch.dtype | None
) -> None:
    official = format in ("official", "ema")
    state = {key: tensor.to(dtype or torch.float32) for key, tensor in FORMATS[official](random_dit()).items()}
    for name in list(state)[3:8]:
        state[name] = state[name].clone()
        state[name].view(-1)[:2] = value
    total = sum(tensor.numel() for tensor in state.values())
    if official:
        torch.save({"ema": state} if format == "ema" else state, tmp_path / "x.pt")
    elif format == "safetensors":
        save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    else:
        torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(diffusers_config(TINY, TINY_SHAPE)))
    with pytest.raises(InputError, match=rf": 10 of {total} values are not finite") as caught:
        read_official(tmp_path / "x.pt", heads=3) if official else read_diffusers(tmp_path)
    named = [f"{key} (2 of {state[key].numel()})" in str(caught.value) for key in list(state)[3:8]]
    assert sum(named) == 3
    assert str(caught.value).endswith(" and 2 more tensors")


def test_values_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    dit = random_dit()
    dit.get_parameter("blocks.1.mlp.2.bias")[:3] = float("inf")
    for convert in (to_official, to_diffusers, lambda d: write_official(d, tmp_path / "x.pt")):
        with pytest.raises(InputError, match=r"3 of \d+ values are not .* in blocks\.1\.mlp\.2\.bias \(3 of 24\)"):
            convert(dit)
    vae = small_vae()
    with torch.no_grad():
        vae.decoder.conv_in.bias[0] = float("nan")
    vae.save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match=r"vae: 1 of \d+ values are not finite .*decoder\.conv_in\.bias"):
        write_diffusers(
            random_dit(TINY, InputShape(2, 4, 5)), tmp_path / "out", Diffusion(), Decoder(tmp_path / "vae", 1)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["vae"]


# configurations and tensors of other people's making


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "holds a list; allowed: a table"),
        ("7", "holds a int; allowed: a table"),
        ("null", "holds a NoneType; allowed: a table"),
        ("[" * 100_000 + "]" * 100_000, "cannot be read: maximum recursion depth"),
        ('{"num_layers": ' + "9" * 5000 + "}", "cannot be read: Exceeds the limit"),
    ],
    ids=["list", "number", "null", "deep", "long"],
)
def test_a_configuration_that_is_none_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    write_diffusers(random_dit(), tmp_path, Diffusion())
    config = tmp_path / "transformer" / "config.json"
    good = config.read_text()
    config.write_text(text)
    with pytest.raises(InputError, match=rf"config\.json: {expected}") as caught:
        read_diffusers(tmp_path)
    assert len(str(caught.value)) < 400
    config.write_text(good, encoding="utf-8-sig")
    assert read_diffusers(tmp_path).model == TINY


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_layers": 1e9}, r"num_layers 1000000000\.0, not a whole number from 1 to 16384"),
        ({"num_layers": 2.5}, r"num_layers 2\.5, not a whole number"),
        ({"patch_size": "2"}, r"patch_size '2', not a whole number"),
        ({"sample_size": [6]}, r"sample_size \[6\], not a whole number"),
        ({"in_channels": float("nan")}, r"in_channels nan, not a whole number"),
        ({"attention_head_dim": -8}, "attention_head_dim -8, not a whole number"),
        ({"num_embeds_ada_norm": 10**4000}, "num_embeds_ada_norm 1000+.*, not a whole number"),
        ({"num_layers": 16_384}, r"num_layers 16384, .* more than 44 tensors of \d+ values can hold"),
        ({"attention_head_dim": 16_384}, "width 49152, .* can hold"),
        ({"in_channels": 16_384, "out_channels": 32_768}, "out_channels 32768, not a whole number"),
        ({"in_channels": 8192, "out_channels": 16_384}, "in_channels 8192 are more than"),
        ({"sample_size": 8192, "patch_size": 8192}, "patch_size 8192 and .* can hold"),
    ],
)
def test_sizes_that_the_tensors_cannot_hold_are_refused_before_they_are_built(
    changes: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "shapes_of", lambda *_: pytest.fail("built"))
    with pytest.raises(InputError, match=expected) as caught:
        from_diffusers(to_diffusers(random_dit()), {**diffusers_config(TINY, TINY_SHAPE), **changes})
    assert len(str(caught.value)) < 400


def test_tensors_that_are_not_in_the_file_are_refused(tmp_path: Path) -> None:
    state = to_official(random_dit())
    torch.save({**state, "extra": torch.zeros(1).expand(10**9, 10**9)}, tmp_path / "view.pt")
    with pytest.raises(InputError, match="not a state dict of weights: extra; allowed"):
        read_official(tmp_path / "view.pt", heads=3)
    for number in ("999999999", "9" * 5000):
        with pytest.raises(InputError, match=r"unknown: blocks\.9+\.x"):
            from_official({**state, f"blocks.{number}.x": torch.zeros(1)}, heads=3)
    with pytest.raises(InputError, match="not an official DiT checkpoint; shapes"):
        from_official({**state, "x_embedder.proj.weight": torch.zeros(0, 1, 2, 2)}, heads=3)
    torch.save([1], tmp_path / "diffusion_pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(diffusers_config(TINY, TINY_SHAPE)))
    with pytest.raises(InputError, match="holds a list; allowed: a state dict of tensors"):
        read_diffusers(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "null", '{"block_out_channels": 5}', "[" * 100_000, "9" * 5000])
def test_a_configuration_of_a_vae_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    small_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"vae: no folder of an AutoencoderKL: ."):
        write_diffusers(random_dit(), tmp_path / "out", Diffusion(), vae=Decoder(tmp_path / "vae", 0.5))
