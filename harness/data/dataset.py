"""What a data set is, and what it gives when it is loaded: two splits of images with labels, and a fingerprint.

Each data set has a file of its own in this folder, and a line in `harness.spec.data`. Imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from harness.errors import InputError
from harness.spec.data import Data, InputShape
from harness.spec.identity import ID_DIGITS
from harness.spec.resources import Resources

#: Is called with how many of how many files are checked.
Progress = Callable[[int, int], None]


class ImageArray(Protocol):
    """What is used of a uint8 array (N, H, W, C), so that files which are decoded on demand can stand in for it."""

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
        images: uint8 (N, H, W, C), levels 0..255; an array, or files that are decoded on demand.
        labels: int64 (N,), class of each image.
    """

    images: ImageArray
    labels: NDArray[np.int64]

    def array(self) -> NDArray[np.uint8]:
        """All images at once, in memory."""
        return np.asarray(self.images[np.arange(len(self.images))], dtype=np.uint8)


@dataclass(frozen=True)
class Dataset:
    """A loaded data set.

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


@dataclass(frozen=True)
class Source:
    """Where the files of a data set are.

    Attributes:
        folder: the only place that is searched; None: wherever the data set usually is.
        download: whether missing files may be downloaded into `folder`.
        cache: folder for what was found out about files, so that they are read once; None: it is not kept.
        progress: is called while files are checked.
    """

    folder: Path | None = None
    download: bool = False
    cache: Path | None = None
    progress: Progress | None = None

    @classmethod
    def of(cls, resources: Resources, cache: Path | None = None, progress: Progress | None = None) -> Self:
        """Where `resources` says that the files are."""
        folder = Path(resources.data_folder) if resources.data_folder else None
        return cls(folder, resources.data_download, cache, progress)


class DataSet(ABC):
    """A data set: it finds its files, loads them, and knows what they must hold.

    Attributes:
        shape: of its images, see `harness.spec.data.DataSetFacts`; this and the next two are read of a data set from a
            user's file, those of a built-in one stand in its line of `harness.spec.data`.
        extractor: name of the feature extractor that fits it.
        needs: fields of `Data` that it cannot do without.
        fingerprint: what its content must hash to; None: whatever `Data.fingerprint` says, if anything.
    """

    shape: InputShape
    extractor: str | None = None
    needs: tuple[str, ...] = ()
    fingerprint: str | None = None

    def check(self, data: Data, source: Source) -> None:  # noqa: B027  # nothing to find: it is part of a package
        """Check that `load` will find the data, from names and file headers alone.

        Raises:
            InputError: it will not; one line that says how to get the data.
        """

    def check_content(self, data: Data, source: Source) -> None:  # noqa: B027  # quick to load: every job does it
        """Check what takes long, for all jobs of a launch at once; keep what was found out in `source.cache`.

        Raises:
            InputError: the content is other than `data` says.
        """

    @abstractmethod
    def load(self, data: Data, source: Source) -> Dataset:
        """Read both splits, in the same order wherever they are; `loaded` checks what they hold.

        Raises:
            InputError: files are missing or damaged, or hold other images than this data set has.
        """

    def loaded(self, data: Data, train: Images, heldout: Images, hint: str = "") -> Dataset:
        """Both splits with their fingerprint, once it is the right one; `hint` says what else the images may be.

        Raises:
            InputError: images of another shape than `data` says, or other content.
        """
        channels, size, _ = data.image_shape
        for split in (train, heldout):
            if split.images.shape[1:] != (size, size, channels):
                raise InputError(
                    f"data.name {data.name}: images of shape {split.images.shape[1:]}, expected {size, size, channels}"
                )
        found, wanted = fingerprint_of(train, heldout), self.fingerprint or data.fingerprint
        if wanted not in (None, found):
            raise InputError(
                f"data.name {data.name}: this is other data (fingerprint {found}, expected {wanted}){hint}"
            )
        return Dataset(data.name, train, heldout, found)


def fingerprint_of(*splits: Images) -> str:
    """First 12 hex digits of sha256 over shapes and content."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(split.array().tobytes())
        digest.update(split.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:ID_DIGITS]


def require_package(module: str, package: str, key: str) -> None:
    """Refuse `key` when the package that it needs is not installed.

    Raises:
        InputError: it is missing; says how to install it.
    """
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{key} needs the package {package}: pip install {package}")
