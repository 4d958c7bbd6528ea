"""The samples of an evaluation on the disk, in parts; evaluations with the same samples share them."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.errors import CellFailedError
from harness.files import put_new
from harness.runs.layout import meta_of
from harness.runs.state import Run
from harness.spec.evaluation import Evaluation
from harness.training import checkpoint


class Origin(NamedTuple):
    """What samples are made from: two parts with the same origin and the same first index hold the same samples."""

    cell: str  # its id
    evaluation: Evaluation
    weights: int | None  # checksum of the weights file; None: not known

    def meta(self) -> dict[str, Any]:
        """What a part says of it."""
        return {"cell": self.cell, "sampling": self.evaluation.sampling_id, "weights": self.weights}

    def fits(self, meta: Mapping[str, Any]) -> bool:
        """Whether a part of this evaluation's own folder does not deny it; older ones say less."""
        wanted = {**self.meta(), "evaluation": self.evaluation.id}
        # a part of version 0.1.0 may hold values that are not finite, as black or white
        return bool(meta.get("finite")) and all(meta.get(name, value) == value for name, value in wanted.items())

    def is_of(self, meta: Mapping[str, Any]) -> bool:
        """Whether a part of another evaluation says that it has this origin."""
        return self.weights is not None and self.fits({"sampling": None, **meta})


def compiled_before(run: Run, key: str, origin: Origin) -> bool | None:
    """Whether samples of this origin that are kept were made by a compiled network; None: there are none."""
    heads = (meta for path in run.samples_parts(key).values() if origin.fits(meta := meta_of(path)))
    shared = (
        meta
        for other in _others(run, key)
        for path in run.samples_parts(other).values()
        if origin.is_of(meta := meta_of(path))
    )
    return next((bool(meta.get("compiled")) for meta in itertools.chain(heads, shared)), None)


def _others(run: Run, key: str) -> list[str]:
    return [other for other in run.samples_keys() if other != key]


class Parts:
    """The parts of an evaluation.

    Args:
        run: where they are kept.
        key: name of their folder.
        origin: of their samples; what says that it has another one is made again.
        writing: what is written in, see `harness.training.hooks.Hooks`.
        compiled: whether the network is compiled; parts of the other kind are made again.
    """

    def __init__(
        self,
        run: Run,
        key: str,
        origin: Origin,
        writing: Callable[[], AbstractContextManager[None]],
        *,
        compiled: bool,
    ) -> None:
        self._run, self._key, self._origin, self._writing, self._compiled = run, key, origin, writing, compiled
        self._others = _others(run, key)

    def find(self, first: int, count: int) -> NDArray[np.int64] | None:
        """The labels (n,) of the part that begins with sample `first`, if it is whole, with `count` samples.

        A part of another evaluation with the same samples becomes a part of this one, too, by a hard link.
        """
        own = self._run.samples_part(self._key, first)
        if (labels := self._labels(own, count, self._origin.fits)) is not None:
            return labels
        for other in self._others:
            path = self._run.samples_part(other, first)
            if (labels := self._labels(path, count, self._origin.is_of)) is not None:
                with self._writing():
                    self._run.remove_features(self._key)  # they are of other samples
                    own.parent.mkdir(parents=True, exist_ok=True)
                    own.unlink(missing_ok=True)
                    put_new(path, own)
                return labels
        return None

    def write(self, first: int, part: dict[str, torch.Tensor]) -> None:
        """Write a part: `images` (n, H, W, channels) uint8 and `labels` (n,) int64."""
        meta = {"first": first, "finite": True, "compiled": self._compiled, **self._origin.meta()}
        with self._writing():
            checkpoint.save(self._run.samples_part(self._key, first), part, meta)

    def _labels(self, path: Path, count: int, fits: Callable[[Mapping[str, Any]], bool]) -> NDArray[np.int64] | None:
        meta = meta_of(path)
        if fits(meta) and meta.get("compiled", False) == self._compiled:
            with contextlib.suppress(FileNotFoundError, checkpoint.CorruptCheckpointError):
                part = checkpoint.load(path).tensors
                if len(part["images"]) == count:
                    found: NDArray[np.int64] = part["labels"].numpy()
                    return found
        return None


class Samples:
    """The generated images of an evaluation, an `ImageArray`; only one part at a time is in memory."""

    def __init__(self, run: Run, key: str, count: int, batch: int) -> None:
        self._run, self._key, self._count, self._batch = run, key, count, batch
        self._part = functools.lru_cache(maxsize=1)(self._read)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, channels)."""
        return (self._count, *self._part(0).shape[1:])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any, /) -> Any:
        """Images (n, H, W, channels) for an array of n indices.

        Raises:
            CellFailedError: a part is missing or damaged.
        """
        wanted = np.asarray(index, dtype=np.int64)
        images = np.empty((len(wanted), *self.shape[1:]), dtype=np.uint8)
        parts = wanted // self._batch
        for part in np.unique(parts):
            here = parts == part
            images[here] = self._part(int(part))[wanted[here] % self._batch]
        return images

    def _read(self, number: int) -> NDArray[np.uint8]:
        path = self._run.samples_part(self._key, number * self._batch)
        try:
            part, _ = checkpoint.load(path)
        except (FileNotFoundError, checkpoint.CorruptCheckpointError) as error:
            raise CellFailedError(f"{path}: missing or damaged ({error}); launch again with --retry") from None
        images: NDArray[np.uint8] = part["images"].numpy()
        return images
