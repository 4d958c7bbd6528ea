"""The forward process and the objective."""

from __future__ import annotations

from collections.abc import Collection
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


class Diffusion(Spec):
    """The forward process and the objective (paper, section 3.1; Nichol & Dhariwal 2021 for the hybrid loss)."""

    objective: Annotated[str, OBJECTIVES] = Field(
        default="ddpm-hybrid",
        description="loss; ddpm-hybrid: noise MSE plus the variational term that trains the learned variance",
    )
    schedule: Literal["linear"] = Field(
        default="linear", description="how beta, the variance of the added noise, goes from beta_start to beta_end"
    )
    timesteps: int = Field(default=1000, gt=1, description="steps T of the forward process")
    beta_start: float = Field(default=1e-4, gt=0, lt=1, description="beta at the first timestep")
    beta_end: float = Field(default=2e-2, gt=0, lt=1, description="beta at the last timestep")

    @property
    def outputs(self) -> int:
        """Values that the network predicts for each value of its input."""
        return OBJECTIVES.facts(self.objective).outputs

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
