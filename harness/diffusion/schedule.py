"""The forward process: how much noise there is at which timestep (paper, section 3.1; Ho et al. 2020, sections 2-3).

Notation: beta_t the variance added in step t, alpha_bar_t = prod_{s <= t} (1 - beta_s), and
q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t). Steps count from 0 to T - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import InputError
from harness.spec.diffusion import Diffusion

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A sequence of noise levels. Arrays are float64 of shape (T,), indexed by the step of *this* schedule.

    Attributes:
        betas: variance added in each step.
        timesteps: the step of the training schedule each step stands for, (T,) int64: what the model reads.
    """

    betas: Array
    timesteps: NDArray[np.int64]
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, diffusion: Diffusion) -> Schedule:
        """Build the training schedule: betas rise linearly from `beta_start` to `beta_end` over `timesteps` steps."""
        betas = np.linspace(diffusion.beta_start, diffusion.beta_end, diffusion.timesteps, dtype=np.float64)
        return cls(betas, np.arange(diffusion.timesteps))

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.betas)

    @cached_property
    def alphas_bar(self) -> Array:
        """alpha_bar_t: the share of signal variance left after step t."""
        return np.cumprod(1 - self.betas, dtype=np.float64)

    @cached_property
    def alphas_bar_previous(self) -> Array:
        """alpha_bar_{t-1}; 1 before the first step."""
        return np.concatenate(([1.0], self.alphas_bar[:-1]))

    @cached_property
    def posterior_mean_x0(self) -> Array:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0) (Ho et al., equation 7)."""
        return self.betas * np.sqrt(self.alphas_bar_previous) / (1 - self.alphas_bar)

    @cached_property
    def posterior_mean_xt(self) -> Array:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0) (Ho et al., equation 7)."""
        return (1 - self.alphas_bar_previous) * np.sqrt(1 - self.betas) / (1 - self.alphas_bar)

    @cached_property
    def posterior_variance(self) -> Array:
        """Variance of q(x_{t-1} | x_t, x_0) (Ho et al., equation 7); 0 at the first step."""
        return self.betas * (1 - self.alphas_bar_previous) / (1 - self.alphas_bar)

    @cached_property
    def log_variance_low(self) -> Array:
        """Log of the posterior variance, its first value (log 0) replaced by the second.

        A schedule of a single step has no second; beta takes its place.
        """
        variance = self.posterior_variance.copy()
        variance[0] = variance[1] if len(variance) > 1 else self.betas[0]
        return np.log(variance)

    @cached_property
    def log_variance_high(self) -> Array:
        """Log of beta_t: with `log_variance_low`, the ends of the learned range (Nichol & Dhariwal 2021, eq. 15)."""
        return np.log(self.betas)

    def respaced(self, steps: int) -> Schedule:
        """Return the same process seen at `steps` of its T steps (Nichol & Dhariwal 2021, section 4).

        The steps lie evenly from the first to the last, round(i * (T - 1) / (steps - 1)), ties to the even step; a
        single step is the last, T - 1, where x_t is all noise. Each new beta spans the gap to the step before.

        Raises:
            InputError: `steps` is not in 1..T.
        """
        T = len(self)
        if not 1 <= steps <= T:
            raise InputError(f"sampling_steps {steps}: must be in 1..{T}, the timesteps of the training schedule")
        kept = [round(i * (T - 1) / (steps - 1)) for i in range(steps)] if steps > 1 else [T - 1]
        alphas_bar = self.alphas_bar[kept]
        betas = 1 - alphas_bar / np.concatenate(([1.0], alphas_bar[:-1]))
        return Schedule(betas, self.timesteps[kept])

    def coefficients(self, t: Tensor) -> tuple[Tensor, ...]:
        """Look up what training needs at steps t (N,) int64: four float32 tensors (N, 1, 1, 1) on t's device.

        They are sqrt(alpha_bar), sqrt(1 - alpha_bar), half the log range of the variance, and the factor that turns the
        squared error of the noise into the squared error of the posterior mean over the posterior variance. The table
        is kept on the device, so that a lookup is one gather.
        """
        table = self._tables.get(t.device)
        if table is None:
            mean_per_noise = self.posterior_mean_x0 * np.sqrt(1 / self.alphas_bar - 1)
            columns = (
                np.sqrt(self.alphas_bar),
                np.sqrt(1 - self.alphas_bar),
                (self.log_variance_high - self.log_variance_low) / 2,
                mean_per_noise**2 / np.exp(self.log_variance_low),
            )
            table = torch.from_numpy(np.stack(columns, axis=1)).float().to(t.device)
            self._tables[t.device] = table
        return table[t].view(len(t), -1, 1, 1, 1).unbind(1)

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise images x0 (N, C, S, S) to steps t (N,) with standard normal noise (N, C, S, S); returns x_t."""
        signal, sigma, *_ = self.coefficients(t)
        return torch.addcmul(signal * x0, sigma, noise)
