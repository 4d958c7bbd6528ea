"""What the model learns from: pixels and latents behind one interface."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.dataset import Images, LoadedData
from harness.data.draws import Normals
from harness.data.latents import Latents, LatentSplit
from harness.data.noise import noise_rows
from harness.data.pixels import to_model

#: All of a batch.
ALL = slice(None)

#: A split of latents of no more bytes is kept on a GPU; then only noise is made at each step.
_KEPT_BYTES = 1 << 30

Indices = NDArray[np.int64]

Mirror = NDArray[np.bool_]


def upload(array: NDArray[Any], device: str) -> Tensor:
    """An array as a tensor on the device; on the way to a GPU the caller does not wait for the copy."""
    tensor = torch.from_numpy(array)
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Batches(Protocol):
    """One split on a device."""

    labels: Tensor  # (N,) int64, on the device

    def x0(self, indices: Indices, mirror: Mirror | None, posterior: Normals | None, part: slice = ALL) -> Tensor:
        """The model's clean input from these images or their mirror images, float32 (n, C, S, S) on the device.

        Args:
            indices: (N,), which images.
            mirror: (N,), which of them mirrored; None: none.
            posterior: the noise of sampled latents, a row a place in the batch; None where pixels are asked.
            part: which n of the N to return; an image does not depend on the part.
        """


class Splits(NamedTuple):
    """Both splits, ready to train and to measure on."""

    train: Batches
    heldout: Batches


def batches(source: LoadedData | Latents, device: str) -> Splits:
    """A data set or its latents, ready for the model."""
    if isinstance(source, Latents):
        latents = [LatentBatches(split, source.scaling, device) for split in (source.train, source.heldout)]
        for split in latents if device != "cpu" else ():
            if split.bytes <= _KEPT_BYTES:
                split.keep()
        return Splits(*latents)
    return Splits(PixelBatches(source.train, device), PixelBatches(source.heldout, device))


class PixelBatches:
    """Images, uint8 to [-1, 1]."""

    def __init__(self, split: Images, device: str) -> None:
        self.labels = torch.from_numpy(split.labels).to(device)
        self._device = device
        # an array is kept on the device; files are decoded when needed
        images: Any = split.images
        self._images = torch.from_numpy(images).to(device) if isinstance(images, np.ndarray) else images

    def x0(self, indices: Indices, mirror: Mirror | None, posterior: Normals | None, part: slice = ALL) -> Tensor:
        """See `Batches`."""
        chosen = indices[part]
        if isinstance(self._images, Tensor):
            x = to_model(self._images[upload(chosen, self._device)])  # (n, C, S, S)
        else:
            x = to_model(upload(self._images[chosen], self._device))
        if mirror is None:
            return x
        return torch.where(upload(mirror[part], self._device)[:, None, None, None], x.flip(-1), x)


class LatentBatches:
    """Latents, sampled from the autoencoder's distribution and scaled."""

    def __init__(self, split: LatentSplit, scaling: float, device: str) -> None:
        self.labels = torch.from_numpy(split.labels).to(device)
        self._split, self._scaling, self._device = split, scaling, device
        self._kept: Tensor | None = None  # (N, 2, 2, C, S, S): mirrored or not, mean and deviation

    @property
    def bytes(self) -> int:
        """The size of all moments."""
        if not len(self._split):
            return 0
        mean, _ = self._moments(np.zeros(1, np.int64), np.zeros(1, np.bool_))
        return len(self._split) * 4 * mean.nbytes

    def keep(self) -> None:
        """Read all moments, and keep them on the device."""
        every = np.arange(len(self._split))
        ways = [torch.stack(self._moments(every, np.full(len(every), way)), dim=1) for way in (False, True)]
        self._kept = torch.stack(ways, dim=1)

    def _moments(self, indices: Indices, mirror: Mirror) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each (n, C, S, S), on the device."""
        if self._kept is None:
            mean, std = (upload(moment, self._device) for moment in self._split.moments(indices, mirror))
        else:
            ways = upload(mirror.astype(np.int64), self._device)
            mean, std = self._kept[upload(indices, self._device), ways].unbind(1)
        return mean, std

    def x0(self, indices: Indices, mirror: Mirror | None, posterior: Normals | None, part: slice = ALL) -> Tensor:
        """See `Batches`."""
        assert posterior is not None
        flipped = np.zeros(len(indices), bool) if mirror is None else mirror
        mean, std = self._moments(indices[part], flipped[part])
        first, last, _ = part.indices(len(indices))
        noise = noise_rows(posterior, slice(first, last), mean.shape[1:], self._device)
        return noise.mul_(std).add_(mean).mul_(self._scaling)
