"""What a data set is, and what loading it gives: two splits of images with labels, and a fingerprint.

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

#: Called with the number of things done so far and the number of all; may raise an error to stop the work.
Progress = Callable[[int, int], None]


class ImageArray(Protocol):
    """Images with the indexing of a uint8 array (N, H, W, C), in memory or decoded on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: Any, /) -> Any:
        """Images (n, H, W, C) for an array of n indices."""


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
        """All images at once, in memory.

        Raises:
            InputError: they are no uint8, so that their range is unknown.
        """
        images: NDArray[Any] = np.asarray(self.images[np.arange(len(self.images))])
        if images.dtype != np.uint8:
            raise InputError(f"images must be uint8 levels 0..255, got {images.dtype}")
        return images


@dataclass(frozen=True)
class LoadedData:
    """A loaded data set.

    Attributes:
        name: as in `Data.name`.
        train: what the model may learn from.
        heldout: what it never sees.
        fingerprint: first 12 hex digits of sha256 over shapes and content of both splits, before a subset is taken.
        subset: share of the images to learn from that `train` holds; None: all.
    """

    name: str
    train: Images
    heldout: Images
    fingerprint: str
    subset: float | None = None

    def split_fingerprint(self, split: str) -> str:
        """What tells the images of a split ("train", "held-out") from others: the subset has one of its own."""
        if split != "train" or self.subset is None:
            return self.fingerprint
        return hashlib.sha256(f"{self.fingerprint} {self.subset!r}".encode()).hexdigest()[:ID_DIGITS]


@dataclass(frozen=True)
class Source:
    """Where the files of a data set are.

    Attributes:
        folder: the only place to search; None: where the data set usually is.
        download: whether missing files may be downloaded into `folder`.
        cache: folder that keeps the results of file checks, so that each file is read once; None: they are not kept.
        progress: is called while files are checked.
    """

    folder: Path | None = None
    download: bool = False
    cache: Path | None = None
    progress: Progress | None = None

    @classmethod
    def of(cls, resources: Resources, cache: Path | None = None, progress: Progress | None = None) -> Self:
        """The source that `resources` names."""
        folder = Path(resources.data_folder) if resources.data_folder else None
        return cls(folder, resources.data_download, cache, progress)


class DataSet(ABC):
    """A data set: it finds its files, loads them, and knows what they must hold.

    `shape`, `extractor`, `needs`, `allows`, `images` and `heldout` are for data sets in a user's file; for a built-in
    one they are in its line of `harness.spec.data`.

    Attributes:
        shape: of its images, see `harness.spec.data.DataSetFacts`.
        extractor: name of the feature extractor that fits it.
        needs: fields of `Data` that a sweep must set.
        allows: fields of `Data` that a sweep may set.
        images: how many it has; None if that depends on the files.
        heldout: how many of them are held out.
        fingerprint: the hash that its content must have; None: that of `Data.fingerprint`, if set.
    """

    shape: InputShape
    extractor: str | None = None
    needs: tuple[str, ...] = ()
    allows: tuple[str, ...] = ()
    images: int | None = None
    heldout: int = 0
    fingerprint: str | None = None

    def check(self, data: Data, source: Source) -> None:  # noqa: B027  # a data set in a package has nothing to find
        """Check that `load` will find the data; reads only names and file headers.

        Raises:
            InputError: data is missing; one line that says how to get it.
        """

    def check_content(self, data: Data, source: Source) -> None:  # noqa: B027  # what loads quickly, every job checks
        """Check content that takes long to check, once for all jobs of a launch; keep the result in `source.cache`.

        Raises:
            InputError: the content is not what `data` says.
        """

    @abstractmethod
    def load(self, data: Data, source: Source) -> LoadedData:
        """Read both splits, always in the same order; call `loaded` to check them.

        Raises:
            InputError: files are missing or damaged, or hold images of another data set.
        """

    def loaded(self, data: Data, train: Images, heldout: Images, hint: str = "") -> LoadedData:
        """Check shape, labels and fingerprint of both splits; returns the splits with the fingerprint.

        `hint` ends the message about a wrong fingerprint: what the images may be instead.

        Raises:
            InputError: the shape or the fingerprint differs from what `data` says, or the images are no uint8, or the
                labels no numbers of classes, or a class has no image to learn from.
        """
        channels, size, classes = data.image_shape
        for split in (train, heldout):
            if split.images.shape[1:] != (size, size, channels):
                raise InputError(
                    f"data.name {data.name}: images of shape {split.images.shape[1:]}, expected {size, size, channels}"
                )
            labels = split.labels
            whole = labels.shape == (len(split.images),) and labels.dtype.kind in "iu"
            if not whole or (classes and len(labels) and not 0 <= labels.min() <= labels.max() < classes):
                raise InputError(
                    f"data.name {data.name}: labels must be whole numbers from 0 to {classes - 1}, one an image"
                )
        if empty := sorted({*range(classes)} - {*train.labels.tolist()}):
            raise InputError(
                f"data.name {data.name}: {len(empty)} of {classes} classes have no image to learn from, for example "
                f"{empty[0]}"
            )
        found, wanted = fingerprint_of(train, heldout), self.fingerprint or data.fingerprint
        if wanted not in (None, found):
            raise InputError(
                f"data.name {data.name}: this is other data (fingerprint {found}, expected {wanted}){hint}"
            )
        return LoadedData(data.name, train, heldout, found)


def fingerprint_of(*splits: Images) -> str:
    """First 12 hex digits of sha256 over shapes and content."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(split.array().tobytes())
        digest.update(split.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:ID_DIGITS]


def require_package(module: str, package: str, key: str) -> None:
    """Check that the package which `key` needs is installed.

    Raises:
        InputError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{key} needs the package {package}: pip install {package}")
