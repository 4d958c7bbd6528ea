"""The shards of latents while they are made, by one process or by several. Imports no torch.

Every process makes shards of its own; the first one writes the manifest, which lists whole shards only. An interrupted
encoding continues after them, and it ends with the same bytes however many processes there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from harness.data import autoencoders
from harness.data.dataset import LoadedData
from harness.data.finite import require_finite
from harness.data.latents import FORMAT, find_manifest, require_same
from harness.data.read_ahead import read_ahead
from harness.data.verified import checksum_of, is_whole
from harness.errors import NonFiniteError, non_finite_in
from harness.files import write_atomic, write_json
from harness.runs.study import Shared
from harness.spec.data import Data

#: Images per shard; an interrupted encoding loses at most one shard of each process.
SHARD = 1024

#: Images that the autoencoder encodes at once; fixed, because it changes the last bits.
BATCH = 32

#: Maps uint8 images (n, H, W, channels) to float32 moments (n, 2, C, S, S): mean and standard deviation.
Encoder = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Shard:
    """The latents of the images `first`, `first + 1`, ... of a split, `count` of them, in one file."""

    split: str
    file: str
    first: int
    count: int


class Entry(TypedDict):
    """A whole shard, as the manifest lists it; `sums` are those of `measured_scaling`."""

    file: str
    count: int
    bytes: int
    crc32: str
    sums: list[float]


class Shards:
    """The latents of a data set, and which of their shards are whole.

    One process calls `begin`, `record` and `finish`, and holds the folder; `make` is for any number of them.
    """

    def __init__(
        self, data: Data, dataset: LoadedData, shared: Shared, *, weights: str, conditions: dict[str, Any], sweep: str
    ) -> None:
        """Args:
        data: names the images and the autoencoder.
        dataset: the images.
        shared: the folder of all latents.
        weights: hash of the autoencoder's weights.
        conditions: what decides the last bits, for the record.
        sweep: the sweep, for the commands that error messages name.
        """
        self._data, self._shared, self._sweep = data, shared, sweep
        self._splits = {"train": dataset.train, "heldout": dataset.heldout}
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "data": autoencoders.describe(data),
            "fingerprint": dataset.fingerprint,
            "weights": weights,
            "layout": "float32: image; as it is, mirrored; mean, standard deviation; channel; row; column",
            "conditions": conditions,
            "splits": {},
            "measured_scaling": None,
            "complete": False,
        }
        self._whole: dict[str, Entry] = {}
        #: The folder of these latents.
        self.folder = shared.latents_folder(data.encoding_name)
        #: Images of both splits.
        self.total = sum(len(split.labels) for split in self._splits.values())

    def begin(self) -> list[Shard]:
        """Write the labels; returns the shards that are not there, or not whole, in their order.

        Raises:
            InputError: the folder holds latents of other data or of another autoencoder.
        """
        _, manifest = find_manifest(self._data, self._shared)
        new = self._manifest
        manifest = manifest or new
        require_same(self.folder, manifest, self._data, new["weights"], new["fingerprint"], self._sweep)
        self._manifest = {**manifest, "complete": False}
        listed = manifest["splits"]
        self._manifest["splits"] = {
            name: {
                "count": len(split.images),
                "shard_size": int(listed.get(name, {}).get("shard_size", SHARD)),
                "shards": [],
                "labels_crc32": _save_array(self.folder / f"{name}-labels.npy", split.labels.astype("<i8")),
            }
            for name, split in self._splits.items()
        }
        for split in listed.values():
            kept: list[Entry] = split.get("shards", [])
            self._whole |= {s["file"]: s for s in kept if is_whole(self.folder / s["file"], s["crc32"])}
        self._list_shards()
        return [shard for name in self._splits for shard in self._shards(name) if shard.file not in self._whole]

    def make(
        self,
        shard: Shard,
        encoder: Encoder,
        progress: Callable[[int], None] = lambda done: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Entry | None:
        """Encode a shard and write its file; None if `should_stop` was true between two batches.

        Args:
            shard: one of those that `begin` has returned.
            encoder: gives the moments of a batch of images.
            progress: is called with the number of the shard's images done so far.
            should_stop: is asked before every batch.

        Raises:
            NonFiniteError: the autoencoder gives a value that is not finite.
            OSError: the disk is full.
        """
        parts, end = [], shard.first + shard.count
        images = self._splits[shard.split].images
        batches = [np.arange(start, min(start + BATCH, end)) for start in range(shard.first, end, BATCH)]
        with non_finite_in(f"{self._data.name}, {shard.split} images"):
            for chosen, batch in zip(batches, read_ahead(images, batches), strict=True):
                if should_stop():
                    return None
                mirrored = np.ascontiguousarray(batch[:, :, ::-1])
                parts.append(np.stack([encoder(batch), encoder(mirrored)], axis=1))  # (n, 2, 2, C, S, S)
                require_finite(np.isfinite(parts[-1]), "latents of the autoencoder", int(chosen[0]))
                progress(int(chosen[-1]) + 1 - shard.first)
        return _write_shard(self.folder / shard.file, np.concatenate(parts))

    def record(self, entries: Iterable[Entry]) -> None:
        """List shards that are whole now in the manifest."""
        self._whole |= {entry["file"]: entry for entry in entries}
        self._list_shards()
        write_json(self.folder / "manifest.json", self._manifest)

    def finish(self) -> dict[str, Any]:
        """Write the manifest of all shards; returns it.

        Raises:
            NonFiniteError: the latents have no variance.
        """
        self._manifest |= {"measured_scaling": _measured_scaling(self._manifest), "complete": True}
        write_json(self.folder / "manifest.json", self._manifest)
        return self._manifest

    def _shards(self, split: str) -> list[Shard]:
        """All shards of a split, in order."""
        entry = self._manifest["splits"][split]
        count, size = entry["count"], entry["shard_size"]
        return [
            Shard(split, f"{split}-{first // size:05d}.npy", first, min(size, count - first))
            for first in range(0, count, size)
        ]

    def _list_shards(self) -> None:
        """Put the whole shards into the manifest, in order."""
        for name, entry in self._manifest["splits"].items():
            entry["shards"] = [self._whole[s.file] for s in self._shards(name) if s.file in self._whole]


def _write_shard(path: Path, moments: NDArray[np.float32]) -> Entry:
    found = _save_array(path, moments.astype("<f4"))
    plain = moments[:, 0].astype(np.float64)  # mirror images do not count for the measured scaling
    mean, std = plain[:, 0], plain[:, 1]
    return {
        "file": path.name,
        "count": len(moments),
        "bytes": path.stat().st_size,
        "crc32": found,
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
    return checksum_of(path)
