"""The forward process: how much noise there is at which timestep (paper, section 3.1; Ho et al. 2020, sections 2-3).

Notation: beta_t the variance added in step t, alpha_bar_t = prod_{s <= t} (1 - beta_s), and
q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, 1 - alpha_bar_t). Steps count from 0 to T - 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import InputError
from harness.spec.diffusion import Diffusion, respaced_steps

Array = NDArray[np.float64]


class Schedule:
    """A sequence of noise levels. Arrays are float64 of shape (T,), indexed by the step of *this* schedule.

    Attributes:
        betas: variance added in each step.
        timesteps: (T,) int64, each step's number in the training schedule: what the network reads.
        alphas_bar: alpha_bar_t: the share of signal variance left after step t.
        alphas_bar_previous: alpha_bar_{t-1}; 1 before the first step.
        posterior_mean_x0: weight of x_0 in the mean of q(x_{t-1} | x_t, x_0) (Ho et al., equation 7).
        posterior_mean_xt: weight of x_t in the same mean.
        posterior_variance: variance of q(x_{t-1} | x_t, x_0) (Ho et al., equation 7); 0 at the first step.
        log_variance_low: log of the posterior variance, its first value (log 0) replaced by the second; a schedule of a
            single step has no second, and beta takes its place.
        log_variance_high: log of beta_t; with `log_variance_low`, the ends of the learned range (Nichol & Dhariwal
            2021, eq. 15).
    """

    def __init__(self, betas: Array, timesteps: NDArray[np.int64]) -> None:
        self.betas, self.timesteps = betas, timesteps
        self.alphas_bar = np.cumprod(1 - betas, dtype=np.float64)
        self.alphas_bar_previous = np.concatenate(([1.0], self.alphas_bar[:-1]))
        self.posterior_mean_x0 = betas * np.sqrt(self.alphas_bar_previous) / (1 - self.alphas_bar)
        self.posterior_mean_xt = (1 - self.alphas_bar_previous) * np.sqrt(1 - betas) / (1 - self.alphas_bar)
        self.posterior_variance = betas * (1 - self.alphas_bar_previous) / (1 - self.alphas_bar)
        first = self.posterior_variance[1] if len(betas) > 1 else betas[0]
        self.log_variance_low: Array = np.log(np.concatenate(([first], self.posterior_variance[1:])))
        self.log_variance_high: Array = np.log(betas)
        self._tables: dict[torch.device, Tensor] = {}

    @classmethod
    def of(cls, diffusion: Diffusion) -> Schedule:
        """Build the training schedule: betas rise linearly from `beta_start` to `beta_end` over `timesteps` steps."""
        betas = np.linspace(diffusion.beta_start, diffusion.beta_end, diffusion.timesteps, dtype=np.float64)
        return cls(betas, np.arange(diffusion.timesteps))

    def __len__(self) -> int:
        """T, the number of steps."""
        return len(self.betas)

    def respaced(self, steps: int) -> Schedule:
        """Return the same process at `steps` of its T steps (Nichol & Dhariwal 2021, section 4).

        Which steps, `respaced_steps` says. Each new beta spans the gap to the step before.

        Raises:
            InputError: `steps` is not in 1..T.
        """
        T = len(self)
        if not 1 <= steps <= T:
            raise InputError(f"sampling_steps {steps}: must be in 1..{T}, the timesteps of the training schedule")
        kept = respaced_steps(T, steps)
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
