"""The specs: what a run *is* (Cell), how it is measured (Evaluation) and what it runs on (Resources).

Only `Cell` and `Evaluation` have ids. An id hashes the fields that differ from the schema's defaults, so a field
added later with a default leaves every older id unchanged. Therefore: a default never changes; a new behaviour is a
new value.
This module imports no torch.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from harness.spec.data import Data
from harness.spec.diffusion import Diffusion
from harness.spec.identity import Spec, spec_id
from harness.spec.model import Model
from harness.spec.training import Training


class Cell(Spec):
    """One point of a grid: everything that decides the trained weights, and nothing else."""

    model: Model
    diffusion: Diffusion = Diffusion()
    data: Data = Data()
    training: Training = Training()
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**31,
        description="decides initialisation, order, timesteps, noise, flips and label dropout",
    )

    @model_validator(mode="after")
    def _patches_tile_the_input(self) -> Self:
        size, patch = self.data.shape.size, self.model.patch_size
        if size % patch:
            allowed = ", ".join(str(p) for p in range(1, size + 1) if size % p == 0)
            raise ValueError(
                f"model.patch_size {patch} does not divide the {size}x{size} "
                f"{'latents' if self.data.vae else 'input'} of {self.data.name}; "
                f"allowed: {allowed}"
            )
        return self

    @property
    def id(self) -> str:
        """First 12 hex digits of sha256 over the canonical JSON of what differs from the defaults."""
        return spec_id(self)

    @property
    def tokens(self) -> int:
        """T, the length of the patch sequence."""
        return (self.data.shape.size // self.model.patch_size) ** 2
