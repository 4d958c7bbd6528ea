"""Weights and folders in the format of diffusers' DiT."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.errors import InputError, first_line
from harness.model import formats
from harness.model.dit import DiT
from harness.model.formats import Imported, State
from harness.spec.data import InputShape
from harness.spec.diffusion import Diffusion
from harness.spec.model import DiTSpec

_WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

#: The other settings of this model in a configuration. They are diffusers' defaults, so they may be absent.
_CONFIG = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}


#: Most that a whole number of a configuration may be: far above any model.
_MOST = 16_384


@dataclass(frozen=True)
class Decoder:
    """The autoencoder of a latent model: the folder of its `AutoencoderKL`, and the scaling of its latents."""

    folder: Path
    scaling: float


def to_diffusers(dit: DiT) -> State:
    """The state dict of diffusers' `DiTTransformer2DModel`; no two tensors share memory.

    Raises:
        InputError: see `check_exportable`; an MLP of another size than 4 times the width, or weights that are not
            finite.
    """
    _check_mlp(dit.model, dit.shape, dit.outputs)
    ours = dit.state_dict()
    formats.require_finite(ours, "the weights cannot be exported")
    state: State = {}
    for name, theirs in _diffusers_names(dit.model.depth):
        parts = ours[name].chunk(len(theirs[0]))
        state.update({key: part.clone() for copy in theirs for key, part in zip(copy, parts, strict=True)})
    return state


def diffusers_config(model: DiTSpec, shape: InputShape) -> dict[str, Any]:
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
    """Read state dict and configuration of a `DiTTransformer2DModel` (or of a `Transformer2DModel`, its former name).

    Raises:
        InputError: another architecture; missing, extra or misshapen tensors (all of them named); values that are not
            finite; embeddings that differ from block to block.
    """
    state = formats.weights_of(state, source)
    model, shape = _shape_of_config(config, source)
    _check_holds(state, model, shape, source)
    ours = formats.shapes_of(model, shape)
    names = list(_diffusers_names(model.depth))
    expected: dict[str, tuple[int, ...]] = {}
    for name, copies in names:
        rows, *rest = ours[name]
        expected.update({key: (rows // len(copy), *rest) for copy in copies for key in copy})
    formats.require(state, expected, source)
    formats.require_finite(state, source)
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
        config = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no config.json; allowed: the folder of a DiTTransformer2DModel") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / 'config.json'}: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'}: holds a {type(config).__name__}; allowed: a table of settings")
    path = next((folder / name for name in _WEIGHTS_FILES if (folder / name).exists()), None)
    if path is None:
        raise InputError(f"{folder}: no weights; allowed: {' or '.join(_WEIGHTS_FILES)}")
    if path.suffix == ".safetensors":
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: no readable weights: {error}") from None
    else:
        state = formats.load_pickle(path)
    return from_diffusers(state, config, str(folder))


def write_diffusers(dit: DiT, folder: Path, diffusion: Diffusion, vae: Decoder | None = None) -> None:
    """Write a model as a `DiTPipeline` folder: transformer, scheduler, vae, and class numbers as labels.

    The scheduler is DDIM over the model's own noise levels, as `DiTPipeline` drops the predicted variance.

    Args:
        dit: the model.
        folder: where to; made when missing.
        diffusion: the forward process it was trained with.
        vae: decodes its latents; without one only the parts of the pipeline can be loaded.

    Raises:
        InputError: as `to_diffusers`; or `vae` has no `AutoencoderKL`, or its channels do not fit.
    """
    diffusers: Any = import_module("diffusers")  # takes seconds, and its classes have no types

    config = diffusers_config(dit.model, dit.shape)
    decoder = None
    if vae is not None:
        try:
            decoder = diffusers.AutoencoderKL.from_pretrained(
                vae.folder, local_files_only=True, low_cpu_mem_usage=False
            )
        except Exception as error:  # a damaged configuration fails in any way
            raise InputError(f"{vae.folder}: no folder of an AutoencoderKL: {first_line(error)}") from None
        if decoder.config.latent_channels != dit.shape.channels:
            raise InputError(
                f"{vae.folder}: latents of {decoder.config.latent_channels} channels do not fit the model's "
                f"{dit.shape.channels}"
            )
        formats.require_finite(decoder.state_dict(), str(vae.folder))
        decoder.register_to_config(scaling_factor=vae.scaling)  # the pipeline divides by it
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
    """Our name of every weight, and its copies in diffusers: for each copy, the names of the parts it is split into."""
    for ours, _, theirs in formats.ENDS:
        places = [f"transformer_blocks.{i}{theirs[1:]}" for i in range(depth)] if theirs[0] == "*" else [theirs]
        yield from ((f"{ours}.{kind}", [(f"{place}.{kind}",) for place in places]) for kind in formats.kinds(ours))
    for i in range(depth):
        for inner, _, parts in formats.BLOCK:
            for kind in formats.kinds(inner):
                copy = tuple(f"transformer_blocks.{i}.{part}.{kind}" for part in parts)
                yield f"blocks.{i}.{inner}.{kind}", [copy]


def _check_mlp(model: DiTSpec, shape: InputShape, outputs: int = 2) -> None:
    formats.check_exportable(model, shape, outputs)
    if int(model.mlp_ratio * model.width) != 4 * model.width:
        raise InputError(f"mlp_ratio {model.mlp_ratio} cannot be exported to diffusers; allowed: 4.0")


def _check_holds(state: State, model: DiTSpec, shape: InputShape, source: str) -> None:
    """Refuse sizes that the tensors cannot hold, before the model of these sizes is built and every misfit is named.

    Every block has a tensor, and one tensor maps patches to the width, another the width to itself.
    """
    values = sum(tensor.numel() for tensor in state.values())
    if model.depth > len(state) or model.width * max(model.width, shape.channels * model.patch_size**2) > values:
        raise InputError(
            f"{source}: config.json: num_layers {model.depth}, width {model.width}, patch_size {model.patch_size} and "
            f"in_channels {shape.channels} are more than {len(state)} tensors of {values} values can hold"
        )


def _shape_of_config(config: Mapping[str, Any], source: str) -> tuple[DiTSpec, InputShape]:
    wrong = [
        f"{key} {reprlib.repr(config[key])}, not {value!r}"
        for key, value in _CONFIG.items()
        if config.get(key, value) != value
    ]
    keys = (
        *("num_layers", "num_attention_heads", "attention_head_dim", "patch_size", "sample_size", "in_channels"),
        *("out_channels", "num_embeds_ada_norm"),
    )
    for key in keys:
        value = config.get(key)
        if not value:
            wrong.append(f"{key} missing")
        elif not isinstance(value, int | float) or value not in range(1, _MOST + 1):
            wrong.append(f"{key} {reprlib.repr(value)}, not a whole number from 1 to {_MOST}")
    if not wrong and config["out_channels"] != 2 * config["in_channels"]:
        wrong.append(f"out_channels {config['out_channels']}, not twice in_channels {config['in_channels']}")
    if wrong:
        raise InputError(f"{source}: config.json is not that of a DiT with adaLN-Zero: {', '.join(wrong)}")
    depth, heads, head_width, patch_size, size, channels, _, classes = (int(config[key]) for key in keys)
    width = heads * head_width
    model = formats.model_of(source, depth, width, heads, patch_size, 4 * width)
    if size % patch_size:
        raise InputError(f"{source}: config.json: patch_size {patch_size} does not divide sample_size {size}")
    return model, InputShape(channels, size, classes)
