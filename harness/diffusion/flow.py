"""Flow matching on a straight path, as SiT does it (Ma et al. 2024, arXiv 2401.08740): objective `flow`.

Time inside this file is SiT's and what the network reads: s = 1 is the clean image, s = 0 all noise, and
x_s = s x_0 + (1 - s) noise. The network predicts the velocity dx/ds = x_0 - noise in the first C of its 2C output
channels; the others are not used, so that parameters, cost and names are those of SiT's and DiT's checkpoints. What
comes from outside (`low` and `high` of `draw`) counts from clean to noise as in every objective: s = 1 - t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.diffusion.guidance import Denoise
from harness.diffusion.objective import Objective, Sampler, StepNoise
from harness.spec.diffusion import Flow as FlowSpec

#: Size of the last step of `sde` in 250 steps or fewer.
LAST_STEP = 0.04

_PUBLISHED_STEPS = 250


def euler(flow: Flow, denoise: Denoise, noise: Tensor, steps: int, step_noise: StepNoise) -> Iterator[Tensor]:
    """Euler's method on dx = v ds in equal steps, from noise to image; order 1, one forward pass a step."""
    x = noise
    for s, later in pairwise(np.linspace(0, 1, steps + 1).tolist()):
        x = x + (later - s) * _velocity(denoise, x, s)
        yield x


def heun(flow: Flow, denoise: Denoise, noise: Tensor, steps: int, step_noise: StepNoise) -> Iterator[Tensor]:
    """Heun's method in equal steps; order 2, two forward passes in every step, the last included: v is finite there."""
    x = noise
    for s, later in pairwise(np.linspace(0, 1, steps + 1).tolist()):
        first = _velocity(denoise, x, s)
        second = _velocity(denoise, x + (later - s) * first, later)
        x = x + (later - s) / 2 * (first + second)
        yield x


def sde(flow: Flow, denoise: Denoise, noise: Tensor, steps: int, step_noise: StepNoise) -> Iterator[Tensor]:
    """Euler-Maruyama on dx = (v + w score) ds + sqrt(2 w) dW with w = 1 - s (SiT, section 2 and its public code).

    The score is (s v - x) / (1 - s), so the drift is (1 + s) v - x and stays finite. All steps but the last divide 0 to
    0.96 equally; the last one, of size `LAST_STEP`, has the drift and no noise. With more than 250 steps it shrinks in
    proportion, so that the error falls with the steps: weak order 1. One forward pass a step.
    """
    x, last = noise, min(LAST_STEP, LAST_STEP * _PUBLISHED_STEPS / steps)
    times = [*np.linspace(0, 1 - last, steps).tolist(), 1.0]
    for step, (s, later) in enumerate(pairwise(times)):
        x = x + (later - s) * ((1 + s) * _velocity(denoise, x, s) - x)
        if later < 1:
            x = x + math.sqrt(2 * (1 - s) * (later - s)) * step_noise(step)
        yield x


def _velocity(denoise: Denoise, x: Tensor, s: float) -> Tensor:
    """The predicted velocity at time s, (N, C, S, S) float32."""
    return denoise(x, torch.full((len(x),), s, device=x.device))[:, : x.shape[1]].float()


class Flow(Objective):
    """Velocity prediction on x_s = s x_0 + (1 - s) noise; the loss is its mean squared error."""

    samplers: ClassVar[Mapping[str, Sampler]] = MappingProxyType({"euler": euler, "heun": heun, "sde": sde})
    passes: ClassVar[Mapping[str, int]] = MappingProxyType({"heun": 2})
    outputs = 2
    keeps_noise = False
    spec: FlowSpec

    def draw(self, generator: np.random.Generator, count: int, low: float = 0.0, high: float = 1.0) -> NDArray[Any]:
        """Uniform s between 1 - high and 1 - low, float32."""
        return (1 - generator.uniform(low, high, size=count)).astype(np.float32)

    def draw_training(self, generator: np.random.Generator, count: int) -> NDArray[Any]:
        """As `time_distribution` says; logit-normal: 1 / (1 + e^-z), z standard normal (Esser et al. 2024, eq. 19)."""
        if self.spec.time_distribution == "uniform":
            return self.draw(generator, count)
        return (1 / (1 + np.exp(-generator.standard_normal(count)))).astype(np.float32)

    def variances(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """s^2 and (1 - s)^2."""
        s = t.double()
        return s**2, (1 - s) ** 2

    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        """The velocity."""
        return x0 - noise

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """See `Objective`."""
        s = t[:, None, None, None]
        return s * x0 + (1 - s) * noise
