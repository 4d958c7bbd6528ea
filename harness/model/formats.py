"""Weights between this DiT, the official PyTorch code's checkpoints, and diffusers' `DiTTransformer2DModel`.

All three compute the same adaLN-Zero model (Peebles & Xie 2023) under different names, so conversion changes no value.
The other two formats have neither the other blocks nor models without labels; these are refused.

Traps, and what is done about each:

- Official checkpoints hold the fixed positions (`pos_embed`). Reading compares them with ours and drops them; writing
  adds them. They do not hold the number of heads: for an unpublished size, `--heads` gives it.
- Checkpoints of the official training script hold weights, averaged weights, optimizer and arguments. The averaged
  weights are read unless the plain ones are asked for, also where a file holds no others.
- A training may have wrapped the model; the prefixes that this adds to names (`module.`, `_orig_mod.`) are dropped.
- Values that are not finite are refused, in both directions.
- diffusers splits qkv in three, and keeps a copy of the timestep and label embeddings in every block. Here all blocks
  share one, so copies that differ are refused.
- diffusers spaces the 128 timestep frequencies with exponent i/127, the paper's code and this one with i/128. So the
  output of a loaded `DiTTransformer2DModel` differs by up to some percent until `match_timesteps` is called on it. Its
  configuration cannot hold this setting, so it cannot be saved.
- The model's norm_eps is 1e-6 and diffusers' default is 1e-5; an exported configuration says 1e-6. In diffusers an MLP
  is always 4 times as wide as the model; other widths are refused.
- `DiTPipeline` drops the predicted variance, so it cannot repeat the paper's DDPM sampling. It always takes 1000 for
  the null class, so a model with another number of classes must be called with guidance_scale <= 1.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from harness.errors import InputError
from harness.model.blocks.adaln_zero import AdaLNZeroBlock
from harness.model.dit import DiT
from harness.model.embeddings import TimestepEmbedding, sincos_positions
from harness.spec.data import InputShape
from harness.spec.identity import describe_validation_error
from harness.spec.model import BLOCKS, DiTSpec, ModelSpec

State = dict[str, Tensor]

#: What DistributedDataParallel and torch.compile put between the parts of a name.
_WRAPPERS = ("module", "_orig_mod")

#: Tensors that a message names.
_NAMED = 3

#: Modules outside the blocks: ours, official, diffusers ("*": a copy in every block).
ENDS = (
    ("patch_embedding", "x_embedder.proj", "pos_embed.proj"),
    ("timestep_embedding.mlp.0", "t_embedder.mlp.0", "*.norm1.emb.timestep_embedder.linear_1"),
    ("timestep_embedding.mlp.2", "t_embedder.mlp.2", "*.norm1.emb.timestep_embedder.linear_2"),
    ("label_embedding", "y_embedder.embedding_table", "*.norm1.emb.class_embedder.embedding_table"),
    ("final.modulation.1", "final_layer.adaLN_modulation.1", "proj_out_1"),
    ("final.linear", "final_layer.linear", "proj_out_2"),
)

#: Modules of a block; the three of diffusers' attention are in the order of the rows of qkv.
BLOCK: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("attention.qkv", "attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v")),
    ("attention.projection", "attn.proj", ("attn1.to_out.0",)),
    ("mlp.0", "mlp.fc1", ("ff.net.0.proj",)),
    ("mlp.2", "mlp.fc2", ("ff.net.2",)),
    ("modulation.1", "adaLN_modulation.1", ("norm1.linear",)),
)


@dataclass(frozen=True)
class Imported:
    """A model read from elsewhere: its shape and its weights under our names, float32."""

    model: DiTSpec
    shape: InputShape
    state: State

    def build(self) -> DiT:
        """The model with these weights, on the CPU, in evaluation mode."""
        with torch.device("meta"):
            dit = DiT(self.model, self.shape)
        dit.load_state_dict(self.state, assign=True)
        # the two buffers are constants and not in the file
        dit.positions = sincos_positions(self.shape.size // self.model.patch_size, self.model.width)
        dit.timestep_embedding.frequencies = TimestepEmbedding(1).frequencies
        return dit.eval().requires_grad_(False)


def check_exportable(model: ModelSpec, shape: InputShape, outputs: int = 2) -> None:
    """Check that the official and the diffusers format can hold a model.

    Raises:
        InputError: the model is not a DiT, its block is not adaLN-Zero, it normalises queries and keys, or it has no
            second output (the learned variance; with flow it is not used) or no labels.
    """
    if not isinstance(model, DiTSpec):
        raise InputError(f"a network {model.network} cannot be exported: both formats are of DiTs only")
    if BLOCKS.load(model.block) is not AdaLNZeroBlock:
        raise InputError(
            f"a model with {model.block} blocks cannot be exported: official code and diffusers know adaln-zero only"
        )
    if model.qk_norm:
        raise InputError("a model with qk_norm cannot be exported: official code and diffusers have no such norms")
    if outputs != 2:
        raise InputError(
            "a model of another objective cannot be exported: official code and diffusers know ddpm-hybrid"
        )
    if not shape.classes:
        raise InputError(
            "a model without labels cannot be exported: the official code and diffusers need a label table"
        )


def kinds(module: str) -> tuple[str, ...]:
    """The tensors of a module: the label embedding has no bias."""
    return ("weight",) if module == "label_embedding" else ("weight", "bias")


def model_of(source: str, depth: int, width: int, heads: int, patch_size: int, hidden: int) -> DiTSpec:
    """The spec of a network whose MLP is `hidden` wide.

    Raises:
        InputError: there is no such model.
    """
    ratio = hidden / width
    if int(ratio * width) < hidden:  # rounded down; DiT takes the floor
        ratio = math.nextafter(ratio, math.inf)
    try:
        return DiTSpec(depth=depth, width=width, heads=heads, patch_size=patch_size, mlp_ratio=ratio)
    except ValidationError as error:
        raise InputError(f"{source}: no valid model: {describe_validation_error(error)}") from None


def shapes_of(model: DiTSpec, shape: InputShape) -> dict[str, tuple[int, ...]]:
    """Shape of every weight, by our names; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in DiT(model, shape).state_dict().items()}


