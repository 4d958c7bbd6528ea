"""Weights to and from the official code and diffusers: same numbers, nothing changed, nothing loaded by halves."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor

from harness.errors import InputError
from harness.model.diffusers import (
    Decoder,
    diffusers_config,
    from_diffusers,
    match_timesteps,
    read_diffusers,
    to_diffusers,
    write_diffusers,
)
from harness.model.dit import DiT
from harness.model.embeddings import sincos_positions
from harness.model.formats import check_exportable
from harness.model.official import from_official, read_official, to_official, write_official
from harness.spec.data import InputShape
from harness.spec.diffusion import Diffusion
from harness.spec.model import SIZES, DiTSpec, ModelSpec

TINY = DiTSpec(depth=2, width=24, heads=3, patch_size=2)
TINY_SHAPE = InputShape(1, 6, 5)
S8, S2 = (DiTSpec.model_validate({**SIZES["S"], "patch_size": patch_size}) for patch_size in (8, 2))


def random_dit(model: DiTSpec = TINY, shape: InputShape = TINY_SHAPE, seed: int = 0) -> DiT:
    """Every parameter drawn at random with about the size a trained one has, so that no part is silent."""
    dit = DiT(model, shape).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in dit.parameters():
        parameter.normal_(0, 0.5 * parameter.shape[-1] ** -0.5, generator=generator)
    return dit


def inputs(dit: DiT, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    channels, size, classes = dit.shape
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, channels, size, size, generator=generator, dtype=dtype)
    return x, torch.tensor([3, 977]), torch.tensor([0, classes])  # the null class among them


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def transformer_of(dit: DiT) -> Any:
    """Diffusers' model of the same weights, loaded strictly."""
    transformer: Any = DiTTransformer2DModel(**diffusers_config(dit.model, dit.shape))
    transformer.load_state_dict(to_diffusers(dit), strict=True)
    return transformer.eval()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (S8, InputShape(4, 32, 1000)),
        (S2, InputShape(4, 32, 1000)),
        (DiTSpec(depth=3, width=60, heads=5, patch_size=3), InputShape(1, 15, 7)),
    ],
    ids=["S/8", "S/2", "odd"],
)
def test_parity_with_diffusers_in_float64(model: DiTSpec, shape: InputShape) -> None:
    dit = random_dit(model, shape).double()
    transformer = transformer_of(dit).double()
    x, t, y = inputs(dit)
    expected = dit(x, t, y)
    with torch.no_grad():
        apart = relative(transformer(x, t, y).sample, expected)
        match_timesteps(transformer)
        matched = relative(transformer(x, t, y).sample, expected)
    assert matched <= 1e-6
    # diffusers as it comes spaces the timestep frequencies differently: far beyond rounding, and documented
    assert 1e-4 < apart < 0.5


