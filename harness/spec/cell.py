"""What a run is: the cell, one point of a grid."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from harness.spec.data import Data
from harness.spec.diffusion import AnyDiffusion, Diffusion
from harness.spec.identity import Spec, spec_id
from harness.spec.model import AnyModel
from harness.spec.training import Training


class Cell(Spec):
    """One point of a grid: everything that decides the trained weights, and nothing else."""

    model: AnyModel
    diffusion: AnyDiffusion = Diffusion()
    data: Data = Data()
    training: Training = Training()
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="decides initialisation, order, timesteps, noise, flips and label dropout",
    )

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        self.diffusion.check_training()
        self.model.check_fits(self.data.shape, f"{'latents' if self.data.vae else 'input'} of {self.data.name}")
        return self

    @property
    def id(self) -> str:
        """First 12 hex digits of sha256 over the canonical JSON of what differs from the defaults."""
        return spec_id(self)

    @property
    def tokens(self) -> int:
        """T, the length of the sequence that the network works on."""
        return self.model.tokens(self.data.shape)
