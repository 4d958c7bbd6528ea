"""The forward process and the objective."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from harness.spec.identity import Spec
from harness.spec.kinds import Kind


class ObjectiveFacts(NamedTuple):
    """Where the code of an objective is, and what must be known about it before torch is imported.

    Attributes:
        at: its class, a `harness.diffusion.objective.Objective`.
        samplers: names of its samplers.
        outputs: values that the network predicts for each value of its input.
        discrete: time has `timesteps` steps, and sampling takes at most as many; else time is continuous.
    """

    at: str
    samplers: Collection[str]
    outputs: int = 1
    discrete: bool = False


OBJECTIVES = Kind(
    "OBJECTIVES",
    {
        "ddpm-hybrid": ObjectiveFacts("harness.diffusion.ddpm:DdpmHybrid", ("ddpm", "ddim"), outputs=2, discrete=True),
    },
)


#: Bins of time of the measured error, equally wide from clean to noise.
LOSS_BINS = 8

#: Most timesteps: the network reads a step as a float32, which tells this many apart with room to spare.
_MOST_TIMESTEPS = 1_000_000

#: Nearest to 0 and 1 that a beta, or what a sampling step leaves of the signal, may be: float64 still has four digits
#: of its distance from 1.
_MARGIN = 1e-12

#: Least share of signal variance at the last step: samplers divide by its square root, in float32.
_LEAST_SIGNAL = 1e-60


def respaced_steps(timesteps: int, steps: int) -> list[int]:
    """The timesteps that a sampler of `steps` steps visits, ascending: evenly from the first to the last.

    The stride (T - 1) / (steps - 1) is added up in floats and rounded, ties to the even step, as in the published code:
    its rounding errors decide some ties, so i * stride gives other steps. A single step is the last, all noise.
    """
    if steps == 1:
        return [timesteps - 1]
    stride = (timesteps - 1) / (steps - 1)
    return [round(position) for position in accumulate([0.0] + [stride] * (steps - 1))]


@lru_cache(maxsize=4)
def _log_signal(timesteps: int, beta_start: float, beta_end: float) -> tuple[float, ...]:
    """Log of alpha_bar, the share of signal variance left, after every step of the linear schedule."""
    slope = (beta_end - beta_start) / (timesteps - 1)
    return tuple(accumulate(math.log1p(-beta_start - slope * t) for t in range(timesteps)))


class Diffusion(Spec):
    """The forward process and the objective (paper, section 3.1; Nichol & Dhariwal 2021 for the hybrid loss)."""

    objective: Annotated[str, OBJECTIVES] = Field(
        default="ddpm-hybrid",
        description="loss; ddpm-hybrid: noise MSE plus the variational term that trains the learned variance",
    )
    schedule: Literal["linear"] = Field(
        default="linear", description="how beta, the variance of the added noise, goes from beta_start to beta_end"
    )
    timesteps: int = Field(default=1000, gt=1, description="steps T of the forward process, at least 8")
    beta_start: float = Field(default=1e-4, gt=0, lt=1, description="beta at the first timestep")
    beta_end: float = Field(default=2e-2, gt=0, lt=1, description="beta at the last timestep")

    @property
    def outputs(self) -> int:
        """Values that the network predicts for each value of its input."""
        return OBJECTIVES.facts(self.objective).outputs

    def check_training(self) -> None:
        """Check what training and its measured losses need of the steps of time.

        Raises:
            ValueError: there are too few or too many, or the betas leave the range of floats; one line that begins with
                the field and says what is allowed.
        """
        if not OBJECTIVES.facts(self.objective).discrete:
            return
        if not LOSS_BINS <= self.timesteps <= _MOST_TIMESTEPS:
            raise ValueError(
                f"diffusion.timesteps {self.timesteps}: the loss is measured in {LOSS_BINS} bins of them; "
                f"allowed: {LOSS_BINS} to {_MOST_TIMESTEPS}"
            )
        for key in ("beta_start", "beta_end"):
            beta = getattr(self, key)
            if not _MARGIN <= beta <= 1 - _MARGIN:
                raise ValueError(f"diffusion.{key} {beta} is too near to 0 or 1; allowed: {_MARGIN} to 1 - {_MARGIN}")
        left = self._log_signal[-1]
        if left < math.log(_LEAST_SIGNAL):
            raise ValueError(
                f"diffusion.timesteps {self.timesteps} with betas from {self.beta_start} to {self.beta_end} leave "
                f"1e{left / math.log(10):.0f} of the signal at the last step, which samplers cannot divide by; "
                f"allowed: at least {_LEAST_SIGNAL}, by fewer timesteps or smaller betas"
            )

    @property
    def _log_signal(self) -> tuple[float, ...]:
        return _log_signal(self.timesteps, self.beta_start, self.beta_end)

    def check_sampling(self, sampler: str, steps: int) -> None:
        """Check that the objective has this sampler and allows this number of sampling steps.

        Raises:
            ValueError: it does not; one line that begins with the field and says what is allowed.
        """
        facts = OBJECTIVES.facts(self.objective)
        if facts.discrete and steps > self.timesteps:
            raise ValueError(f"sampling_steps: {steps} exceeds diffusion.timesteps; allowed: 1 to {self.timesteps}")
        if sampler not in facts.samplers:
            raise ValueError(
                f"sampler: unknown sampler {sampler!r} for objective {self.objective}; "
                f"allowed: {', '.join(facts.samplers)}"
            )
        if facts.discrete:
            visited = [0.0, *(self._log_signal[step] for step in respaced_steps(self.timesteps, steps))]
            left = min(after - before for before, after in pairwise(visited))
            if left < math.log(_MARGIN):
                raise ValueError(
                    f"sampling_steps: {steps} are too few for diffusion.timesteps {self.timesteps} with betas up to "
                    f"{max(self.beta_start, self.beta_end)}: one leaves 1e{left / math.log(10):.0f} of the signal; "
                    f"allowed: at least {_MARGIN}, by more steps or smaller betas"
                )