def require(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Refuse weights that do not fit; one message names every missing, extra and misshapen tensor."""
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


def weights_of(document: object, source: str) -> State:
    """The tensors that a file holds, by their names without the prefixes of wrapped models, wherever these stand.

    Raises:
        InputError: no state dict of floats (a view of few values that claims many is none), or a name that stands twice
            without the prefixes.
    """
    if not isinstance(document, Mapping):
        raise InputError(f"{source}: holds a {type(document).__name__}; allowed: a state dict of tensors")
    if bad := [str(name) for name, value in document.items() if not (isinstance(name, str) and _is_weight(value))]:
        raise InputError(f"{source}: not a state dict of weights: {', '.join(bad)}; allowed: tensors of floats")
    plain = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in document}
    if twice := [name for name, times in Counter(plain.values()).items() if times > 1]:
        raise InputError(f"{source}: with and without {' or '.join(_WRAPPERS)}, these stand twice: {', '.join(twice)}")
    return {plain[name]: tensor for name, tensor in document.items()}


def _is_weight(value: object) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout is not torch.strided:
        return False
    return not value.is_meta and value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def require_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Check that every value is finite as float32.

    Raises:
        InputError: some are not; how many of how many, and in which tensors.
    """
    counts = {name: int((~torch.isfinite(tensor.detach().float())).sum()) for name, tensor in state.items()}
    if not (bad := {name: count for name, count in counts.items() if count}):
        return
    named = [f"{name} ({count} of {state[name].numel()})" for name, count in list(bad.items())[:_NAMED]]
    more = f" and {len(bad) - _NAMED} more tensors" if len(bad) > _NAMED else ""
    total = sum(tensor.numel() for tensor in state.values())
    raise InputError(
        f"{source}: {sum(bad.values())} of {total} values are not finite (NaN or infinite), in {', '.join(named)}{more}"
    )


def load_pickle(path: Path) -> Any:
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