@torch.no_grad()
def official_forward(state: dict[str, Tensor], heads: int, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The model of the paper written out over official names, as an independent reading of the format."""
    F, p = torch.nn.functional, state["x_embedder.proj.weight"].shape[-1]

    def linear(name: str, value: Tensor) -> Tensor:
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(value: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        value = (value - value.mean(-1, keepdim=True)) / (value.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return value * (1 + scale[:, None]) + shift[:, None]

    h = F.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"], stride=p)
    side = h.shape[-1]
    h = h.flatten(2).transpose(1, 2) + state["pos_embed"]
    angles = t[:, None].float() * torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(128) / 128)
    vectors = torch.cat((angles.cos(), angles.sin()), 1).to(x.dtype)
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", vectors)))
    c = F.silu(c + state["y_embedder.embedding_table.weight"][y])
    for i in range(100):
        if f"blocks.{i}.attn.proj.bias" not in state:
            break
        b = f"blocks.{i}"
        s1, a1, g1, s2, a2, g2 = linear(f"{b}.adaLN_modulation.1", c).chunk(6, 1)
        q, k, v = linear(f"{b}.attn.qkv", norm(h, s1, a1)).chunk(3, 2)
        q, k, v = (z.unflatten(2, (heads, -1)).transpose(1, 2) for z in (q, k, v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        h = h + g1[:, None] * linear(f"{b}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        inner = F.gelu(linear(f"{b}.mlp.fc1", norm(h, s2, a2)), approximate="tanh")
        h = h + g2[:, None] * linear(f"{b}.mlp.fc2", inner)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, 1)
    h = linear("final_layer.linear", norm(h, shift, scale))
    h = h.unflatten(2, (p, p, -1)).unflatten(1, (side, side))
    return torch.einsum("nhwpqc->nchpwq", h).flatten(4).flatten(2, 3)


def test_official_names_mean_what_the_paper_says() -> None:
    dit = random_dit(DiTSpec(depth=2, width=24, heads=3, patch_size=2), InputShape(3, 8, 11)).double()
    state = to_official(dit)
    x, t, y = inputs(dit)
    assert relative(official_forward(state, 3, x, t, y), dit(x, t, y)) <= 1e-6
    assert set(state) - {"pos_embed"} == set(state) & {
        f"{module}.{kind}"
        for kind in ("weight", "bias")
        for module in (
            "x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.embedding_table",
            "final_layer.linear", "final_layer.adaLN_modulation.1",
            *(f"blocks.{i}.{part}" for i in (0, 1)
              for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")),
        )
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (TINY, TINY_SHAPE),
        (S8, InputShape(4, 32, 1000)),
        (DiTSpec(depth=1, width=20, heads=1, patch_size=1), InputShape(3, 3, 1)),
    ],
    ids=["tiny", "S/8", "one-class"],
)
def test_official_to_ours_to_diffusers_and_back_changes_no_weight(
    tmp_path: Path, model: DiTSpec, shape: InputShape
) -> None:
    official = to_official(random_dit(model, shape))
    torch.save(official, tmp_path / "official.pt")
    ours = read_official(tmp_path / "official.pt", model.heads)
    assert (ours.model, ours.shape) == (model, shape)
    write_diffusers(ours.build(), tmp_path / "pipeline", Diffusion())
    back = read_diffusers(tmp_path / "pipeline")
    assert (back.model, back.shape) == (model, shape)
    assert same(back.state, ours.state)
    write_official(back.build(), tmp_path / "again.pt")
    assert same(torch.load(tmp_path / "again.pt", weights_only=True), official)


def test_a_built_model_is_the_model_that_was_written(tmp_path: Path) -> None:
    dit = random_dit()
    write_official(dit, tmp_path / "dit.pt")
    built = read_official(tmp_path / "dit.pt", heads=3).build()
    x, t, y = inputs(dit, torch.float32)
    assert torch.equal(built(x, t, y), dit(x, t, y))
    assert not any(tensor.is_meta for tensor in (*built.parameters(), *built.buffers()))


def test_heads_are_known_for_published_sizes_only(tmp_path: Path) -> None:
    write_official(random_dit(), tmp_path / "dit.pt")
    with pytest.raises(InputError, match=r"no published size.*give it \(--heads\)"):
        read_official(tmp_path / "dit.pt")
    with pytest.raises(InputError, match="width 24 is not divisible by heads 5"):
        read_official(tmp_path / "dit.pt", heads=5)
    published = to_official(random_dit(S8, InputShape(4, 32, 10)))
    assert from_official(published).model.heads == 6


@pytest.mark.parametrize("hidden", [49, 60, 61, 71, 95])
def test_any_mlp_goes_through_the_official_format_and_not_through_diffusers(hidden: int) -> None:
    ratio = (hidden + 0.5) / 24
    dit = random_dit(TINY.model_copy(update={"mlp_ratio": ratio}))
    back = from_official(to_official(dit), heads=3)
    assert int(back.model.mlp_ratio * 24) == hidden
    assert same(back.state, dit.state_dict())
    with pytest.raises(InputError, match=r"mlp_ratio .* allowed: 4\.0"):
        to_diffusers(dit)


def test_training_checkpoints_hold_two_sets_of_weights(tmp_path: Path) -> None:
    plain, ema = to_official(random_dit(seed=1)), to_official(random_dit(seed=2))
    args = argparse.Namespace(model="DiT-XL/2", lr=1e-4)  # the official script saves its arguments too
    torch.save({"model": plain, "ema": ema, "opt": {"state": {}}, "args": args}, tmp_path / "0400000.pt")
    for wanted, flag in ((ema, True), (plain, False)):
        found = read_official(tmp_path / "0400000.pt", heads=3, ema=flag)
        assert torch.equal(found.state["final.linear.weight"], wanted["final_layer.linear.weight"])


def test_half_precision_is_read_exactly() -> None:
    half = {name: tensor.half() for name, tensor in to_official(random_dit()).items()}
    state = from_official(half, heads=3).state
    assert torch.equal(state["final.linear.weight"], half["final_layer.linear.weight"].float())
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


# the pipeline folder


def small_vae() -> Any:
    vae: Any = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=8,
    )  # fmt: skip
    return vae


def test_the_exported_folder_is_a_pipeline_that_runs(tmp_path: Path) -> None:
    small_vae().save_pretrained(tmp_path / "vae")
    dit = random_dit(TINY, InputShape(2, 4, 5))
    write_diffusers(dit, tmp_path / "out", Diffusion(beta_end=0.01), vae=Decoder(tmp_path / "vae", 0.5))
    pipeline: Any = DiTPipeline.from_pretrained(tmp_path / "out")
    config = pipeline.scheduler.config
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert config.beta_end == 0.01
    assert not config.clip_sample
    assert pipeline.vae.config.scaling_factor == 0.5
    assert pipeline.labels == {str(n): n for n in range(5)}
    assert pipeline.transformer.config.norm_eps == 1e-6
    assert pipeline.transformer.config.num_embeds_ada_norm == 5
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([1, 4], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    match_timesteps(pipeline.transformer)
    x, t, y = inputs(dit, torch.float32)
    with torch.no_grad():
        assert relative(pipeline.transformer(x, t, y).sample, dit(x, t, y)) < 1e-5


def test_a_vae_must_fit(tmp_path: Path) -> None:
    small_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(InputError, match="latents of 2 channels do not fit the model's 1"):
        write_diffusers(random_dit(), tmp_path / "out", Diffusion(), vae=Decoder(tmp_path / "vae", 0.5))
    with pytest.raises(InputError, match="no folder of an AutoencoderKL"):
        write_diffusers(random_dit(), tmp_path / "out", Diffusion(), vae=Decoder(tmp_path / "none", 0.5))
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_vae_is_exported_in_parts(tmp_path: Path) -> None:
    write_diffusers(random_dit(), tmp_path / "out", Diffusion())
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["vae"] == [None, None]
    transformer: Any = DiTTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer")
    assert transformer.config.in_channels == 1


def test_a_transformer_saved_by_diffusers_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformer: Any = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=4,
        num_embeds_ada_norm=3,
    )  # fmt: skip
    for safe in (True, False):
        transformer.save_pretrained(tmp_path / str(safe), safe_serialization=safe)
        dit = read_diffusers(tmp_path / str(safe)).build().double()
        match_timesteps(transformer)
        x, t, y = inputs(dit)
        with torch.no_grad():
            expected = transformer.double().eval()(x, t, y).sample
        # its norm_eps is diffusers' 1e-5, ours the model's 1e-6
        assert relative(dit(x, t, y), expected) < 1e-4
        transformer.float()


# what cannot be converted


@pytest.mark.parametrize("block", ["in-context", "cross-attention", "adaln", "adaln-gate"])
def test_only_adaln_zero_is_exported(block: str, tmp_path: Path) -> None:
    dit = DiT(TINY.model_copy(update={"block": block}), TINY_SHAPE)
    for convert in (to_official, to_diffusers, lambda d: write_official(d, tmp_path / "x.pt")):
        with pytest.raises(InputError, match=f"a model with {block} blocks cannot be exported.*adaln-zero only"):
            convert(dit)
    assert not (tmp_path / "x.pt").exists()


def test_a_model_without_labels_is_not_exported() -> None:
    with pytest.raises(InputError, match="without labels cannot be exported"):
        to_official(DiT(TINY, InputShape(1, 6, 0)))


def test_every_misfit_of_an_official_checkpoint_is_listed() -> None:
    state = to_official(random_dit())
    del state["blocks.0.attn.qkv.bias"], state["final_layer.linear.weight"]
    state["blocks.1.mlp.fc2.weight"] = torch.zeros(3, 3)
    state["blocks.1.norm1.weight"] = state["extra"] = torch.zeros(1)
    with pytest.raises(InputError) as caught:
        from_official(state, heads=3, source="file.pt")
    assert str(caught.value) == (
        "file.pt: does not fit, nothing was loaded; missing: final_layer.linear.weight, blocks.0.attn.qkv.bias; "
        "unknown: blocks.1.norm1.weight, extra; misshapen: blocks.1.mlp.fc2.weight (3, 3), not (24, 96)"
    )
    with pytest.raises(InputError, match=r"not an official DiT checkpoint, it has no x_embedder\.proj\.weight, pos_"):
        from_official({"a": torch.zeros(1)}, heads=3)
    with pytest.raises(InputError, match="not an official DiT checkpoint; shapes: x_embedder"):
        from_official({**to_official(random_dit()), "pos_embed": torch.zeros(1, 8, 24)}, heads=3)


def test_other_positions_are_refused() -> None:
    state = to_official(random_dit())
    assert torch.equal(state["pos_embed"][0], sincos_positions(3, 24))
    with pytest.raises(InputError, match="pos_embed is not the fixed sine-cosine table"):
        from_official({**state, "pos_embed": state["pos_embed"].flip(1)}, heads=3)


def test_every_misfit_of_a_transformer_is_listed() -> None:
    dit = random_dit()
    config = diffusers_config(TINY, TINY_SHAPE)
    state = to_diffusers(dit)
    del state["transformer_blocks.0.attn1.to_k.bias"]
    state["transformer_blocks.1.attn1.to_q.weight"] = torch.zeros(2, 2)
    state["pos_embed.norm.weight"] = torch.zeros(1)
    with pytest.raises(InputError) as caught:
        from_diffusers(state, config)
    assert str(caught.value) == (
        "transformer: does not fit, nothing was loaded; missing: transformer_blocks.0.attn1.to_k.bias; "
        "unknown: pos_embed.norm.weight; misshapen: transformer_blocks.1.attn1.to_q.weight (2, 2), not (24, 24)"
    )
    state = to_diffusers(dit)
    state["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"][0, 0] += 1
    with pytest.raises(InputError, match=r"embeddings differ .*blocks\.1\.norm1\.emb\.class_embedder"):
        from_diffusers(state, config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"norm_type": "ada_norm"}, "norm_type 'ada_norm', not 'ada_norm_zero'"),
        ({"activation_fn": "geglu", "attention_bias": False}, "activation_fn 'geglu'.*attention_bias False"),
        ({"out_channels": 1}, "out_channels 1, not twice in_channels 1"),
        ({"num_layers": None}, "num_layers missing"),
        ({"sample_size": 7}, "patch_size 2 does not divide sample_size 7"),
        ({"attention_head_dim": 7}, "width 21 is not divisible by 4"),
    ],
)
def test_another_architecture_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        from_diffusers(to_diffusers(random_dit()), {**diffusers_config(TINY, TINY_SHAPE), **changes})


class Code:
    """Runs a command when unpickled by anything that lets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-executed",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_carries_code_is_refused(tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = {**to_official(random_dit()), "x": Code()}
    torch.save(document, tmp_path / "evil.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"evil\.pt: refused, the pickle carries code \(posix\.mkdir\)") as caught:
        read_official(tmp_path / "evil.pt", heads=3)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-executed").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 not a zip", b"\x80\x02."])
