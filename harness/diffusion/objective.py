"""What a network learns: how images are noised, what is predicted, what the loss is, and how samples are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.diffusion.guidance import Denoise
from harness.errors import InputError
from harness.spec.diffusion import OBJECTIVES, Diffusion, DiffusionSpec

#: Maps the number of the sampling step, 0, 1, ..., to standard normal noise (N, C, S, S).
StepNoise = Callable[[int], Tensor]

#: (objective, denoise, noise x_T (N, C, S, S), number of steps, step noise) -> the images after every step; the last
#: ones are the samples.
Sampler = Callable[[Any, Denoise, Tensor, int, StepNoise], Iterator[Tensor]]


class Objective(ABC):
    """A forward process with a loss and samplers. Each subclass has its own file and a line in `OBJECTIVES`.

    Shapes: N images, C channels, S positions a side.
    """

    #: Its spec: the fields that a sweep may set.
    Spec: ClassVar[type[DiffusionSpec]] = Diffusion
    #: Its samplers by name.
    samplers: ClassVar[Mapping[str, Sampler]]
    #: Forward passes in a step of its samplers, by name; those left out make one.
    passes: ClassVar[Mapping[str, int]] = MappingProxyType({})
    #: Formats of other programs that hold weights trained for it.
    formats: ClassVar[Collection[str]] = ()
    #: Values that the network predicts for each value of its input.
    outputs: ClassVar[int] = 1
    #: Time has `spec.timesteps` steps, and sampling takes at most as many; if false, time is continuous.
    discrete: ClassVar[bool] = False
    #: Its cleanest images still hold noise. If not, a memoriser's error on images that it does not know is infinite.
    keeps_noise: ClassVar[bool] = True

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    @abstractmethod
    def draw(self, generator: np.random.Generator, count: int, low: float = 0.0, high: float = 1.0) -> NDArray[Any]:
        """Draw times (count,), as the network reads them, between `low` and `high`; 0 is clean, 1 is all noise.

        So are the times drawn at which the error is measured, bin by bin.
        """

    def draw_training(self, generator: np.random.Generator, count: int) -> NDArray[Any]:
        """Draw the times (count,) of a training step, as the network reads them; by default as `draw`."""
        return self.draw(generator, count)

    @abstractmethod
    def variances(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Variances of image and noise in x_t at times t (N,): two tensors (N,), float64, on the device of t.

        x_t = sqrt(first) * x_0 + sqrt(second) * noise.
        """

    @abstractmethod
    def target(self, x0: Tensor, noise: Tensor) -> Tensor:
        """What the first C output channels should be for clean images and noise (N, C, S, S); linear in both."""

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise images x0 (N, C, S, S) to times t (N,) with standard normal noise (N, C, S, S); returns x_t."""
        signal, sigma = (v.sqrt().float()[:, None, None, None] for v in self.variances(t))
        return torch.addcmul(signal * x0, sigma, noise)

    def error(self, output: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error (N,) of the first C channels of an output; it is measured per bin of time."""
        predicted = output[:, : x0.shape[1]].float()
        return (predicted - self.target(x0, noise)).square().flatten(1).mean(1)

    def loss(self, output: Tensor, x0: Tensor, xt: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What training minimises, per sample (N,); by default the error.

        Args:
            output: of the network, (N, outputs * C, S, S).
            x0: clean images (N, C, S, S).
            xt: `noised(x0, t, noise)`.
            t: times (N,).
            noise: the noise in xt, (N, C, S, S).
        """
        return self.error(output, x0, noise)

    @torch.no_grad()
    def sample(
        self,
        sampler: str,
        denoise: Denoise,
        noise: Tensor,
        steps: int,
        step_noise: StepNoise,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tensor:
        """Turn standard normal noise into images.

        Args:
            sampler: one of `samplers`.
            denoise: the network with its labels bound, see `guided`.
            noise: x_T, standard normal, (N, C, S, S).
            steps: number of sampling steps.
            step_noise: gives the noise of each step, for samplers that add noise.
            progress: called after every step with the number of steps done.

        Returns:
            x_0, (N, C, S, S) float32.

        Raises:
            InputError: unknown sampler.
        """
        if sampler not in self.samplers:
            raise InputError(f"sampler {sampler!r}: must be {' or '.join(self.samplers)}")
        images = self.samplers[sampler](self, denoise, noise.float(), steps, step_noise)
        for done, x0 in enumerate(images, 1):  # noqa: B007 - the last one is the result
            progress(done)
        return x0


def build(spec: DiffusionSpec) -> Objective:
    """The objective that a spec names."""
    objective: Objective = OBJECTIVES.load(spec.objective)(spec)
    return objective
