"""Latents, encoded once: the moments of every image and of its mirror image, in memory-mapped shards. Imports no torch.

    <folder>/manifest.json                  what was encoded by what, and the checksum of every shard
             train-00000.npy ...            float32 (n, 2, 2, C, S, S): image; plain, mirrored; mean, standard deviation
             train-labels.npy               int64 (N,)
             heldout-00000.npy ...

The autoencoder maps an image to a normal distribution. At every step a latent is *sampled* from it
(`LatentSplit.moments`, then mean + std * noise) and multiplied by the scaling, which gives about unit variance. An
interrupted encoding continues after its last whole shard and ends with the same bytes.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data import autoencoders
from harness.data.dataset import ImageArray, LoadedData, Progress
from harness.data.finite import require_finite
from harness.data.read_ahead import read_ahead
from harness.data.sources import data_set
from harness.errors import InputError, NonFiniteError, non_finite_in
from harness.files import read_json, write_atomic, write_json
from harness.runs.study import Shared
from harness.spec.data import Data, TrainedVae

#: Images per shard; an interrupted encoding loses at most one shard.
SHARD = 1024

#: Images that the autoencoder encodes at once; fixed, because it changes the last bits.
BATCH = 32

#: File beside the manifest: how well the autoencoder reconstructs images (see `harness.evaluation.reconstruction`).
RECONSTRUCTION = "reconstruction.json"

#: What that file holds at least, and the manifest.
MEASURED = ("samples", "psnr", "distances")
_MANIFEST = ("format", "data", "fingerprint", "weights", "splits", "complete")

_FORMAT = 1

#: Maps uint8 images (n, H, W, channels) to float32 moments (n, 2, C, S, S): mean and standard deviation.
Encoder = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class LatentSplit:
    """The moments of one split; each shard is checked against its checksum when it is first read."""

    def __init__(self, folder: Path, name: str, entry: dict[str, Any]) -> None:
        self._folder, self._shards, self._size = folder, entry["shards"], int(entry["shard_size"])
        labels = folder / f"{name}-labels.npy"
        _require_checksum(labels, entry["labels_crc32"])
        self.labels: NDArray[np.int64] = np.load(labels, allow_pickle=False)
        self._open = functools.cache(self._shard)

    def __len__(self) -> int:
        return len(self.labels)

    def _shard(self, number: int) -> NDArray[np.float32]:
        shard = self._shards[number]
        path = self._folder / shard["file"]
        _require_checksum(path, shard["crc32"])
        array: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array

    def moments(
        self, indices: NDArray[np.int64], mirror: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of these images or their mirror images, each (n, C, S, S).

        Raises:
            InputError: a shard is missing or damaged.
        """
        wanted = zip(*np.divmod(indices, self._size), mirror, strict=True)
        both = np.stack([self._open(int(number))[row, int(flip)] for number, row, flip in wanted])  # (n, 2, C, S, S)
        return both[:, 0], both[:, 1]


@dataclass(frozen=True)
class Latents:
    """The latents of a data set.

    Attributes:
        train: what the model may learn from.
        heldout: what it never sees.
        scaling: sampled latents are multiplied by this, and divided by it before they are decoded.
        weights: hash of the autoencoder that made them.
    """

    train: LatentSplit
    heldout: LatentSplit
    scaling: float
    weights: str


def check_encoded(data: Data, shared: Shared, sweep: str) -> None:
    """Check that some of the images are encoded, wherever the autoencoder is.

    Raises:
        InputError: none is.
    """
    if _found(data, shared)[1] is None:
        raise InputError(f"data.vae: the images are not encoded yet; first: dit-harness encode {sweep}")


def is_encoded(data: Data, shared: Shared) -> bool:
    """Whether all images are encoded, by the manifest alone."""
    manifest = _found(data, shared)[1]
    return manifest is not None and bool(manifest["complete"])


