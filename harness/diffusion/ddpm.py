"""The hybrid objective: noise MSE plus the variational bound that trains the variance (Nichol & Dhariwal 2021, eq. 16).

As in the paper (section 3.1), the noise prediction is detached inside the bound, whose weight is 1: in every
step the noise channels learn from the MSE only, the variance channels from the bound only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from harness.diffusion.guidance import Denoise
from harness.diffusion.schedule import Schedule
from harness.errors import InputError


class HybridLoss(NamedTuple):
    """Loss per sample: `mse` (N,) of the noise, and `vb` (N,), the bound's term at t, in bits per dimension."""

    mse: Tensor
    vb: Tensor

    @property
    def total(self) -> Tensor:
        """What training minimises: mse + vb, (N,)."""
        return self.mse + self.vb


def denoising_mse(output: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error (N,) of the noise channels of output (N, 2C, S, S) against noise (N, C, S, S)."""
    predicted = output[:, : noise.shape[1]].float()
    return (predicted - noise).square().flatten(1).mean(1)


def hybrid_loss(output: Tensor, x0: Tensor, xt: Tensor, t: Tensor, noise: Tensor, schedule: Schedule) -> HybridLoss:
    """Hybrid loss per sample.

    Args:
        output: of the model, (N, 2C, S, S): predicted noise, then variance v with log-variance
            (1 + v) / 2 * log beta + (1 - v) / 2 * log posterior variance.
        x0: clean images (N, C, S, S), in [-1, 1] for the decoder term at t = 0 to be a likelihood.
        xt: `schedule.q_sample(x0, t, noise)`, (N, C, S, S).
        t: steps of `schedule`, (N,) int64.
        noise: the noise in xt, (N, C, S, S).
        schedule: the training schedule.

    The bound's term is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, and at t = 0 the decoder's negative
    log-likelihood (Ho et al. 2020, equation 5). Computed in float32 also under autocast.
    """
    predicted, v = output.float().chunk(2, dim=1)
    squared_error = (predicted - noise).square()
    # Both means are the same combination of x_t and x_0, so they differ by a multiple of the error of the noise. With
    # d = log p-variance - log q-variance = half_range * (1 + v): 2 KL = d - 1 + e^-d + ratio * error^2 * e^-d.
    _, _, half_range, ratio = schedule.coefficients(t)
    d = torch.addcmul(half_range, half_range, v)
    shrink = torch.expm1(-d)
    kl = 0.5 * (d + shrink + ratio * squared_error.detach() * (shrink + 1))
    first = t == 0
    if t.is_cuda or first.any():  # rarely true; on a GPU, asking would cost more than the arithmetic
        kl = torch.where(first[:, None, None, None], _decoder_nll(predicted.detach(), v, x0, xt, schedule), kl)
    return HybridLoss(mse=squared_error.flatten(1).mean(1), vb=kl.flatten(1).mean(1) / math.log(2))


def _decoder_nll(predicted: Tensor, v: Tensor, x0: Tensor, xt: Tensor, schedule: Schedule) -> Tensor:
    """Negative log-likelihood in nats of x0 under the discretised Gaussian at t = 0 (Ho et al. 2020, equation 13).

    Bins are 2/255 wide, centred on the 256 grey values in [-1, 1]; the outermost reach to infinity. The normal
    distribution function is exact, where the public code approximates it by a tanh. (N, C, S, S) each.
    """
    alpha_bar = float(schedule.alphas_bar[0])
    low, high = float(schedule.log_variance_low[0]), float(schedule.log_variance_high[0])
    mean = (xt - math.sqrt(1 - alpha_bar) * predicted) / math.sqrt(alpha_bar)
    inverse_deviation = torch.exp(v * (-(high - low) / 4) - (low + high) / 4)
    centred = x0 - mean
    above = torch.special.ndtr((centred + 1 / 255) * inverse_deviation)
    below = torch.special.ndtr((centred - 1 / 255) * inverse_deviation)
    above = above.masked_fill(x0 > 0.999, 1)
    below = below.masked_fill(x0 < -0.999, 0)
    return -torch.log((above - below).clamp(min=1e-12))


@torch.no_grad()
def sample(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    sampler: str,
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
