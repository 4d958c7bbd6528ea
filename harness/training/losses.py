"""Losses measured on fixed draws, whole and by timestep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.batches import Batches, Splits
from harness.data.draws import stream
from harness.diffusion.ddpm import denoising_mse
from harness.diffusion.schedule import Schedule
from harness.spec.cell import Cell

#: Timestep bins of the measured denoising loss, equally wide over 0 .. T-1.
LOSS_BINS = 8

#: Noisy input, timesteps and labels to predicted noise (and more channels after it).
Denoiser = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@torch.inference_mode()
def measure_losses(dit: Denoiser, cell: Cell, data: Splits, count: int, device: str) -> dict[str, Any]:
    """Denoising loss (noise MSE) per timestep bin on both splits, the same noise for every cell.

    Returns:
        `loss_train` and `loss_heldout` (means over the bins) and `bins_train`, `bins_heldout` (LOSS_BINS values each,
        from the cleanest bin to the noisiest).
    """
    schedule = Schedule.of(cell.diffusion)
    out: dict[str, Any] = {}
    for name, split in data._asdict().items():
        bins = [_bin_loss(dit, cell, split, count, schedule, b, device) for b in range(LOSS_BINS)]
        out[f"loss_{name}"] = sum(bins) / len(bins)
        out[f"bins_{name}"] = bins
    return out


def _bin_loss(
    dit: Denoiser, cell: Cell, split: Batches, count: int, schedule: Schedule, number: int, device: str
) -> float:
    n = min(count, len(split.labels))
    low, high = (round(edge * cell.diffusion.timesteps / LOSS_BINS) for edge in (number, number + 1))
    draws = stream("denoising-loss", number)  # the same for both splits, so that their gap is not the noise's
    t = torch.from_numpy(draws.integers(low, high, size=n)).to(device)
    x0 = split.x0(np.arange(n), None, stream("denoising-loss-posterior", number))
    noise = torch.from_numpy(draws.standard_normal(tuple(x0.shape), dtype=np.float32)).to(device)
    y = split.labels[:n] if cell.data.shape.classes else None
    return float(denoising_mse(dit(schedule.q_sample(x0, t, noise), t, y), noise).mean())
