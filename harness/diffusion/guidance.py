"""Classifier-free guidance (Ho & Salimans 2022), on all channels or on the first three as in the published code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from harness.errors import InputError

#: Maps noised images (N, C, S, S) and training timesteps (N,) int64 to noise and variance, (N, 2C, S, S).
Denoise = Callable[[Tensor, Tensor], Tensor]


class Shape(Protocol):
    """What a network takes: channels, and how many classes."""

    @property
    def channels(self) -> int:
        """C."""

    @property
    def classes(self) -> int:
        """Classes without the null class; 0: none."""


class Conditional(Protocol):
    """A network that can be told a class, and the null class."""

    @property
    def shape(self) -> Shape:
        """Of its input."""

    @property
    def null_class(self) -> int:
        """The label that stands for none."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """(N, C, S, S), (N,), (N,) -> (N, 2C, S, S)."""


def guided(dit: Conditional, y: Tensor | None, scale: float, channels: int | None = None) -> Denoise:
    """Bind labels to a model, with classifier-free guidance (paper, section 3.1; Ho & Salimans 2021).

    Noise is predicted as null + scale * (conditional - null), the variance is the conditional one.

    Args:
        dit: the model.
        y: labels (N,) int64; None for a model without classes.
        scale: 1 means no guidance and costs one forward pass; any other value costs two, done as one batch of 2N.
        channels: how many leading noise channels are guided, the others staying conditional; None means all. The
            published results guide the first 3 of 4.

    Raises:
        InputError: guidance of a model without classes, or `channels` out of range.
    """
    if channels is not None and not 1 <= channels <= dit.shape.channels:
        raise InputError(f"guided channels {channels}: must be in 1..{dit.shape.channels}, the channels of the model")
    if scale == 1:
        return lambda x, t: dit(x, t, y)
    if y is None or not dit.shape.classes:
        raise InputError(f"guidance {scale}: a model without classes can only be sampled with guidance 1")
    both = torch.cat((y, torch.full_like(y, dit.null_class)))
    lead = dit.shape.channels if channels is None else channels

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        conditional, null = dit(torch.cat((x, x)), torch.cat((t, t)), both).chunk(2)
        noise = null[:, :lead] + scale * (conditional[:, :lead] - null[:, :lead])
        return torch.cat((noise, conditional[:, lead:]), dim=1)

    return denoise
