"""Weights in the format of the official code's checkpoints (facebookresearch/DiT)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import InputError
from harness.model import formats
from harness.model.dit import DiT
from harness.model.embeddings import sincos_positions
from harness.model.formats import Imported, State
from harness.spec.data import InputShape
from harness.spec.model import SIZES, DiTSpec

#: Name of the fixed positions in an official checkpoint.
POSITIONS = "pos_embed"


def to_official(dit: DiT) -> State:
    """The state dict of the official code's `DiT`, positions (1, T, D) included; tensors are shared, not copied.

    Raises:
        InputError: see `check_exportable`.
    """
    formats.check_exportable(dit.model, dit.shape, dit.outputs)
    ours = dit.state_dict()
    state = {theirs: ours[name] for name, theirs in _official_names(dit.model.depth)}
    return {POSITIONS: dit.positions[None], **state}


def from_official(state: Mapping[str, Tensor], heads: int | None = None, source: str = "checkpoint") -> Imported:
    """Read a state dict of the official code's `DiT`; shape and size follow from the tensors.

    Args:
        state: its tensors by name.
        heads: attention heads, which the tensors do not show; not needed for the published sizes.
        source: what a message calls it.

    Raises:
        InputError: missing, extra or misshapen tensors (all of them named), positions that differ, or unknown heads.
    """
    model, shape = _shape_of_official(state, heads, source)
    expected = {theirs: want for name, theirs, want in _expected_official(model, shape)}
    formats.require(state, expected, source)
    positions = sincos_positions(shape.size // model.patch_size, model.width)
    if not torch.allclose(state[POSITIONS][0].float(), positions, atol=1e-3):
        raise InputError(f"{source}: {POSITIONS} is not the fixed sine-cosine table of this model")
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
    document = formats.load_pickle(path)
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
    for ours, theirs, _ in formats.ENDS:
        yield from ((f"{ours}.{kind}", f"{theirs}.{kind}") for kind in formats.kinds(ours))
    for i in range(depth):
        for inner, outer, _ in formats.BLOCK:
            yield from ((f"blocks.{i}.{inner}.{kind}", f"blocks.{i}.{outer}.{kind}") for kind in formats.kinds(inner))


def _expected_official(model: DiTSpec, shape: InputShape) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    ours = formats.shapes_of(model, shape)
    yield "", POSITIONS, (1, (shape.size // model.patch_size) ** 2, model.width)
    yield from ((name, theirs, ours[name]) for name, theirs in _official_names(model.depth))


def _shape_of_official(state: Mapping[str, Tensor], heads: int | None, source: str) -> tuple[DiTSpec, InputShape]:
    """The model as its tensors show it. The block is taken to be adaLN-Zero; `require` refuses any other."""
    anchors = ("x_embedder.proj.weight", POSITIONS, "y_embedder.embedding_table.weight", "blocks.0.mlp.fc1.weight")
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
    model = formats.model_of(source, depth, width, heads, patch_size, hidden.shape[0])
    return model, InputShape(channels, math.isqrt(positions.shape[1]) * patch_size, labels.shape[0] - 1)
