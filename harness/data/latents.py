"""Latents, encoded once: the moments of every image and of its mirror image, in memory-mapped shards. Imports no torch.

    <folder>/manifest.json                  what was encoded by what, and the checksum of every shard
             train-00000.npy ...            float32 (n, 2, 2, C, S, S): image; plain, mirrored; mean, standard deviation
             train-labels.npy               int64 (N,)
             heldout-00000.npy ...

The autoencoder maps an image to a normal distribution. At every step a latent is *sampled* from it
(`LatentSplit.moments`, then mean + std * noise) and multiplied by the scaling, which gives about unit variance. How the
shards are made is in `harness.data.shards`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data import autoencoders
from harness.data.sources import data_set
from harness.data.verified import Verified, is_whole
from harness.errors import InputError
from harness.files import file_clock, read_json
from harness.processes import is_alive
from harness.runs.attempts import HEARTBEAT_SECONDS
from harness.runs.study import Shared
from harness.spec.data import Data, TrainedVae

#: File of the encoder that is at work (see `Shared.encoding_folder`): its process, and how far it is.
PROGRESS = "progress.json"
_PROGRESS_KEYS = ("process", "stage", "done", "total")

#: File beside it: the shards that a launch has read and found whole (see `harness.data.verified`).
VERIFIED = "verified.json"

#: What that file of the autoencoder holds at least, and the manifest.
MEASURED = ("samples", "psnr", "distances")
_MANIFEST = ("format", "data", "fingerprint", "weights", "splits", "complete")

#: Version of the manifest.
FORMAT = 1


class LatentSplit:
    """The moments of one split; each shard is checked when it is first read, unless a launch has done so."""

    def __init__(self, folder: Path, name: str, entry: dict[str, Any], verified: Verified) -> None:
        self._folder, self._shards, self._size = folder, entry["shards"], int(entry["shard_size"])
        self._verified = verified
        labels = f"{name}-labels.npy"
        verified.require(labels, entry["labels_crc32"])
        self.labels: NDArray[np.int64] = np.load(folder / labels, allow_pickle=False)
        self._open = functools.cache(self._shard)

    def __len__(self) -> int:
        return len(self.labels)

    def _shard(self, number: int) -> NDArray[np.float32]:
        shard = self._shards[number]
        self._verified.require(shard["file"], shard["crc32"])
        array: NDArray[np.float32] = np.load(self._folder / shard["file"], mmap_mode="r", allow_pickle=False)
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
    if find_manifest(data, shared)[1] is None:
        _require_idle(data, shared)
        raise InputError(f"data.vae: the images are not encoded yet; first: dit-harness encode {sweep}")


def _require_idle(data: Data, shared: Shared) -> None:
    """Say so when the images are being encoded.

    Raises:
        InputError: they are.
    """
    at = read_json(shared.encoding_folder(data.encoding_name) / PROGRESS, _PROGRESS_KEYS)
    if at is not None and being_encoded(data, shared):
        how_far = f" ({at['stage']} {at['done']}/{at['total']})" if at["total"] else ""
        raise InputError(f"data.vae: the images are being encoded just now{how_far}; then the same command again")


def being_encoded(data: Data, shared: Shared) -> bool:
    """Whether a process is at work on these latents, as far as can be seen from here."""
    path = shared.encoding_folder(data.encoding_name) / PROGRESS
    at = read_json(path, _PROGRESS_KEYS)
    if at is None or (alive := is_alive(at["process"])) is False:
        return False
    try:
        return alive is True or file_clock(path.parent) - path.stat().st_mtime < HEARTBEAT_SECONDS
    except FileNotFoundError:
        return False


def is_encoded(data: Data, shared: Shared) -> bool:
    """Whether all images are encoded, by the manifest alone."""
    manifest = find_manifest(data, shared)[1]
    return manifest is not None and bool(manifest["complete"])


def check_ready(data: Data, shared: Shared, sweep: str) -> None:
    """Check that training on these latents can start; reads the manifest and the sizes of the files.

    Raises:
        InputError: something is missing; the message names the command to run first.
    """
    vae = autoencoders.find(data, shared, sweep)
    check_encoded(data, shared, sweep)
    folder, manifest = find_manifest(data, shared)
    assert manifest is not None
    again = f"dit-harness encode {sweep}"
    require_same(folder, manifest, data, autoencoders.weights_hash(vae), None, sweep)
    if not manifest["complete"]:
        _require_idle(data, shared)
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
    folder, manifest = find_manifest(data, shared)
    if manifest is None or not manifest["complete"] or not _of_autoencoder(manifest, data):
        raise InputError(f"{folder}: no whole set of latents; first: dit-harness encode")
    verified = _verified(data, shared, folder)
    train, heldout = (LatentSplit(folder, name, manifest["splits"][name], verified) for name in ("train", "heldout"))
    return Latents(train, heldout, scaling(data, manifest), manifest["weights"])


def reconstruction_distance(data: Data, shared: Shared, metrics: dict[str, Any]) -> float | None:
    """Frechet distance of decoded held-out images to their originals in the extractor of `metrics`, if measured."""
    found = read_json(shared.reconstruction_file(data.encoding_name)) or {}
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


def is_complete(data: Data, shared: Shared, weights: str) -> bool:
    """Whether everything is encoded by this autoencoder and every shard matches its checksum."""
    folder, manifest = find_manifest(data, shared)
    if manifest is None or not manifest["complete"] or manifest["weights"] != weights:
        return False
    return all(
        is_whole(folder / f"{name}-labels.npy", split["labels_crc32"])
        and all(is_whole(folder / shard["file"], shard["crc32"]) for shard in split["shards"])
        for name, split in manifest["splits"].items()
    )


def verify(data: Data, shared: Shared, say: Callable[[str], None]) -> None:
    """Check every shard against its checksum, and record that, so that jobs need not read it for that again.

    Args:
        data: names the images and the autoencoder; they are encoded.
        shared: the folder of latents.
        say: takes a line, when there is much to read.

    Raises:
        InputError: a shard is missing or damaged.
    """
    folder, manifest = find_manifest(data, shared)
    assert manifest is not None
    shards = (shard for split in manifest["splits"].values() for shard in split["shards"])
    _verified(data, shared, folder).verify({shard["file"]: shard["crc32"] for shard in shards}, say)


def _verified(data: Data, shared: Shared, folder: Path) -> Verified:
    return Verified(folder, shared.encoding_folder(data.encoding_name) / VERIFIED)


def find_manifest(data: Data, shared: Shared) -> tuple[Path, dict[str, Any] | None]:
    """The folder of the latents of `data`, and its manifest, if there is one."""
    folder = shared.latents_folder(data.encoding_name)
    return folder, read_json(folder / "manifest.json", _MANIFEST)


def _of_autoencoder(manifest: dict[str, Any], data: Data) -> bool:
    """Whether a manifest names the autoencoder of `data`."""
    return bool(manifest["data"].get("vae") == autoencoders.describe(data)["vae"])


def require_same(
    folder: Path, manifest: dict[str, Any], data: Data, weights: str, fingerprint: str | None, sweep: str
) -> None:
    """Check that the manifest is of the sweep's data and autoencoder.

    Raises:
        InputError: it is not.
    """
    again = f"remove the folder, then: dit-harness encode {sweep}"
    if manifest.get("format") != FORMAT:
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
