"""Classifier-free guidance (Ho & Salimans 2022), on all channels or on the first three as in the published code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from harness.errors import InputError
from harness.spec.data import InputShape

#: Maps noised images (N, C, S, S) and timesteps (N,) to what the objective predicts, (N, outputs * C, S, S).
Denoise = Callable[[Tensor, Tensor], Tensor]


class Conditional(Protocol):
    """What guidance needs of a network. Its label for "no class" is the number of classes."""

    @property
    def shape(self) -> InputShape:
        """The shape of its input."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """(N, C, S, S), (N,), (N,) -> (N, outputs * C, S, S)."""


def guided(network: Conditional, y: Tensor | None, scale: float, channels: int | None = None) -> Denoise:
    """Bind labels to a model, with classifier-free guidance (paper, section 3.1; Ho & Salimans 2021).

    The first C channels are null + scale * (conditional - null); the others, such as the variance, are the conditional
    ones.

    Args:
        network: the network.
        y: labels (N,) int64; None for a model without classes.
        scale: 1 means no guidance and costs one forward pass; any other value costs two, done as one batch of 2N.
        channels: how many channels are guided, counted from the first; None: all C. The published results guide
            the first 3 of 4.

    Raises:
        InputError: guidance of a model without classes, or `channels` out of range.
    """
    if channels is not None and not 1 <= channels <= network.shape.channels:
        raise InputError(
            f"guided channels {channels}: must be in 1..{network.shape.channels}, the channels of the model"
        )
    if scale == 1:
        return lambda x, t: network(x, t, y)
    if y is None or not network.shape.classes:
        raise InputError(f"guidance {scale}: a model without classes can only be sampled with guidance 1")
    both = torch.cat((y, torch.full_like(y, network.shape.classes)))
    lead = network.shape.channels if channels is None else channels

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        conditional, null = network(torch.cat((x, x)), torch.cat((t, t)), both).chunk(2)
        noise = null[:, :lead] + scale * (conditional[:, :lead] - null[:, :lead])
        return torch.cat((noise, conditional[:, lead:]), dim=1)

    return denoise
