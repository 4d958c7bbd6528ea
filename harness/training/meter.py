"""The training loss, summed where the network computes, and read only now and then, for reading waits for a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Reading(NamedTuple):
    """What a meter says.

    Attributes:
        total: sum of the losses of `steps` steps.
        steps: how many steps were summed.
        odd_step: the first step whose loss is not finite; 0: none.
        odd_loss: its loss.
        odd_images: how many of its images have a loss that is not finite.
    """

    total: float
    steps: int
    odd_step: int
    odd_loss: float
    odd_images: int

    @property
    def mean(self) -> float | None:
        """Mean loss; None before the first step."""
        return self.total / self.steps if self.steps else None


class Meter:
    """Sums the losses of one rank, and keeps the first step whose loss is not finite."""

    def __init__(self, device: str) -> None:
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._odd = torch.zeros(3, dtype=torch.float64, device=device)  # step, loss, images
        self.steps = 0

    def add(self, step: int, loss: Tensor, each: Tensor) -> None:
        """Add a step (the first is 1): its loss, a scalar, and the losses of its images, (n,)."""
        loss = loss.double()
        now = torch.stack([torch.full_like(loss, step), loss, (~each.isfinite()).sum().double()])
        self._odd = torch.where((self._odd[0] == 0) & ~loss.isfinite(), now, self._odd)
        self._total += loss
        self.steps += 1

    def read(self) -> Reading:
        """What was summed so far; waits for the device."""
        total, step, loss, images = torch.cat([self._total[None], self._odd]).tolist()
        return Reading(total, self.steps, int(step), loss, int(images))

    def set(self, total: float, steps: int) -> None:
        """Go on from this sum of so many steps."""
        self._total.fill_(total)
        self.steps = steps


def together(readings: Sequence[Reading]) -> Reading:
    """What the global batch's loss is, from the readings of all ranks at the same step; each has an equal share."""
    odd = min((reading.odd_step for reading in readings if reading.odd_step), default=0)
    of_step = [reading for reading in readings if odd and reading.odd_step == odd]
    return Reading(
        total=math.fsum(reading.total for reading in readings) / len(readings),
        steps=readings[0].steps,
        odd_step=odd,
        odd_loss=of_step[0].odd_loss if of_step else 0.0,
        odd_images=sum(reading.odd_images for reading in of_step),
    )
