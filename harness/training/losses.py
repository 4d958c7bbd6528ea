"""Losses measured on fixed draws: their mean, and per bin of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.batches import Batches, Splits
from harness.data.draws import Normals, stream
from harness.diffusion.objective import Objective, build
from harness.errors import NonFiniteError
from harness.spec.cell import Cell
from harness.spec.diffusion import LOSS_BINS

#: Maps noisy input, times and labels to what the objective predicts, (N, outputs * C, S, S).
Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@torch.inference_mode()
def measure_losses(network: Denoiser, cell: Cell, data: Splits, count: int) -> dict[str, Any]:
    """The objective's error per bin of time on both splits, with the same noise for every cell.

    Args:
        network: what predicts.
        cell: for its objective and its data.
        data: both splits.
        count: images of each split, or all where there are fewer.

    Returns:
        `loss_train` and `loss_heldout` (means over the bins) and `bins_train`, `bins_heldout` (LOSS_BINS values each,
        from the cleanest bin to the noisiest).

    Raises:
        NonFiniteError: a bin's error is not finite.
    """
    objective = build(cell.diffusion)
    out: dict[str, Any] = {}
    for name, split in data._asdict().items():
        n = min(count, len(split.labels))
        labels = split.labels[:n] if cell.data.shape.classes else None
        bins = [_bin_error(network, objective, split, labels, n, b) for b in range(LOSS_BINS)]
        if odd := [b for b, error in enumerate(bins) if not math.isfinite(error)]:
            raise NonFiniteError(
                f"the loss measured on {n} {name} images is not finite in {len(odd)} of {LOSS_BINS} bins of time "
                f"({bins[odd[0]]} in bin {odd[0]})"
            )
        out[f"loss_{name}"] = sum(bins) / len(bins)
        out[f"bins_{name}"] = bins
    return out


def _bin_error(
    network: Denoiser, objective: Objective, split: Batches, labels: Tensor | None, count: int, number: int
) -> float:
    draws = stream("denoising-loss", number)  # the same for both splits: noise must not cause a gap between them
    x0 = split.x0(np.arange(count), None, Normals("denoising-loss-posterior", number))
    t = torch.from_numpy(objective.draw(draws, count, number / LOSS_BINS, (number + 1) / LOSS_BINS)).to(x0.device)
    noise = torch.from_numpy(draws.standard_normal(tuple(x0.shape), dtype=np.float32)).to(x0.device)
    return float(objective.error(network(objective.noised(x0, t, noise), t, labels), x0, noise).mean())
