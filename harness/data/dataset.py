"""What a data set is: two splits of images with labels, and a fingerprint."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import InputError


class ImageArray(Protocol):
    """What is used of a uint8 array (N, H, W, C): so files that are decoded when asked for can stand in for it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: Any, /) -> Any:
        """One image for a number, several for an array of numbers; for a slice, again an `ImageArray`."""


@dataclass(frozen=True)
class Images:
    """Images as stored.

    Attributes:
        images: uint8 (N, H, W, C), levels 0..255; an array, or files decoded when they are asked for.
        labels: int64 (N,), class of each image.
    """

    images: ImageArray
    labels: NDArray[np.int64]

    def array(self) -> NDArray[np.uint8]:
        """All images at once, in memory."""
        return np.asarray(self.images[np.arange(len(self.images))], dtype=np.uint8)


@dataclass(frozen=True)
class Dataset:
    """A data set with its fixed split.

    Attributes:
        name: as in `Data.name`.
        train: what the model may learn from.
        heldout: what it never sees.
        fingerprint: first 12 hex digits of sha256 over shapes and content of both splits.
    """

    name: str
    train: Images
    heldout: Images
    fingerprint: str


def fingerprint_of(*splits: Images) -> str:
    """First 12 hex digits of sha256 over shapes and content."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(split.array().tobytes())
        digest.update(split.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:12]


def require_package(module: str, package: str, key: str) -> None:
    """Refuse `key` when the package that it needs is not installed.

    Raises:
        InputError: it is missing; says how to install it.
    """
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{key} needs the package {package}: pip install {package}")
