"""The forward process and the objective."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from harness.spec.identity import Spec
from harness.spec.kinds import Kind


class ObjectiveFacts(NamedTuple):
    """Where an objective is, and the samplers that go with it."""

    at: str
    samplers: tuple[str, ...]


OBJECTIVES = Kind("OBJECTIVES", {"ddpm-hybrid": ObjectiveFacts("harness.diffusion.ddpm:DdpmHybrid", ("ddpm", "ddim"))})


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
