"""Weights between this DiT, the official PyTorch code's checkpoints, and diffusers' `DiTTransformer2DModel`.

All three compute the same adaLN-Zero model (Peebles & Xie 2023) under other names, so conversion changes no value. The
other blocks and models without labels exist in neither, and are refused.

Traps, and what is done about each:

- Official checkpoints hold the fixed positions (`pos_embed`): they are compared with ours and dropped on reading, and
  written anew on writing. They do not hold the number of heads: the published sizes are known, others must be told.
- Checkpoints of the official training script hold weights, averaged weights, optimizer and arguments: the averaged
  weights are read unless the plain ones are asked for.
- diffusers splits qkv in three, and keeps a copy of timestep and label embedding in every block: on reading, copies
  that differ are refused, since here there is one for all.
- diffusers spaces the 128 timestep frequencies with exponent i/127, the paper's code and this one with i/128. A loaded
  `DiTTransformer2DModel` therefore gives another output (up to some percent) until `match_timesteps` is called on it;
  the setting is no part of its configuration and cannot be saved.
- diffusers' default norm_eps, 1e-5, is not the model's 1e-6, which the configuration says. Its MLPs are always 4 times
  as wide as the model; others are refused.
- `DiTPipeline` drops the predicted variance and takes 1000 for the null class whatever the model: it cannot repeat
  the paper's DDPM sampling, and a model of other than 1000 classes must be called with guidance_scale <= 1.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.cell import SIZES, Diffusion, InputShape, Model, describe_validation_error
from harness.errors import InputError
from harness.model.dit import DiT
from harness.model.embeddings import TimestepEmbedding, sincos_positions

State = dict[str, Tensor]

#: Modules outside the blocks: ours, official, diffusers ("*": a copy in every block).
_ENDS = (
    ("patch_embedding", "x_embedder.proj", "pos_embed.proj"),
    ("timestep_embedding.mlp.0", "t_embedder.mlp.0", "*.norm1.emb.timestep_embedder.linear_1"),
    ("timestep_embedding.mlp.2", "t_embedder.mlp.2", "*.norm1.emb.timestep_embedder.linear_2"),
    ("label_embedding", "y_embedder.embedding_table", "*.norm1.emb.class_embedder.embedding_table"),
    ("final.modulation.1", "final_layer.adaLN_modulation.1", "proj_out_1"),
    ("final.linear", "final_layer.linear", "proj_out_2"),
)

#: Modules of a block; the three of diffusers' attention stand in the order of the rows of qkv.
_BLOCK: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("attention.qkv", "attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
    ("attention.projection", "attn.proj", ("attn1.to_out.0",)),
    ("mlp.0", "mlp.fc1", ("ff.net.0.proj",)),
    ("mlp.2", "mlp.fc2", ("ff.net.2",)),
    ("modulation.1", "adaLN_modulation.1", ("norm1.linear",)),
)

#: The fixed positions, among the tensors of an official checkpoint.
_POSITIONS = "pos_embed"

_WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

#: What else a configuration must say for the weights to be those of this model, with diffusers' own defaults.
_CONFIG = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


@dataclass(frozen=True)
class Imported:
    """A model read from elsewhere: its shape and its weights under our names, float32."""

    model: Model
    shape: InputShape
    state: State

    def build(self) -> DiT:
        """The model with these weights, on the CPU, in evaluation mode."""
        with torch.device("meta"):
            dit = DiT(self.model, self.shape)
        dit.load_state_dict(self.state, assign=True)
        # the two buffers are constants, which no file of ours holds
        dit.positions = sincos_positions(self.shape.size // self.model.patch_size, self.model.width)
        dit.timestep_embedding.frequencies = TimestepEmbedding(1).frequencies
        return dit.eval().requires_grad_(False)


@dataclass(frozen=True)
class Decoder:
    """The autoencoder of a latent model: the folder of its `AutoencoderKL`, and what its latents were multiplied by."""

    folder: Path
    scaling: float


def check_exportable(model: Model, shape: InputShape) -> None:
    """Check that the official and the diffusers format can hold a model.

    Raises:
        InputError: another block than adaLN-Zero, or no labels.
    """
    if model.block != "adaln-zero":
        raise InputError(
            f"a model with {model.block} blocks cannot be exported: official code and diffusers know adaln-zero only"
        )
    if not shape.classes:
        raise InputError(
            "a model without labels cannot be exported: the official code and diffusers need a label table"
        )


# --- official ------------------------------------------------------------------------------------------------------


def to_official(dit: DiT) -> State:
    """The state dict of the official code's `DiT`, positions (1, T, D) included; tensors are shared, not copied.

    Raises:
        InputError: see `check_exportable`.
    """
    check_exportable(dit.model, dit.shape)
    ours = dit.state_dict()
    state = {theirs: ours[name] for name, theirs in _official_names(dit.model.depth)}
    return {_POSITIONS: dit.positions[None], **state}


def from_official(state: Mapping[str, Tensor], heads: int | None = None, source: str = "checkpoint") -> Imported:
    """Read a state dict of the official code's `DiT`; shape and size follow from the tensors.

    Args:
        state: its tensors by name.
        heads: attention heads, which no tensor tells; may be left out for the published sizes.
        source: what a message calls it.

    Raises:
        InputError: missing, extra or misshapen tensors (all of them named), other positions, or unknown heads.
    """
    model, shape = _shape_of_official(state, heads, source)
    expected = {theirs: want for name, theirs, want in _expected_official(model, shape)}
    _require(state, expected, source)
    positions = sincos_positions(shape.size // model.patch_size, model.width)
    if not torch.allclose(state[_POSITIONS][0].float(), positions, atol=1e-3):
        raise InputError(f"{source}: {_POSITIONS} is not the fixed sine-cosine table of this model")
    return Imported(model, shape, {name: state[theirs].float() for name, theirs in _official_names(model.depth)})


def read_official(path: Path, heads: int | None = None, *, ema: bool = True) -> Imported:
    """Read an official checkpoint (`.pt`). Nothing in it is executed.

    Args:
        path: the file: a bare state dict, as published, or what the official training script saves.
        heads: see `from_official`.
        ema: the averaged weights of a training checkpoint; False: the plain ones.

    Raises:
        InputError: no such file, a pickle that carries code, or anything `from_official` refuses.
    """
    document = _load_pickle(path)
    if not isinstance(document, dict):
        raise InputError(f"{path}: holds a {type(document).__name__}; allowed: a state dict of tensors")
    if isinstance(document.get("model"), dict):
        key = "ema" if ema and isinstance(document.get("ema"), dict) else "model"
        document = document[key]
    bad = [
        str(name) for name, value in document.items() if not isinstance(value, Tensor) or not value.is_floating_point()
    ]
    if bad:
        raise InputError(f"{path}: not a state dict of weights: {', '.join(bad)}; allowed: tensors of floats")
    return from_official(document, heads, str(path))


def write_official(dit: DiT, path: Path) -> None:
    """Write a model as an official checkpoint, a bare state dict.

    Raises:
        InputError: see `check_exportable`.
    """
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in to_official(dit).items()}, path)


def _official_names(depth: int) -> Iterator[tuple[str, str]]:
    """Pairs (ours, official) of all weights."""
    for ours, theirs, _ in _ENDS:
        yield from ((f"{ours}.{kind}", f"{theirs}.{kind}") for kind in _kinds(ours))
    for i in range(depth):
        for inner, outer, _ in _BLOCK:
            yield from ((f"blocks.{i}.{inner}.{kind}", f"blocks.{i}.{outer}.{kind}") for kind in _kinds(inner))


def _kinds(module: str) -> tuple[str, ...]:
    return ("weight",) if module == "label_embedding" else ("weight", "bias")


def _expected_official(model: Model, shape: InputShape) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    ours = _shapes(model, shape)
    yield "", _POSITIONS, (1, (shape.size // model.patch_size) ** 2, model.width)
    yield from ((name, theirs, ours[name]) for name, theirs in _official_names(model.depth))


def _shape_of_official(state: Mapping[str, Tensor], heads: int | None, source: str) -> tuple[Model, InputShape]:
    """What the tensors tell about the model; the block is adaLN-Zero or `_require` says what is missing."""
    anchors = ("x_embedder.proj.weight", _POSITIONS, "y_embedder.embedding_table.weight", "blocks.0.mlp.fc1.weight")
    missing = [name for name in anchors if name not in state]
    if missing:
        raise InputError(f"{source}: not an official DiT checkpoint, it has no {', '.join(missing)}")
    patches, positions, labels, hidden = (state[name] for name in anchors)
    ranks = {name: len(state[name].shape) for name in anchors}
    if list(ranks.values()) != [4, 3, 2, 2] or positions.shape[1] != math.isqrt(positions.shape[1]) ** 2:
        shapes = ", ".join(f"{name} {tuple(state[name].shape)}" for name in anchors)
        raise InputError(f"{source}: not an official DiT checkpoint; shapes: {shapes}")
    width, channels, patch_size, _ = patches.shape
    depth = 1 + max(int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name)))
    if heads is None:
        heads = next((s["heads"] for s in SIZES.values() if (s["depth"], s["width"]) == (depth, width)), None)
    if heads is None:
        raise InputError(
            f"{source}: depth {depth} and width {width} are no published size, and the file does not tell the number "
            "of attention heads; give it (--heads)"
        )
    model = _model(source, depth, width, heads, patch_size, hidden.shape[0])
    return model, InputShape(channels, math.isqrt(positions.shape[1]) * patch_size, labels.shape[0] - 1)


# --- diffusers -----------------------------------------------------------------------------------------------------


def to_diffusers(dit: DiT) -> State:
    """The state dict of diffusers' `DiTTransformer2DModel`, every tensor on its own (no shared memory).

    Raises:
        InputError: see `check_exportable`; or an MLP of another size than 4 times the width.
    """
    _check_mlp(dit.model, dit.shape)
    ours = dit.state_dict()
    state: State = {}
    for name, theirs in _diffusers_names(dit.model.depth):
        parts = ours[name].chunk(len(theirs[0]))
        state.update({key: part.clone() for copy in theirs for key, part in zip(copy, parts, strict=True)})
    return state


def diffusers_config(model: Model, shape: InputShape) -> dict[str, Any]:
    """Arguments of `DiTTransformer2DModel` for a model.

    Raises:
        InputError: as `to_diffusers`.
    """
    _check_mlp(model, shape)
    return {
        "num_attention_heads": model.heads,
        "attention_head_dim": model.width // model.heads,
        "in_channels": shape.channels,
        "out_channels": 2 * shape.channels,
        "num_layers": model.depth,
        "sample_size": shape.size,
        "patch_size": model.patch_size,
        "num_embeds_ada_norm": shape.classes,
        "norm_eps": 1e-6,
        **_CONFIG,
    }


def from_diffusers(state: Mapping[str, Tensor], config: Mapping[str, Any], source: str = "transformer") -> Imported:
    """Read state dict and configuration of a `DiTTransformer2DModel` (or of the `Transformer2DModel` it once was).

    Raises:
        InputError: another architecture; missing, extra or misshapen tensors (all of them named); embeddings that
            differ from block to block.
    """
    model, shape = _shape_of_config(config, source)
    ours = _shapes(model, shape)
    names = list(_diffusers_names(model.depth))
    expected: dict[str, tuple[int, ...]] = {}
    for name, copies in names:
        rows, *rest = ours[name]
        expected.update({key: (rows // len(copy), *rest) for copy in copies for key in copy})
    _require(state, expected, source)
    differing = [
        copy[0] for _, copies in names for copy in copies[1:] if not torch.equal(state[copy[0]], state[copies[0][0]])
    ]
    if differing:
        raise InputError(
            f"{source}: embeddings differ from block to block, and this model has one for all: {', '.join(differing)}"
        )
    return Imported(
        model, shape, {name: torch.cat([state[key] for key in copies[0]]).float() for name, copies in names}
    )


def read_diffusers(folder: Path) -> Imported:
    """Read the folder of a `DiTTransformer2DModel`, or the `transformer` of a `DiTPipeline` folder.

    Raises:
        InputError: no such folder or files, or anything `from_diffusers` refuses.
    """
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no config.json; allowed: the folder of a DiTTransformer2DModel") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'}: cannot be read: {error}") from None
    path = next((folder / name for name in _WEIGHTS_FILES if (folder / name).exists()), None)
    if path is None:
        raise InputError(f"{folder}: no weights; allowed: {' or '.join(_WEIGHTS_FILES)}")
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: no readable weights: {error}") from None
    else:
        state = _load_pickle(path)
    return from_diffusers(state, config, str(folder))


def write_diffusers(dit: DiT, folder: Path, diffusion: Diffusion, vae: Decoder | None = None) -> None:
    """Write a model as a `DiTPipeline` folder: transformer, scheduler, vae, and class numbers as labels.

    The scheduler is DDIM over the model's own noise levels, as `DiTPipeline` drops the predicted variance.

    Args:
        dit: the model.
        folder: where to; made when missing.
        diffusion: the forward process it was trained with.
        vae: what decodes its latents; without one the pipeline has none, and can be loaded by parts only.

    Raises:
        InputError: as `to_diffusers`; a folder that holds no `AutoencoderKL`, or one of other channels.
    """
    diffusers: Any = import_module("diffusers")  # takes seconds, and its classes have no types

    config = diffusers_config(dit.model, dit.shape)
    decoder = None
    if vae is not None:
        try:
            decoder = diffusers.AutoencoderKL.from_pretrained(
                vae.folder, local_files_only=True, low_cpu_mem_usage=False
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{vae.folder}: no folder of an AutoencoderKL: {str(error).splitlines()[0]}") from None
        if decoder.config.latent_channels != dit.shape.channels:
            raise InputError(
                f"{vae.folder}: latents of {decoder.config.latent_channels} channels do not fit the model's "
                f"{dit.shape.channels}"
            )
        decoder.register_to_config(scaling_factor=vae.scaling)  # the pipeline divides by what stands there
    with torch.device("meta"):
        transformer = diffusers.DiTTransformer2DModel(**config)
    transformer.load_state_dict(to_diffusers(dit), assign=True)
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=diffusion.timesteps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule=diffusion.schedule,
        clip_sample=False,
    )
    diffusers.DiTPipeline(transformer, decoder, scheduler).save_pretrained(folder)
    index = folder / "model_index.json"  # the pipeline reads its labels from here, and does not write them
    labels = {str(number): str(number) for number in range(dit.shape.classes)}
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": labels}, indent=2) + "\n")


def match_timesteps(transformer: Any) -> None:
    """Make a loaded `DiTTransformer2DModel` embed timesteps as the paper's code does: exponent i/128, not i/127."""
    for block in transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0


