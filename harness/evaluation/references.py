"""The real images that generated ones are compared with: their statistics, made once and kept.

    results/_references/<data>-<split>-<extractor>-<key>/
      reference.safetensors   moments of all images, features of some; checksummed, made anew when damaged
      card.json               what the key stands for
      floors.json             by N, the distance of N real images to the rest

The key hashes the data's fingerprint, the split, what is done to an image and the extractor's weights; so nothing of
another data set, resolution or extractor can be taken for it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.dataset import Dataset, ImageArray
from harness.data.draws import stream
from harness.errors import InputError
from harness.evaluation.adm import AdmReference
from harness.evaluation.features import Extraction, Progress
from harness.evaluation.frechet import FrechetTarget
from harness.evaluation.statistics import Moments
from harness.files import read_json, write_json
from harness.processes import HeldError, exclusive
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.training import checkpoint

#: Real images of precision and recall at most, as the ADM suite; the cost grows with the square.
NEIGHBOUR_IMAGES = 10_000

#: Feature values of a data set that are all kept; of a larger one, those of 10,000 images taken evenly.
_KEPT_VALUES = 2**25

_FORMAT = 1

_LOG = logging.getLogger(__name__)

_FLOOR_DRAWS = 5

_POLL_SECONDS = 0.5

_T = TypeVar("_T")


@dataclass(frozen=True)
class Reference:
    """Statistics and features of real images in one feature space.

    Attributes:
        label: what they are, for records.
        count: how many images are behind the statistics; of an ADM batch, as many as it shows.
        mu: (d,), and `sigma` (d, d), of all images.
        spatial: mean and covariance of the spatial features; None where the extractor has none.
        features: (kept, d), of all images or of some.
        complete: whether `features` are those of all images, in their order.
        evenly: whether precision and recall take images evenly; else the first ones.
        moments: of all images; None of an ADM batch.
        folder: where floors are kept; None: nowhere.
        draw: features of the images of these indices, in pieces; None of an ADM batch.
    """

    label: str
    count: int
    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    spatial: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    features: Tensor
    complete: bool
    evenly: bool
    moments: Moments | None = None
    folder: Path | None = None
    draw: Callable[[NDArray[np.int64]], Iterator[Tensor]] | None = field(default=None, repr=False)

    @property
    def neighbours(self) -> Tensor:
        """The features that precision and recall compare with, at most 10,000."""
        step = max(1, len(self.features) // NEIGHBOUR_IMAGES) if self.evenly else 1
        return self.features[::step][:NEIGHBOUR_IMAGES]

    @functools.cached_property
    def target(self) -> FrechetTarget:
        """What Frechet distances are measured to."""
        return FrechetTarget(self.mu, self.sigma)

    def spatial_target(self) -> FrechetTarget | None:
        """The same for sFID."""
        return None if self.spatial is None else FrechetTarget(*self.spatial)

    def floor(self, samples: int, progress: Progress = lambda done, total: None) -> float | None:
        """Frechet distance of `samples` real images, drawn at random, to all the others: what a perfect model scores.

        The mean of five draws, for one varies by a fifth; of one where every draw needs the extractor. None where the
        others would be fewer, or are unknown (ADM). Measured once where references are kept.
        """
        if self.moments is None or self.draw is None or self.count < 2 * samples or samples < 2:
            return None
        if self.folder is None:
            return self._measure_floor(samples)
        file = self.folder / "floors.json"

        def known() -> dict[str, float]:
            return read_json(file) or {}

        def measure() -> float:
            found = self._measure_floor(samples)
            write_json(file, {**known(), str(samples): found})
            return found

        return once(self.folder, "measuring a floor", lambda: known().get(str(samples)), measure, progress)

    def _measure_floor(self, samples: int) -> float:
        assert self.moments is not None
        assert self.draw is not None
        distances = []
        for number in range(_FLOOR_DRAWS if self.complete else 1):
            drawn = _moments(self.draw(np.sort(stream("floor", number).permutation(self.count)[:samples])))
            rest = self.moments - drawn
            distances.append(FrechetTarget(rest.mean, rest.covariance).terms_of(drawn).distance)
        return sum(distances) / len(distances)


def reference_of(
    dataset: Dataset,
    split: str,
    data: Data,
    extraction: Extraction,
    shared: Shared | None = None,
    progress: Progress = lambda done, total: None,
) -> Reference:
    """The reference of a split of a data set ("train", "held-out"); made by one process while others wait for it.

    Args:
        dataset: the data set.
        split: which of its images.
        data: the same, as the spec names it.
        extraction: gives the features.
        shared: where references are kept; None: this one is not.
        progress: is called while this or another process makes it; may raise to stop.

    Raises:
        InputError: fewer than two images.
    """
    images = (dataset.train if split == "train" else dataset.heldout).images
    if len(images) < 2:
        raise InputError(f"{dataset.name}/{split}: a reference needs at least two images, there are {len(images)}")
    card = {
        "format": _FORMAT,
        "data": dataset.name,
        "fingerprint": dataset.fingerprint,
        "split": split,
        "images": len(images),
        "transform": _transform(data),
        "extractor": extraction.label,
    }
    tensors, folder = _kept(
        f"{dataset.name}-{split}", card, shared, lambda: _extract(images, extraction, progress), progress
    )
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name != "features"}
    moments = Moments.from_arrays(arrays, "pool_")
    spatial = Moments.from_arrays(arrays, "spatial_") if "spatial_count" in arrays else None
    features = tensors["features"]
    complete = len(features) == len(images)

    def draw(indices: NDArray[np.int64]) -> Iterator[Tensor]:
        if complete:
            yield features[torch.from_numpy(indices)]
        else:
            for _, part in extraction.parts(images, progress=progress, chosen=indices):
                yield part.pool

    return Reference(
        label=f"{dataset.name}/{split}({len(images)})@{dataset.fingerprint[:8]}",
        count=len(images),
        mu=moments.mean,
        sigma=moments.covariance,
        spatial=None if spatial is None else (spatial.mean, spatial.covariance),
        features=features,
        complete=complete,
        evenly=extraction.evenly or not complete,
        moments=moments,
        folder=folder,
        draw=draw,
    )


def adm_reference(
    batch: AdmReference,
    extraction: Extraction,
    shared: Shared | None = None,
    progress: Progress = lambda done, total: None,
) -> Reference:
    """The reference of an ADM batch: its own statistics, and our features of its images.

    Raises:
        InputError: the file is damaged.
    """
    card = {"format": _FORMAT, "adm": batch.content_hash, "images": batch.count, "extractor": extraction.label}

    def make() -> dict[str, Tensor]:
        return {"features": torch.cat([part.pool for _, part in extraction.parts(batch.images(), progress=progress)])}

    tensors, _ = _kept("adm", card, shared, make, progress)
    mu, sigma = batch.statistics()
    return Reference(
        label=batch.label,
        count=batch.count,
        mu=mu,
        sigma=sigma,
        spatial=batch.statistics(spatial=True),
        features=tensors["features"],
        complete=False,
        evenly=True,
    )


def moments_of(images: ImageArray, extraction: Extraction, progress: Progress = lambda done, total: None) -> Moments:
    """Moments of the features of images (N, H, W, C)."""
    return _moments(part.pool for _, part in extraction.parts(images, progress=progress))


def once(folder: Path, work: str, read: Callable[[], _T | None], make: Callable[[], _T], wait: Progress) -> _T:
    """What `read` finds in the folder; one process makes it there when it is missing, the others wait.

    Args:
        folder: held while it is made.
        work: what is done, for messages.
        read: None when it is not there, or damaged.
        make: makes and writes it.
        wait: called while another process is at it; may raise to stop.
    """
    while True:
        found = read()
        if found is not None:
            return found
        try:
            with exclusive(folder, work):
                found = read()  # while this one waited, it may have been made
                return make() if found is None else found
        except HeldError:
            wait(0, 1)
            time.sleep(_POLL_SECONDS)


def _kept(
    prefix: str, card: dict[str, Any], shared: Shared | None, make: Callable[[], dict[str, Tensor]], progress: Progress
) -> tuple[dict[str, Tensor], Path | None]:
    """The tensors that `make` gives, kept under a hash of the card."""
    if shared is None:
        return make(), None
    key = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:12]
    folder = shared.reference_folder(f"{prefix}-{card['extractor'].partition('@')[0]}-{key}")
    file = folder / "reference.safetensors"

    def read() -> dict[str, Tensor] | None:
        try:
            tensors, found = checkpoint.load(file)
        except FileNotFoundError:
            return None
        except checkpoint.CorruptCheckpointError as error:
            _LOG.warning("making a damaged reference anew: %s", error)
            return None
        return tensors if found == card else None

    def write() -> dict[str, Tensor]:
        tensors = make()
        (folder / "floors.json").unlink(missing_ok=True)
        checkpoint.save(file, tensors, card)
        write_json(folder / "card.json", card)
        return tensors

    return once(folder, "making a reference", read, write, progress), folder


def _extract(images: ImageArray, extraction: Extraction, progress: Progress) -> dict[str, Tensor]:
    """Moments of all images, and the features of all or of some, in one pass."""
    pool: Moments | None = None
    spatial: Moments | None = None
    kept: list[Tensor] = []
    step, first = 1, 0
    for _, part in extraction.parts(images, progress=progress):
        if pool is None and len(images) * part.pool.shape[1] > _KEPT_VALUES:
            step = max(1, len(images) // NEIGHBOUR_IMAGES)
        pool, spatial = moments_with(pool, part.pool), moments_with(spatial, part.spatial)
        kept.append(part.pool[-first % step :: step].clone())
        first += len(part.pool)
    assert pool is not None
    features = torch.cat(kept)
    arrays = pool.arrays("pool_") | ({} if spatial is None else spatial.arrays("spatial_"))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return {**tensors, "features": features if step == 1 else features[:NEIGHBOUR_IMAGES]}


def _moments(pieces: Iterator[Tensor]) -> Moments:
    found: Moments | None = None
    for piece in pieces:
        found = moments_with(found, piece)
    assert found is not None
    return found


def moments_with(moments: Moments | None, features: Tensor | None) -> Moments | None:
    """The moments of all that they were of, and of these features (n, d), too; either may be none yet."""
    if features is None:
        return moments
    return Moments.of(features.numpy()) if moments is None else moments + Moments.of(features.numpy(), moments.shift)


def _transform(data: Data) -> str:
    """What is done to an image of the source before an extractor sees it."""
    shape = data.image_shape
    return f"{shape.size}x{shape.size}x{shape.channels} uint8" + ("" if data.resolution is None else ", centre crop")
