"""A share of the images to learn from, the same share of every class. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import ImageArray, Images, LoadedData
from harness.errors import InputError

#: Decides the order in which images enter a subset, so that a smaller one is part of every larger one.
_SEED = 0


def take(dataset: LoadedData, share: float) -> LoadedData:
    """The data set with a share of the images of every class to learn from, in their order; what is held out stays.

    Raises:
        InputError: a class would keep no image.
    """
    labels = dataset.train.labels
    chosen = _indices(labels, share)
    if lost := sorted({*labels.tolist()} - {*labels[chosen].tolist()}):
        smallest = int(np.bincount(labels)[lost].min())
        raise InputError(
            f"data.subset: {share} of {dataset.name} leaves {len(lost)} of its classes without an image, for example "
            f"class {lost[0]}; allowed: at least {0.5 / smallest:.2g}"
        )
    images = dataset.train.images
    kept: ImageArray = images[chosen] if isinstance(images, np.ndarray) else _Chosen(images, chosen)
    return replace(dataset, train=Images(kept, labels[chosen]), subset=share)


def _indices(labels: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """Which images: of every class the first ones of one random order, sorted."""
    # the legacy generator: its stream is guaranteed never to change between numpy releases
    order = np.random.RandomState(_SEED).permutation(len(labels))
    by_class = (order[labels[order] == label] for label in np.unique(labels))
    return np.sort(np.concatenate([of[: math.floor(share * len(of) + 0.5)] for of in by_class]))


class _Chosen:
    """Some of the images of an array that decodes them on demand; an `ImageArray`."""

    def __init__(self, images: ImageArray, chosen: NDArray[np.int64]) -> None:
        self._images, self._chosen = images, chosen
        self.several_threads = bool(getattr(images, "several_threads", False))

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        return (len(self._chosen), *self._images.shape[1:])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any, /) -> Any:
        """Images (n, H, W, C) for an array of n indices."""
        return self._images[self._chosen[index]]
