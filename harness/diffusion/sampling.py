"""The way back: from noise to images (Ho et al. 2020, algorithm 2; Song et al. 2021, DDIM; paper, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from harness.diffusion.schedule import Schedule
from harness.errors import InputError
from harness.model.dit import DiT

#: Maps noised images (N, C, S, S) and training timesteps (N,) int64 to noise and variance, (N, 2C, S, S).
Denoise = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    sampler: Literal["ddpm", "ddim"],
    step_noise: Callable[[int], Tensor],
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Turn standard normal noise into images, with one call of `denoise` per step of the schedule.

    Args:
        denoise: the model with its labels bound, see `guided`.
        noise: x_T, standard normal, (N, C, S, S).
        schedule: as trained, or `respaced` to fewer steps.
        sampler: "ddpm" draws from the learned reverse process, with x_0 not clipped and no noise in the last step;
            "ddim" is its deterministic counterpart (eta = 0) and ignores the predicted variance.
        step_noise: maps the number of the step, 0, 1, ... in the order of sampling, to standard normal noise
            (N, C, S, S). Called once for every step but the last by "ddpm", never by "ddim".
        progress: called after every step with the number of steps done.

    Returns:
        x_0, (N, C, S, S) float32.
    """
    if sampler not in ("ddpm", "ddim"):
        raise InputError(f"sampler {sampler!r}: must be ddpm or ddim")
    x = noise.float()
    steps = len(schedule)
    for step, i in enumerate(reversed(range(steps))):
        t = torch.full((len(x),), int(schedule.timesteps[i]), device=x.device)
        predicted, v = denoise(x, t).float().chunk(2, dim=1)
        alpha_bar = float(schedule.alphas_bar[i])
        x0 = (x - math.sqrt(1 - alpha_bar) * predicted) / math.sqrt(alpha_bar)
        if sampler == "ddim":
            previous = float(schedule.alphas_bar_previous[i])
            x = math.sqrt(previous) * x0 + math.sqrt(1 - previous) * predicted
        else:
            x = float(schedule.posterior_mean_x0[i]) * x0 + float(schedule.posterior_mean_xt[i]) * x
            if i > 0:
                low, high = float(schedule.log_variance_low[i]), float(schedule.log_variance_high[i])
                deviation = torch.exp(v * ((high - low) / 4) + (low + high) / 4)
                x = x + deviation * step_noise(step)
        if progress is not None:
            progress(step + 1)
    return x


def guided(dit: DiT, y: Tensor | None, scale: float, channels: int | None = None) -> Denoise:
    """Bind labels to a model, with classifier-free guidance (paper, section 3.1; Ho & Salimans 2021).

    Noise is predicted as null + scale * (conditional - null), the variance is the conditional one.

    Args:
        dit: the model.
        y: labels (N,) int64; None for a model without classes.
        scale: 1 means no guidance and costs one forward pass; any other value costs two, done as one batch of 2N.
        channels: how many leading noise channels are guided, the others staying conditional; None means all. The
            published results guide the first 3 of 4.

    Raises:
        InputError: guidance of a model without classes, or `channels` out of range.
    """
    if channels is not None and not 1 <= channels <= dit.shape.channels:
        raise InputError(f"guided channels {channels}: must be in 1..{dit.shape.channels}, the channels of the model")
    if scale == 1:
        return lambda x, t: dit(x, t, y)
    if y is None or not dit.shape.classes:
        raise InputError(f"guidance {scale}: a model without classes can only be sampled with guidance 1")
    both = torch.cat((y, torch.full_like(y, dit.null_class)))
    lead = dit.shape.channels if channels is None else channels

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        conditional, null = dit(torch.cat((x, x)), torch.cat((t, t)), both).chunk(2)
        noise = null[:, :lead] + scale * (conditional[:, :lead] - null[:, :lead])
        return torch.cat((noise, conditional[:, lead:]), dim=1)

    return denoise


#: What `to_uint8` does, for records: other rules give other FIDs.
UINT8_RULE = "127.5 x + 128, clamped to 0..255, the fraction dropped"


def to_uint8(x: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes of the same shape, by the rule above."""
    return (127.5 * x + 128).clamp(0, 255).to(torch.uint8)