def check_ready(data: Data, shared: Shared, sweep: str) -> None:
    """Check that training on these latents can start; reads the manifest and the sizes of the files.

    Raises:
        InputError: something is missing; the message names the command to run first.
    """
    vae = autoencoders.find(data, shared, sweep)
    check_encoded(data, shared, sweep)
    folder, manifest = _found(data, shared)
    assert manifest is not None
    again = f"dit-harness encode {sweep}"
    _require_same(folder, manifest, data, autoencoders.weights_hash(vae), None, sweep)
    if not manifest["complete"]:
        done = sum(shard["count"] for split in manifest["splits"].values() for shard in split["shards"])
        raise InputError(f"data.vae: only {done} images are encoded; go on with: {again}")
    scaling(data, manifest)
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path = folder / shard["file"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise InputError(f"{path}: missing or cut off; make it again: {again}")


def open_latents(data: Data, shared: Shared) -> Latents:
    """The latents of `data`, as `encode` wrote them.

    Raises:
        InputError: they are missing or incomplete, or a file is damaged.
    """
    folder, manifest = _found(data, shared)
    if manifest is None or not manifest["complete"] or not _of_autoencoder(manifest, data):
        raise InputError(f"{folder}: no whole set of latents; first: dit-harness encode")
    train, heldout = (LatentSplit(folder, name, manifest["splits"][name]) for name in ("train", "heldout"))
    return Latents(train, heldout, scaling(data, manifest), manifest["weights"])


def reconstruction_distance(data: Data, shared: Shared, metrics: dict[str, Any]) -> float | None:
    """Frechet distance of decoded held-out images to their originals in the extractor of `metrics`, if measured."""
    found = read_json(shared.latents_folder(autoencoders.folder_name(data)) / RECONSTRUCTION) or {}
    distance: float | None = found.get("distances", {}).get(metrics["extractor"], {}).get("held-out")
    return distance


def scaling(data: Data, manifest: dict[str, Any]) -> float:
    """The scaling that `data` asks for: fixed, or 1 / standard deviation of the sampled training latents.

    Raises:
        InputError: the manifest holds none above 0.
    """
    assert data.vae is not None
    fixed = "measured" if isinstance(data.vae, TrainedVae) else data.vae.scaling
    if fixed != "measured":
        return float(fixed)
    measured = float(manifest["measured_scaling"])
    if not (math.isfinite(measured) and measured > 0):
        raise InputError(f"the measured scaling of the latents is {measured}; allowed: a finite number above 0")
    return measured


def encode(
    data: Data,
    dataset: LoadedData,
    encoder: Encoder,
    shared: Shared,
    *,
    weights: str,
    conditions: dict[str, Any],
    sweep: str,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Encode both splits, except shards that are there and whole. The caller holds the folder.

    Args:
        data: names the images and the autoencoder.
        dataset: the images.
        encoder: gives the moments of a batch of images.
        shared: the folder of all latents.
        weights: hash of the autoencoder's weights.
        conditions: what decides the last bits, for the record.
        sweep: the sweep, for the commands that error messages name.
        progress: is called with the number of images done so far, and of all.

    Returns:
        The manifest.

    Raises:
        InputError: the folder holds latents of other data or of another autoencoder.
        NonFiniteError: the autoencoder gives a value that is not finite, or latents without variance.
        OSError: the disk is full; finished shards stay, and the next call continues after them.
    """
    folder, manifest = _found(data, shared)
    if manifest is None:
        manifest = {
            "format": _FORMAT,
            "data": autoencoders.describe(data),
            "fingerprint": dataset.fingerprint,
            "weights": weights,
            "layout": "float32: image; as it is, mirrored; mean, standard deviation; channel; row; column",
            "conditions": conditions,
            "splits": {},
            "measured_scaling": None,
            "complete": False,
        }
    _require_same(folder, manifest, data, weights, dataset.fingerprint, sweep)
    splits = {"train": dataset.train, "heldout": dataset.heldout}
    total, done = sum(len(split.labels) for split in splits.values()), 0

    def report(more: int) -> None:
        progress(done + more, total)

    manifest["complete"] = False
    for name, split in splits.items():
        entry = manifest["splits"].setdefault(name, {"count": len(split.images), "shard_size": SHARD})
        kept = {s["file"]: s for s in entry.get("shards", []) if _is_whole(folder / s["file"], s["crc32"])}
        entry["shards"] = []
        size = int(entry["shard_size"])
        entry["labels_crc32"] = _save_array(folder / f"{name}-labels.npy", split.labels.astype("<i8"))
        for first in range(0, len(split.images), size):
            count = min(size, len(split.images) - first)
            file = f"{name}-{first // size:05d}.npy"
            if file in kept:
                entry["shards"].append(kept[file])
                report(count)
            else:
                with non_finite_in(f"{data.name}, {name} images"):
                    moments = _shard(split.images, first, count, encoder, report)
                entry["shards"].append(_write_shard(folder / file, moments))
                write_json(folder / "manifest.json", manifest)
            done += count
    manifest |= {"measured_scaling": _measured_scaling(manifest), "complete": True}
    write_json(folder / "manifest.json", manifest)
    return manifest


def is_complete(data: Data, shared: Shared, weights: str) -> bool:
    """Whether everything is encoded by this autoencoder and every shard matches its checksum."""
    folder, manifest = _found(data, shared)
    if manifest is None or not manifest["complete"] or manifest["weights"] != weights:
        return False
    return all(
        _is_whole(folder / f"{name}-labels.npy", split["labels_crc32"])
        and all(_is_whole(folder / shard["file"], shard["crc32"]) for shard in split["shards"])
        for name, split in manifest["splits"].items()
    )


def _shard(
    images: ImageArray, first: int, count: int, encoder: Encoder, progress: Callable[[int], None]
) -> NDArray[np.float32]:
    parts = []
    batches = [np.arange(start, min(start + BATCH, first + count)) for start in range(first, first + count, BATCH)]
    for chosen, batch in zip(batches, read_ahead(images, batches), strict=True):
        start = int(chosen[0])
        mirrored = np.ascontiguousarray(batch[:, :, ::-1])
        parts.append(np.stack([encoder(batch), encoder(mirrored)], axis=1))  # (n, 2, 2, C, S, S)
        require_finite(np.isfinite(parts[-1]), "latents of the autoencoder", start)
        progress(start + len(batch) - first)
    return np.concatenate(parts)


def _write_shard(path: Path, moments: NDArray[np.float32]) -> dict[str, Any]:
    checksum = _save_array(path, moments.astype("<f4"))
    plain = moments[:, 0].astype(np.float64)  # mirror images do not count for the measured scaling
    mean, std = plain[:, 0], plain[:, 1]
    return {
        "file": path.name,
        "count": len(moments),
        "bytes": path.stat().st_size,
        "crc32": checksum,
        "sums": [mean.size, float(mean.sum()), float((mean**2 + std**2).sum())],
    }


def _measured_scaling(manifest: dict[str, Any]) -> float:
    """1 / standard deviation of the sampled latents, exact: that of the mixture of all their normal distributions."""
    n, first, second = (
        math.fsum(values) for values in zip(*(s["sums"] for s in manifest["splits"]["train"]["shards"]), strict=True)
    )
    variance = second / n - (first / n) ** 2
    if not (math.isfinite(variance) and variance > 0):
        raise NonFiniteError(f"the latents have the variance {variance}: no scaling brings it to 1")
    return 1 / math.sqrt(variance)


def _save_array(path: Path, array: NDArray[Any]) -> str:
    """Write the file atomically; returns its checksum."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # numpy would append .npy to a name
            np.save(file, array, allow_pickle=False)

    write_atomic(path, write)
    return _checksum(path)


def _checksum(path: Path) -> str:
    return f"{zlib.crc32(np.memmap(path, np.uint8, 'r').data):08x}"


def _is_whole(path: Path, checksum: str) -> bool:
    return path.is_file() and path.stat().st_size > 0 and _checksum(path) == checksum


def _require_checksum(path: Path, checksum: str) -> None:
    if not _is_whole(path, checksum):
        raise InputError(f"{path}: missing or damaged (its checksum differs); make it again: dit-harness encode")


def _found(data: Data, shared: Shared) -> tuple[Path, dict[str, Any] | None]:
    """The folder of the latents of `data`, and its manifest, if there is one."""
    folder = shared.latents_folder(autoencoders.folder_name(data))
    return folder, read_json(folder / "manifest.json", _MANIFEST)


def _of_autoencoder(manifest: dict[str, Any], data: Data) -> bool:
    """Whether a manifest names the autoencoder of `data`."""
    return bool(manifest["data"].get("vae") == autoencoders.describe(data)["vae"])


def _require_same(
    folder: Path, manifest: dict[str, Any], data: Data, weights: str, fingerprint: str | None, sweep: str
) -> None:
    """Check that the manifest is of the sweep's data and autoencoder.

    Raises:
        InputError: it is not.
    """
    again = f"remove the folder, then: dit-harness encode {sweep}"
    if manifest.get("format") != _FORMAT:
        raise InputError(f"{folder}: latents of another version of the harness; {again}")
    if manifest["weights"] != weights or not _of_autoencoder(manifest, data):
        raise InputError(
            f"{folder}: encoded by another VAE (weights {manifest['weights']}, the sweep's are {weights}); {again}"
        )
    wanted = fingerprint or data.fingerprint or data_set(data).fingerprint
    if wanted is not None and manifest["fingerprint"] != wanted:
        raise InputError(
            f"{folder}: encoded from other data (fingerprint {manifest['fingerprint']}, wanted {wanted}); {again}"
        )
