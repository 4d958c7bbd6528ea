"""The seeds of a training: one for each thing that chance decides."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from harness.spec.identity import Spec

#: Seeds are below it.
SEEDS_END = 2**31


class Seeds(Spec):
    """Seeds in the place of the top level's `seed`, each for what it alone decides."""

    initialisation: int | None = Field(
        default=None, ge=0, lt=SEEDS_END, description="of the initial weights; by default `seed`"
    )
    order: int | None = Field(
        default=None,
        ge=0,
        lt=SEEDS_END,
        description="of which images a step has, their flips and the dropout of their labels; by default `seed`",
    )
    noise: int | None = Field(
        default=None,
        ge=0,
        lt=SEEDS_END,
        description="of timesteps, noise, and the sampling of latents; by default `seed`",
    )


class Drawn(NamedTuple):
    """The seeds that a training uses, each filled in."""

    initialisation: int
    order: int
    noise: int
