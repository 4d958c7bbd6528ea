"""Weights in the format of the official code's checkpoints: facebookresearch/DiT, and SiT's, which has the same names.

The file does not tell them apart: what the weights predict is the objective's (see `harness.diffusion.flow`).
"""

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
from harness.spec.data import IMAGENET_CLASSES, InputShape
from harness.spec.model import SIZES, DiTSpec

#: Name of the fixed positions in an official checkpoint.
POSITIONS = "pos_embed"

#: The table of labels, whose last row stands for no label.
_LABELS = "y_embedder.embedding_table.weight"


def to_official(dit: DiT) -> State:
    """The state dict of the official code's `DiT`, positions (1, T, D) included; tensors are shared, not copied.

    Raises:
        InputError: see `check_exportable`; or weights that are not finite.
    """
    formats.check_exportable(dit.model, dit.shape, dit.outputs)
    ours = dit.state_dict()
    formats.require_finite(ours, "the weights cannot be exported")
    state = {theirs: ours[name] for name, theirs in _official_names(dit.model.depth)}
    return {POSITIONS: dit.positions[None], **state}


def from_official(
    state: Mapping[str, Tensor], heads: int | None = None, source: str = "checkpoint", classes: int | None = None
) -> Imported:
    """Read a state dict of the official code's `DiT`; shape and size follow from the tensors.

    Args:
        state: its tensors by name.
        heads: attention heads, which the tensors do not show; not needed for the published sizes.
        source: what a message calls it.
        classes: how many there are, where it is known.

    Raises:
        InputError: missing, extra or misshapen tensors (all of them named), values that are not finite, no row for "no
            label", other positions, or unknown heads.
    """
    state = formats.weights_of(state, source)
    model, shape = _shape_of_official(state, heads, source)
    _check_labels(shape.classes + 1, classes, source)
    expected = {theirs: want for name, theirs, want in _expected_official(model, shape)}
    formats.require(state, expected, source)
    formats.require_finite(state, source)
    positions = sincos_positions(shape.size // model.patch_size, model.width)
    found = state[POSITIONS][0]
    # rounded as the file rounds, or as one did that was bf16 before
    rounded = (positions.to(dtype).float() for dtype in (found.dtype, torch.bfloat16))
    if not any(torch.allclose(found.float(), table, atol=1e-3) for table in rounded):
        raise InputError(f"{source}: {POSITIONS} is not the fixed sine-cosine table of this model")
    return Imported(model, shape, {name: state[theirs].float() for name, theirs in _official_names(model.depth)})


def read_official(path: Path, heads: int | None = None, *, ema: bool = True) -> Imported:
    """Read an official checkpoint (`.pt`). Nothing in it is executed.

    Args:
        path: the file: a bare state dict, as published, or what the official training script saves; of the latter the
            averaged weights alone are enough.
        heads: see `from_official`.
        ema: the averaged weights of a training checkpoint; False: the plain ones.

    Raises:
        InputError: no such file, a pickle that carries code, or anything `from_official` refuses.
    """
    document = formats.load_pickle(path)
    arguments = None
    if isinstance(document, dict):
        arguments = document.get("args")
        parts = [key for key in ("ema", "model") if isinstance(document.get(key), dict)]
        if parts == ["ema"] and not ema:
            raise InputError(f"{path}: holds the averaged weights only; leave out --raw")
        if parts:
            document = document[parts[0] if ema else "model"]
    told = arguments.get("num_classes") if isinstance(arguments, dict) else getattr(arguments, "num_classes", None)
    return from_official(document, heads, str(path), told if isinstance(told, int) else None)


def write_official(dit: DiT, path: Path) -> None:
    """Write a model as an official checkpoint, a bare state dict.

    Raises:
        InputError: see `check_exportable`.
    """
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in to_official(dit).items()}, path)


def _check_labels(rows: int, classes: int | None, source: str) -> None:
    """Check that the table of labels has a row for every class and one for no label.

    Without it the last class would pass as "no label". Where nothing tells the classes, 1000 rows are ImageNet's.
    """
    if classes is None and rows == IMAGENET_CLASSES:
        classes = IMAGENET_CLASSES
    if rows < 2 or (classes is not None and rows != classes + 1):
        allowed = "2 or more" if classes is None else f"{classes + 1} for {classes} classes"
        raise InputError(f"{source}: {_LABELS} has {rows} rows; allowed: {allowed}, the last one for no label")


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
    """What the tensors say about the model; the block is adaLN-Zero or `require` says what is missing."""
    anchors = ("x_embedder.proj.weight", POSITIONS, _LABELS, "blocks.0.mlp.fc1.weight")
    missing = [name for name in anchors if name not in state]
    if missing:
        raise InputError(f"{source}: not an official DiT checkpoint, it has no {', '.join(missing)}")
    patches, positions, labels, hidden = (state[name] for name in anchors)
    ranks = {name: len(state[name].shape) for name in anchors}
    empty = any(not state[name].numel() for name in anchors)
    if empty or list(ranks.values()) != [4, 3, 2, 2] or positions.shape[1] != math.isqrt(positions.shape[1]) ** 2:
        shapes = ", ".join(f"{name} {tuple(state[name].shape)}" for name in anchors)
        raise InputError(f"{source}: not an official DiT checkpoint; shapes: {shapes}")
    width, channels, patch_size, _ = patches.shape
    # every block has a tensor: a higher number is no block of this model, and is refused as unknown
    numbers = (int(found[1]) for name in state if (found := re.match(r"blocks\.(\d{1,9})\.", name)))
    depth = 1 + max(number for number in numbers if number < len(state))
    if heads is None:
        heads = next((s["heads"] for s in SIZES.values() if (s["depth"], s["width"]) == (depth, width)), None)
    if heads is None:
        raise InputError(
            f"{source}: depth {depth} and width {width} are no published size, and the file does not tell the number "
            "of attention heads; give it (--heads)"
        )
    model = formats.model_of(source, depth, width, heads, patch_size, hidden.shape[0])
    return model, InputShape(channels, math.isqrt(positions.shape[1]) * patch_size, labels.shape[0] - 1)
