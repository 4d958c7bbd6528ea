"""Multiply-adds of an autoencoder (diffusers' `AutoencoderKL`), one image. Imports no torch, and needs no weights.

Convolutions and attention are counted, as `harness.model.cost` counts a network.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

from harness.spec.data import Data, TrainedVae

#: Channels by halving of the autoencoders of Latent Diffusion (Rombach et al. 2022), which pretrained ones are taken
#: to be like: their own configuration is not known before they are here.
_PRETRAINED = (128, 256, 512, 512)


class VaeCost(NamedTuple):
    """Multiply-adds of encoding one image, and of decoding one latent."""

    encode: int
    decode: int


class _Shape(NamedTuple):
    """Channels by halving, residual blocks of a level, and whether the middle has attention."""

    channels: tuple[int, ...]
    blocks: int
    attention: bool


def vae_cost(data: Data) -> VaeCost:
    """The cost of the autoencoder that `data` names; 0 for pixels."""
    if data.vae is None:
        return VaeCost(0, 0)
    shape = _shape(data)
    image, latent = data.image_shape, data.vae.channels
    sizes = [image.size >> level for level in range(len(shape.channels))]
    levels = list(zip(sizes, (shape.channels[0], *shape.channels), shape.channels, strict=False))
    last, small = shape.channels[-1], sizes[-1]
    middle = 2 * _block(small, last, last) + (_attention(small, last) if shape.attention else 0)
    encode = _conv(sizes[0], image.channels, shape.channels[0]) + middle + _conv(small, last, 2 * latent)
    encode += small**2 * (2 * latent) ** 2
    encode += sum(_level(size, before, after, shape.blocks) for size, before, after in levels)
    encode += sum(_conv(size, channels, channels) for size, channels in zip(sizes[1:], shape.channels, strict=False))
    decode = small**2 * latent**2 + _conv(small, latent, last) + middle
    decode += _conv(sizes[0], shape.channels[0], image.channels)
    upwards = [(last, last), *pairwise(reversed(shape.channels))]
    decode += sum(
        _level(size, before, after, shape.blocks + 1)
        for size, (before, after) in zip(reversed(sizes), upwards, strict=True)
    )
    decode += sum(_conv(size, channels, channels) for size, channels in zip(sizes, shape.channels[1:], strict=False))
    return VaeCost(encode, decode)


def _shape(data: Data) -> _Shape:
    assert data.vae is not None
    levels = int(math.log2(data.vae.factor)) + 1
    if isinstance(data.vae, TrainedVae):
        return _Shape(tuple(data.vae.width * 2**level for level in range(levels)), 1, attention=False)
    channels = (*_PRETRAINED, *[_PRETRAINED[-1]] * levels)[:levels]
    return _Shape(channels, 2, attention=True)


def _conv(size: int, before: int, after: int) -> int:
    """A convolution of 3 x 3 at this size of its result."""
    return 9 * size**2 * before * after


def _block(size: int, before: int, after: int) -> int:
    """A residual block: two convolutions, and one of 1 x 1 beside them where the channels change."""
    beside = size**2 * before * after if before != after else 0
    return _conv(size, before, after) + _conv(size, after, after) + beside


def _level(size: int, before: int, after: int, blocks: int) -> int:
    return _block(size, before, after) + (blocks - 1) * _block(size, after, after)


def _attention(size: int, channels: int) -> int:
    """Four projections, and the two products of a head over all positions."""
    return 4 * size**2 * channels**2 + 2 * size**4 * channels