def _diffusers_names(depth: int) -> Iterator[tuple[str, Sequence[tuple[str, ...]]]]:
    """Our name of every weight, and its copies there: each the names of the parts it is split into, by rows."""
    for ours, _, theirs in _ENDS:
        places = [f"transformer_blocks.{i}{theirs[1:]}" for i in range(depth)] if theirs[0] == "*" else [theirs]
        yield from ((f"{ours}.{kind}", [(f"{place}.{kind}",) for place in places]) for kind in _kinds(ours))
    for i in range(depth):
        for inner, _, parts in _BLOCK:
            for kind in _kinds(inner):
                copy = tuple(f"transformer_blocks.{i}.{part}.{kind}" for part in parts)
                yield f"blocks.{i}.{inner}.{kind}", [copy]


def _check_mlp(model: Model, shape: InputShape) -> None:
    check_exportable(model, shape)
    if int(model.mlp_ratio * model.width) != 4 * model.width:
        raise InputError(f"mlp_ratio {model.mlp_ratio} cannot be exported to diffusers; allowed: 4.0")


def _shape_of_config(config: Mapping[str, Any], source: str) -> tuple[Model, InputShape]:
    wrong = [
        f"{key} {config[key]!r}, not {value!r}" for key, value in _CONFIG.items() if config.get(key, value) != value
    ]
    keys = ("num_layers", "num_attention_heads", "attention_head_dim", "patch_size", "sample_size", "in_channels")
    wrong += [f"{key} missing" for key in (*keys, "out_channels", "num_embeds_ada_norm") if not config.get(key)]
    if not wrong and config["out_channels"] != 2 * config["in_channels"]:
        wrong.append(f"out_channels {config['out_channels']}, not twice in_channels {config['in_channels']}")
    if wrong:
        raise InputError(f"{source}: config.json is not that of a DiT with adaLN-Zero: {', '.join(wrong)}")
    depth, heads, head_width, patch_size, size, channels = (int(config[key]) for key in keys)
    width = heads * head_width
    model = _model(source, depth, width, heads, patch_size, 4 * width)
    if size % patch_size:
        raise InputError(f"{source}: config.json: patch_size {patch_size} does not divide sample_size {size}")
    return model, InputShape(channels, size, int(config["num_embeds_ada_norm"]))


