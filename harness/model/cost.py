"""What a model costs: parameters, and multiply-adds of one forward pass of one image, without guidance.

The paper's "Gflops" are multiply-adds (macs) in units of 1e9; floating-point operations are twice that. Every network
is traced with fvcore, as in the paper; a `Network` gives handles for operators that fvcore does not count.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

from harness.spec.cell import Cell
from harness.spec.data import InputShape
from harness.spec.identity import canonical_json
from harness.spec.kinds import Kind
from harness.spec.model import NETWORKS, ModelSpec

#: What fvcore counts and is no matrix product.
_LEFT_OUT = ("aten::layer_norm", "aten::group_norm", "aten::upsample_nearest2d")

#: An operator with one of these in its name multiplies matrices; all of them must be counted.
_MATMUL_LIKE = ("mm", "matmul", "mv", "dot", "linear", "einsum", "conv", "attention", "outer", "cdist")

#: Below so many multiply-adds a network is traced as it is: that takes less time than on the meta device, which torch
#: computes in Python and by modules of its compiler (1.4 s to import).
_SMALL = 2e8


@dataclass(frozen=True)
class Cost:
    """Number of parameters (without the fixed positions), and multiply-adds of one forward pass of one image."""

    params: int
    macs: int


def count(model: ModelSpec, shape: InputShape, outputs: int = 2) -> Cost:
    """Count a network by tracing it, or smaller ones whose costs add up to its own (`Network.cost_parts`).

    Norms, softmax and elementwise operators are left out. The published numbers seem to hold two operations a token
    and channel of each LayerNorm. Results are cached: a grid costs one trace per distinct shape (less than 0.1 s).

    Args:
        model: its spec.
        shape: of its input.
        outputs: values predicted for each value of the input; the objective says how many.

    Raises:
        RuntimeError: the network contains a matrix product that fvcore does not count.
    """
    return _count(model, shape, outputs, Kind.additions)


@cache
def _count(model: ModelSpec, shape: InputShape, outputs: int, additions: int) -> Cost:
    parts = [
        (times, _traced(part, shape, outputs, canonical_json(part)))
        for times, part in NETWORKS.load(model.network).cost_parts(model)
        if times
    ]
    return Cost(params=sum(times * c.params for times, c in parts), macs=sum(times * c.macs for times, c in parts))


def count_cell(cell: Cell) -> Cost:
    """The cost of a cell's network, with the outputs that its objective asks for; see `count`."""
    return count(cell.model, cell.data.shape, cell.diffusion.outputs)


@cache
def _traced(model: ModelSpec, shape: InputShape, outputs: int, identity: str) -> Cost:
    """Count one network as it is; a large one on the meta device, without memory and arithmetic.

    `identity` is the canonical JSON of `model`, for the cache: it holds the content hash of a user's file.
    """
    with warnings.catch_warnings():
        # fvcore rests on torch.jit, which is deprecated and says so on import and in every trace.
        warnings.simplefilter("ignore")
        import torch
        from fvcore.nn import FlopCountAnalysis

        from harness.model.network import build

        with torch.device("cpu" if model.macs_proxy(shape) < _SMALL else "meta"):
            network = build(model, shape, outputs).eval()
            x = torch.zeros(1, shape.channels, shape.size, shape.size)
            t = torch.zeros(1)
            y = torch.zeros(1, dtype=torch.int64) if shape.classes else None
        analysis = FlopCountAnalysis(network, (x, t) if y is None else (x, t, y))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        for name in _LEFT_OUT:
            analysis.set_op_handle(name, _nothing)  # None would not leave it out
        for name, handle in network.op_handles.items():
            analysis.set_op_handle(name, handle)
        with _products_for_convolutions():
            macs = int(analysis.total())
        uncounted: Counter[str] = analysis.unsupported_ops()
    if missed := sorted(op for op in uncounted if any(part in op for part in _MATMUL_LIKE)):
        raise RuntimeError(
            f"fvcore does not count {', '.join(missed)}: give it a handle (see harness/model/network.py)"
        )
    return Cost(params=sum(p.numel() for p in network.parameters()), macs=macs)


def _products_for_convolutions() -> AbstractContextManager[object]:
    """Compute a convolution of images as the matrix product of its windows: as many multiply-adds.

    fvcore cannot trace a convolution on the meta device.
    """
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    class Products(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is not torch.conv2d or len(args) < 7 or args[6] != 1:  # of groups
                return func(*args, **(kwargs or {}))
            x, weight, bias, stride, padding, dilation, _ = args
            sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
            sides = [(size + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, gap in sizes]
            windows = F.unfold(x, weight.shape[2:], dilation, padding, stride)  # (N, C * k * k, positions)
            return F.linear(windows.transpose(1, 2), weight.flatten(1), bias).transpose(1, 2).unflatten(2, sides)

    return Products()


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of scaled_dot_product_attention, which fvcore leaves out: q k^T, then weights times v."""
    *batch, queries, _ = inputs[0].type().sizes()
    keys, channels = inputs[1].type().sizes()[-2:]
    values = inputs[2].type().sizes()[-1]
    macs: int = math.prod(batch) * queries * keys * (channels + values)
    return macs


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0
