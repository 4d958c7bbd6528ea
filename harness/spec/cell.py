"""What a run is: the cell, one point of a grid."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from harness.spec.data import Data
from harness.spec.diffusion import AnyDiffusion, Diffusion
from harness.spec.identity import Spec, spec_id
from harness.spec.model import AnyModel
from harness.spec.seeds import SEEDS_END, Drawn, Seeds
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
        lt=SEEDS_END,
        description="decides initialisation, order, timesteps, noise, flips and label dropout",
    )
    seeds: Seeds = Seeds()

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        self.diffusion.check_training()
        self.model.check_fits(self.data.shape, f"{'latents' if self.data.vae else 'input'} of {self.data.name}")
        return self

    @property
    def id(self) -> str:
        """First 12 hex digits of sha256 over the canonical JSON of what differs from the defaults.

        One training has one id, in whichever way its seeds are given.
        """
        if self.seeds == Seeds():
            return spec_id(self)
        seed, *_ = drawn = self.drawn
        apart = {name: own for name, own in drawn._asdict().items() if own != seed}
        return spec_id(self.model_copy(update={"seed": seed, "seeds": Seeds(**apart)}))

    @property
    def drawn(self) -> Drawn:
        """The seeds that its training uses."""
        given = self.seeds.model_dump(exclude_none=True)
        return Drawn(**{name: given.get(name, self.seed) for name in Drawn._fields})

    @property
    def tokens(self) -> int:
        """T, the length of the sequence that the network works on."""
        return self.model.tokens(self.data.shape)
