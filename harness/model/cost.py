"""What a model costs: parameters, and multiply-adds of one forward pass of one image, without guidance.

The paper's "Gflops" are multiply-adds (macs) in units of 1e9; floating-point operations are twice that. `count` traces
the model with fvcore as the paper did; the closed forms beside it are exact, need no torch, and check it.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from harness.spec.data import InputShape
from harness.spec.model import Model

#: Operators with any of these in their name multiply matrices; none may be left uncounted.
_MATMUL_LIKE = ("mm", "matmul", "mv", "dot", "linear", "einsum", "conv", "attention", "outer", "cdist")

#: Blocks whose final layer adapts to the condition too.
_ADAPTIVE = ("adaln", "adaln-zero", "adaln-gate")

#: Length of the sinusoidal timestep vector, as in harness.model.embeddings (which imports torch).
_FREQUENCIES = 256


@dataclass(frozen=True)
class Cost:
    """Parameters (count, the fixed positions left out) and multiply-adds of one forward pass of one image."""

    params: int
    macs: int

    @property
    def flops(self) -> int:
        """Floating-point operations: 2 * macs."""
        return 2 * self.macs


def count(model: Model, shape: InputShape) -> Cost:
    """Count a model of any depth by tracing it at depths 1 and 2, which is exact since all blocks are alike.

    LayerNorm, softmax and elementwise operators are left out, as in the published numbers. Results are kept, so
    a grid costs one trace per distinct shape (less than 0.1 s).

    Raises:
        RuntimeError: the model contains a matrix product that fvcore does not count.
    """
    one, two = (_traced(model.model_copy(update={"depth": depth}), shape) for depth in (1, 2))
    further = model.depth - 1
    return Cost(
        params=one.params + further * (two.params - one.params),
        macs=one.macs + further * (two.macs - one.macs),
    )


@cache
def _traced(model: Model, shape: InputShape) -> Cost:
    """Count one model as it is, on the meta device: no memory, no arithmetic."""
    with warnings.catch_warnings():
        # fvcore rests on torch.jit, which is deprecated and says so on import and in every trace.
        warnings.simplefilter("ignore")
        import torch
        from fvcore.nn import FlopCountAnalysis

        from harness.model.dit import DiT

        with torch.device("meta"):
            dit = DiT(model, shape).eval()
            x = torch.zeros(1, shape.channels, shape.size, shape.size)
            t = torch.zeros(1)
            y = torch.zeros(1, dtype=torch.int64) if shape.classes else None
        analysis = FlopCountAnalysis(dit, (x, t) if y is None else (x, t, y))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.set_op_handle("aten::layer_norm", _nothing)  # None would not leave it out
        macs = int(analysis.total())
        uncounted: Counter[str] = analysis.unsupported_ops()
    if missed := sorted(op for op in uncounted if any(part in op for part in _MATMUL_LIKE)):
        raise RuntimeError(f"fvcore does not count {', '.join(missed)}: give it a handle in harness/flops.py")
    return Cost(params=sum(p.numel() for p in dit.parameters()), macs=macs)


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of scaled_dot_product_attention, which fvcore leaves out: q k^T, then weights times v."""
    *batch, queries, _ = inputs[0].type().sizes()
    keys, channels = inputs[1].type().sizes()[-2:]
    values = inputs[2].type().sizes()[-1]
    macs: int = math.prod(batch) * queries * keys * (channels + values)
    return macs


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


def _sizes(model: Model, shape: InputShape) -> tuple[int, int, int, int, int]:
    """D, hidden size of the MLP, tokens T, condition vectors K, input values of a patch."""
    tokens = (shape.size // model.patch_size) ** 2
    vectors = 2 if shape.classes else 1
    return model.width, int(model.mlp_ratio * model.width), tokens, vectors, shape.channels * model.patch_size**2


def closed_form_macs(model: Model, shape: InputShape) -> int:
    """Count multiply-adds of one forward pass of one image by formula; equal to `count(model, shape).macs`."""
    D, hidden, T, K, patch = _sizes(model, shape)
    tokens = T + K if model.block == "in-context" else T
    block = tokens * (4 * D * D + 2 * D * hidden) + 2 * tokens * tokens * D
    block += {
        "in-context": 0,
        "cross-attention": 2 * T * D * D + 2 * K * D * D + 2 * T * K * D,
        "adaln": 4 * D * D,
        "adaln-zero": 6 * D * D,
        "adaln-gate": 6 * D * D,
    }[model.block]
    adaptive = 2 * D * D if model.block in _ADAPTIVE else 0
    ends = T * D * patch + _FREQUENCIES * D + D * D + adaptive + T * D * 2 * patch
    return model.depth * block + ends


def closed_form_params(model: Model, shape: InputShape) -> int:
    """Count parameters by formula; equal to `count(model, shape).params`."""
    D, hidden, _, _, patch = _sizes(model, shape)
    norm = 2 * D
    block = 4 * (D * D + D) + 2 * D * hidden + hidden + D
    block += {
        "in-context": 2 * norm,
        "cross-attention": 3 * norm + 4 * (D * D + D),
        "adaln": 4 * (D * D + D),
        "adaln-zero": 6 * (D * D + D),
        "adaln-gate": 6 * (D * D + D),
    }[model.block]
    embeddings = (patch * D + D) + (_FREQUENCIES * D + D) + (D * D + D)
    labels = (shape.classes + 1) * D if shape.classes else 0
    final = 2 * (D * D + D) if model.block in _ADAPTIVE else norm
    return embeddings + labels + model.depth * block + final + (D + 1) * 2 * patch