def test_unreadable_files_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.pt: no readable PyTorch checkpoint") as caught:
        read_official(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps(diffusers_config(TINY, TINY_SHAPE)))
    with pytest.raises(InputError, match="no weights; allowed: diffusion_pytorch_model"):
        read_diffusers(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="no readable weights"):
        read_diffusers(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: cannot be read"):
        read_diffusers(tmp_path)


def test_other_contents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_official(tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"no config\.json"):
        read_diffusers(tmp_path / "none")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds a list"):
        read_official(tmp_path / "list.pt")
    torch.save({"a": 1, "b": torch.ones(2, dtype=torch.int64)}, tmp_path / "numbers.pt")
    with pytest.raises(InputError, match="not a state dict of weights: a, b"):
        read_official(tmp_path / "numbers.pt")


def test_a_dit_without_variance_is_refused(tmp_path: Path) -> None:
    dit = DiT(DiTSpec(depth=1, width=8, patch_size=2), InputShape(4, 4, 10), outputs=1)
    with pytest.raises(InputError, match="another objective cannot be exported"):
        write_official(dit, tmp_path / "x.pt")
    with pytest.raises(InputError, match="another objective cannot be exported"):
        to_diffusers(dit)
    with pytest.raises(InputError, match="a network unet cannot be exported"):
        check_exportable(ModelSpec.model_construct(network="unet"), dit.shape)