# --- both ----------------------------------------------------------------------------------------------------------


def _model(source: str, depth: int, width: int, heads: int, patch_size: int, hidden: int) -> Model:
    ratio = hidden / width
    if int(ratio * width) < hidden:  # a rounding error below; DiT takes the floor
        ratio = math.nextafter(ratio, math.inf)
    try:
        return Model(depth=depth, width=width, heads=heads, patch_size=patch_size, mlp_ratio=ratio)
    except ValidationError as error:
        raise InputError(f"{source}: no valid model: {describe_validation_error(error)}") from None


def _shapes(model: Model, shape: InputShape) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by our names; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in DiT(model, shape).state_dict().items()}


def _require(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """All or nothing: every missing, extra and misshapen tensor in one message."""
    problems = []
    if missing := [name for name in expected if name not in state]:
        problems.append(f"missing: {', '.join(missing)}")
    if extra := [name for name in state if name not in expected]:
        problems.append(f"unknown: {', '.join(extra)}")
    if misshapen := [
        f"{name} {tuple(state[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]:
        problems.append(f"misshapen: {', '.join(misshapen)}")
    if problems:
        raise InputError(f"{source}: does not fit, nothing was loaded; {'; '.join(problems)}")


def _load_pickle(path: Path) -> Any:
    """Unpickle tensors and plain containers, nothing else."""
    try:
        # the official training script saves its arguments beside the weights; a Namespace only holds values
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InputError(f"{path}: refused, the pickle carries code ({found[1]}); allowed: tensors only") from None
        raise InputError(f"{path}: no readable PyTorch checkpoint") from None
    except Exception as error:  # a damaged pickle fails in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: no readable PyTorch checkpoint ({reason})") from None
