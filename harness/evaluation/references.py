"""The real images that generated ones are compared with: their statistics, computed once and kept.

    results/_references/<data>-<split>-<extractor>-<key>/
      reference.safetensors   moments of all images, features of some; has a checksum, and is made anew if damaged
      card.json               what the key is a hash of
      floors.json             N -> distance of N real images to the others

The key is a hash of the data's fingerprint, the split, the transform of the images and the extractor's weights, so a
reference of another data set, resolution or extractor is never used by mistake.
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

from harness.data.dataset import ImageArray, LoadedData, Progress
from harness.data.draws import stream
from harness.errors import InputError, NonFiniteError, non_finite_in
from harness.evaluation import adm
from harness.evaluation.adm import AdmReference
from harness.evaluation.features import Extraction
from harness.evaluation.frechet import FrechetTarget
from harness.evaluation.statistics import Blocks, Moments
from harness.evaluation.watch import UNWATCHED, Watch
from harness.files import read_json, write_json
from harness.processes import HeldError, exclusive
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.training import checkpoint

#: Most real images for precision and recall, as in the ADM suite; the cost grows with the square.
NEIGHBOUR_IMAGES = 10_000

#: Up to this many feature values all are kept; of a larger data set, those of 10,000 images taken evenly.
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
        label: its name in records.
        count: number of images behind the statistics; for an ADM batch, of the images in the file.
        mu: (d,), the mean, and `sigma` (d, d), the covariance, of all images.
        spatial: mean and covariance of the spatial features; None if the extractor has none.
        features: (kept, d), of all or some images.
        complete: whether `features` holds all images, in their order.
        evenly: whether precision and recall take images at even distances; False: the first ones.
        moments: of all images; None for an ADM batch.
        folder: where floors are kept; None: nowhere.
        draw: gives the features of the images with these indices, in pieces; None for an ADM batch.
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
        """The features for precision and recall, of at most 10,000 images."""
        step = max(1, len(self.features) // NEIGHBOUR_IMAGES) if self.evenly else 1
        return self.features[::step][:NEIGHBOUR_IMAGES]

    @functools.cached_property
    def target(self) -> FrechetTarget:
        """The Gaussian that Frechet distances are measured to."""
        return FrechetTarget(self.mu, self.sigma)

    def floor(self, samples: int, watch: Watch = UNWATCHED) -> float | None:
        """Frechet distance of `samples` real images, drawn at random, to all the others: what a perfect model scores.

        It is the mean of five draws, since one draw varies by a fifth; if the extractor must run for it, a single draw.
        None if the others would be fewer than `samples`, or are unknown (ADM). The result is kept in `folder`.
        """
        moments, draw = self.moments, self.draw
        if moments is None or draw is None or self.count < 2 * samples or samples < 2:
            return None

        def known(folder: Path) -> dict[str, float]:
            return read_json(folder / "floors.json") or {}

        def measure() -> float:
            distances: list[float] = []
            draws, progress = _FLOOR_DRAWS if self.complete else 1, watch.progress("floor")
            for number in range(draws):
                progress(number, draws)
                chosen = np.sort(stream("floor", number).permutation(self.count)[:samples])
                drawn = _moments(draw(chosen), samples)
                with watch.at_once():
                    rest = moments - drawn
                    distances.append(FrechetTarget(rest.mean, rest.covariance).terms_of(drawn).distance)
            return sum(distances) / len(distances)

        def write(folder: Path, found: float) -> None:
            write_json(folder / "floors.json", {**known(folder), str(samples): found})

        return once(self.folder, "measuring a floor", lambda at: known(at).get(str(samples)), measure, write, watch)


def reference_of(
    dataset: LoadedData,
    split: str,
    data: Data,
    extraction: Extraction,
    shared: Shared | None = None,
    watch: Watch = UNWATCHED,
) -> Reference:
    """The reference of a split of a data set ("train", "held-out"); one process makes it while others wait.

    Args:
        dataset: the data set.
        split: which of its images.
        data: the same, as the spec names it.
        extraction: gives the features.
        shared: where references are kept; None: this one is not kept.
        watch: of this process, while it or another one makes the reference.

    Raises:
        InputError: the split has fewer than two images.
    """
    images = (dataset.train if split == "train" else dataset.heldout).images
    if len(images) < 2:
        raise InputError(f"{dataset.name}/{split}: a reference needs at least two images, there are {len(images)}")
    card = {
        "format": _FORMAT,
        "data": dataset.name,
        "fingerprint": dataset.split_fingerprint(split),
        "split": split,
        "images": len(images),
        "transform": _transform(data),
        "extractor": extraction.label,
    }

    def make() -> dict[str, Tensor]:
        with non_finite_in(f"{dataset.name}, {split} images"):
            return _extract(images, extraction, watch.progress(f"{split} reference"))

    tensors, folder = _kept(f"{dataset.name}-{split}", card, shared, make, watch)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name != "features"}
    moments = Moments.from_arrays(arrays, "pool_")
    spatial = Moments.from_arrays(arrays, "spatial_") if "spatial_count" in arrays else None
    features = tensors["features"]
    complete = len(features) == len(images)

    def draw(indices: NDArray[np.int64]) -> Iterator[Tensor]:
        if complete:
            yield features[torch.from_numpy(indices)]
        else:
            for _, part in extraction.parts(images, progress=watch.progress("floor"), chosen=indices):
                yield part.pool

    return Reference(
        label=f"{dataset.name}/{split}({len(images)})@{dataset.split_fingerprint(split)[:8]}",
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
    watch: Watch = UNWATCHED,
) -> Reference:
    """The reference of an ADM batch: the statistics in its file, and the features of its images.

    Raises:
        InputError: the file is damaged.
    """
    card = {"format": _FORMAT, "adm": batch.content_hash, "images": batch.count, "extractor": extraction.label}

    def make() -> dict[str, Tensor]:
        with non_finite_in(f"{batch.path}, {adm.IMAGES}"):
            parts = [part.pool for _, part in extraction.parts(batch.images(), progress=watch.progress("reference"))]
        return {"features": torch.cat(parts)}

    tensors, _ = _kept("adm", card, shared, make, watch)
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
    return _moments((part.pool for _, part in extraction.parts(images, progress=progress)), len(images))


def once(
    folder: Path | None,
    work: str,
    read: Callable[[Path], _T | None],
    make: Callable[[], _T],
    write: Callable[[Path, _T], object],
    watch: Watch,
) -> _T:
    """A result that is kept in a folder: it is read, or one process makes and writes it while others wait.

    Args:
        folder: where the result is kept; locked while it is made. None: the result is not kept.
        work: the work, for messages.
        read: reads the result; None when it is missing or damaged.
        make: makes the result.
        write: writes it.
        watch: is told while another process makes it.
    """
    if folder is None:
        return make()
    while True:
        if (found := read(folder)) is not None:
            return found
        try:
            with exclusive(folder, work):
                if (found := read(folder)) is None:  # another process may have written it meanwhile
                    found = make()
                    write(folder, found)
                return found
        except HeldError as error:
            watch.waits(f"waits for another cell: {error.holder or work}")
            time.sleep(_POLL_SECONDS)


def _kept(
    prefix: str, card: dict[str, Any], shared: Shared | None, make: Callable[[], dict[str, Tensor]], watch: Watch
) -> tuple[dict[str, Tensor], Path | None]:
    """The tensors that `make` gives, and the folder where they are kept; a hash of the card is in its name."""
    key = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()[:12]
    name = f"{prefix}-{card['extractor'].partition('@')[0]}-{key}"

    def read(folder: Path) -> dict[str, Tensor] | None:
        try:
            tensors, found = checkpoint.load(folder / "reference.safetensors")
            with non_finite_in(str(folder)):
                checkpoint.require_finite(tensors)
        except FileNotFoundError:
            return None
        except (checkpoint.CorruptCheckpointError, NonFiniteError) as error:
            _LOG.warning("making a damaged reference anew: %s", error)
            return None
        return tensors if found == card else None

    def write(folder: Path, tensors: dict[str, Tensor]) -> None:
        (folder / "floors.json").unlink(missing_ok=True)
        checkpoint.save(folder / "reference.safetensors", tensors, card)
        write_json(folder / "card.json", card)

    folder = shared.reference_folder(name) if shared else None
    return once(folder, "making a reference", read, make, write, watch), folder


def _extract(images: ImageArray, extraction: Extraction, progress: Progress) -> dict[str, Tensor]:
    """Moments of all images and features of all or some, in one pass."""
    pool, spatial = Blocks([len(images)]), Blocks([len(images)])
    kept: list[Tensor] = []
    step = 1
    for _, part in extraction.parts(images, progress=progress):
        if len(images) * part.pool.shape[1] > _KEPT_VALUES:
            step = max(1, len(images) // NEIGHBOUR_IMAGES)
        kept.append(part.pool[-pool.count % step :: step].clone())
        pool.add(part.pool.numpy())
        if part.spatial is not None:
            spatial.add(part.spatial.numpy())
    features = torch.cat(kept)
    arrays = pool.whole.arrays("pool_") | (spatial.whole.arrays("spatial_") if spatial.count else {})
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return {**tensors, "features": features if step == 1 else features[:NEIGHBOUR_IMAGES]}


def _moments(pieces: Iterator[Tensor], count: int) -> Moments:
    blocks = Blocks([count])
    for piece in pieces:
        blocks.add(piece.numpy())
    return blocks.whole


def _transform(data: Data) -> str:
    """How images are transformed before an extractor sees them; part of a reference's key."""
    shape = data.image_shape
    return f"{shape.size}x{shape.size}x{shape.channels} uint8" + ("" if data.resolution is None else ", centre crop")
