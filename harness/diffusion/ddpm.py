"""The hybrid objective, `ddpm-hybrid`: noise MSE plus the variational bound that trains the variance.

It is equation 16 of Nichol & Dhariwal 2021. The schedule is in `harness.diffusion.schedule`.

As in the paper (section 3.1), the noise prediction is detached inside the bound, whose weight is 1: in every
step the noise channels learn from the MSE only, the variance channels from the bound only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.diffusion.guidance import Denoise
from harness.diffusion.objective import Objective, Sampler, StepNoise
from harness.diffusion.schedule import Schedule
from harness.spec.diffusion import Diffusion


class HybridLoss(NamedTuple):
    """Loss per sample: `mse` (N,) of the noise, and `vb` (N,), the bound's term at t, in bits per dimension."""

    mse: Tensor
    vb: Tensor

    @property
    def total(self) -> Tensor:
        """What training minimises: mse + vb, (N,)."""
        return self.mse + self.vb


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
    # Both means combine x_t and x_0 with the same weights, so they differ by a multiple of the noise error. With
    # d = log p-variance - log q-variance = half_range * (1 + v): 2 KL = d - 1 + e^-d + ratio * error^2 * e^-d.
    _, _, half_range, ratio = schedule.coefficients(t)
    d = torch.addcmul(half_range, half_range, v)
    shrink = torch.expm1(-d)
    kl = 0.5 * (d + shrink + ratio * squared_error.detach() * (shrink + 1))
    first = t == 0
    if t.is_cuda:  # to choose rows, the host would wait for the GPU
        kl = torch.where(first[:, None, None, None], _decoder_nll(predicted.detach(), v, x0, xt, schedule), kl)
    elif len(rows := first.nonzero().flatten()):
        kl = kl.index_copy(0, rows, _decoder_nll(predicted.detach()[rows], v[rows], x0[rows], xt[rows], schedule))
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


def ddpm(objective: DdpmHybrid, denoise: Denoise, noise: Tensor, steps: int, step_noise: StepNoise) -> Iterator[Tensor]:
    """Draw from the learned reverse process (Ho et al. 2020, algorithm 2), with x_0 not clipped.

    `step_noise` is called once for every step but the last, which adds no noise.
    """
    schedule, x = objective.schedule.respaced(steps), noise
    for step, i in enumerate(reversed(range(steps))):
        x0, _, v = _predicted(denoise, x, schedule, i)
        x = float(schedule.posterior_mean_x0[i]) * x0 + float(schedule.posterior_mean_xt[i]) * x
        if i > 0:
            low, high = float(schedule.log_variance_low[i]), float(schedule.log_variance_high[i])
            deviation = torch.exp(v * ((high - low) / 4) + (low + high) / 4)
            x = x + deviation * step_noise(step)
        yield x


def ddim(objective: DdpmHybrid, denoise: Denoise, noise: Tensor, steps: int, step_noise: StepNoise) -> Iterator[Tensor]:
    """The deterministic counterpart (Song, Meng & Ermon 2021, eta = 0); ignores the predicted variance."""
    return _ddim(objective, denoise, noise, steps, clip=False)


def ddim_clip(
    objective: DdpmHybrid, denoise: Denoise, noise: Tensor, steps: int, step_noise: StepNoise
) -> Iterator[Tensor]:
    """DDIM with the predicted x_0 clipped to [-1, 1] and the noise that belongs to it, for pixels.

    Near t = T an error of the noise is 1 / sqrt(alpha_bar) times as large in x_0 (about 160 times on the paper's
    schedule), so samples can leave the range of images; Ho et al. 2020 clip, too. Latents have no such range.
    """
    return _ddim(objective, denoise, noise, steps, clip=True)


def _ddim(objective: DdpmHybrid, denoise: Denoise, noise: Tensor, steps: int, *, clip: bool) -> Iterator[Tensor]:
    schedule, x = objective.schedule.respaced(steps), noise
    for i in reversed(range(steps)):
        x0, predicted, _ = _predicted(denoise, x, schedule, i)
        if clip:
            alpha_bar = float(schedule.alphas_bar[i])
            x0 = x0.clamp(-1, 1)
            predicted = (x - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar)
        previous = float(schedule.alphas_bar_previous[i])
        x = math.sqrt(previous) * x0 + math.sqrt(1 - previous) * predicted
        yield x


def _predicted(denoise: Denoise, x: Tensor, schedule: Schedule, i: int) -> tuple[Tensor, Tensor, Tensor]:
    """x_0, noise and v that the network predicts from x at step i of the schedule, (N, C, S, S) each."""
    t = torch.full((len(x),), int(schedule.timesteps[i]), device=x.device)
    predicted, v = denoise(x, t).float().chunk(2, dim=1)
    alpha_bar = float(schedule.alphas_bar[i])
    return (x - math.sqrt(1 - alpha_bar) * predicted) / math.sqrt(alpha_bar), predicted, v


class DdpmHybrid(Objective):
    """Noise prediction with a learned variance on a linear schedule, as in the paper (section 3.1)."""

    samplers: ClassVar[Mapping[str, Sampler]] = MappingProxyType({"ddpm": ddpm, "ddim": ddim, "ddim-clip": ddim_clip})
    outputs = 2
    discrete = True
    spec: Diffusion

    def __init__(self, spec: Diffusion) -> None:
        super().__init__(spec)
        self.schedule = Schedule.of(spec)

    def draw(self, generator: np.random.Generator, count: int, low: float = 0.0, high: float = 1.0) -> NDArray[Any]:
        """Steps of the schedule, uniform, int64."""
        return generator.integers(round(low * len(self.schedule)), round(high * len(self.schedule)), size=count)

    def variances(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_bar and 1 - alpha_bar."""
        share = torch.from_numpy(self.schedule.alphas_bar).to(t.device)[t]
        return share, 1 - share

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        """The noise."""
        return noise

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """See `Objective`; from a float32 table that stays on the device."""
        return self.schedule.q_sample(x0, t, noise)

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """See `hybrid_loss`; (N,)."""
        return hybrid_loss(output.float(), x0, xt, t, noise, self.schedule).total
