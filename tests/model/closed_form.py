"""The cost of a DiT by formula: an oracle for what fvcore counts."""

from __future__ import annotations

from harness.model.cost import Cost
from harness.model.embeddings import FREQUENCIES
from harness.spec.data import InputShape
from harness.spec.model import DiTSpec


def closed_form(model: DiTSpec, shape: InputShape) -> Cost:
    """Parameters, and multiply-adds of one forward pass of one image."""
    D, hidden, T = model.width, int(model.mlp_ratio * model.width), model.tokens(shape)
    K, patch = 2 if shape.classes else 1, shape.channels * model.patch_size**2
    return Cost(_params(model, shape, D, hidden, patch), _macs(model, D, hidden, T, K, patch))


def _macs(model: DiTSpec, D: int, hidden: int, T: int, K: int, patch: int) -> int:
    tokens = T + K if model.block == "in-context" else T
    block = tokens * (4 * D * D + 2 * D * hidden) + 2 * tokens * tokens * D
    block += {
        "in-context": 0,
        "cross-attention": 2 * T * D * D + 2 * K * D * D + 2 * T * K * D,
        "adaln": 4 * D * D,
        "adaln-zero": 6 * D * D,
        "adaln-gate": 6 * D * D,
    }[model.block]
    adaptive = 2 * D * D if model.block.startswith("adaln") else 0
    ends = T * D * patch + FREQUENCIES * D + D * D + adaptive + T * D * 2 * patch
    return model.depth * block + ends


def _params(model: DiTSpec, shape: InputShape, D: int, hidden: int, patch: int) -> int:
    norm = 2 * D
    block = 4 * (D * D + D) + 2 * D * hidden + hidden + D
    block += {
        "in-context": 2 * norm,
        "cross-attention": 3 * norm + 4 * (D * D + D),
        "adaln": 4 * (D * D + D),
        "adaln-zero": 6 * (D * D + D),
        "adaln-gate": 6 * (D * D + D),
    }[model.block]
    attentions = 2 if model.block == "cross-attention" else 1
    block += 2 * attentions * D // model.heads if model.qk_norm else 0
    embeddings = (patch * D + D) + (FREQUENCIES * D + D) + (D * D + D)
    labels = (shape.classes + 1) * D if shape.classes else 0
    final = 2 * (D * D + D) if model.block.startswith("adaln") else norm
    return embeddings + labels + model.depth * block + final + (D + 1) * 2 * patch
