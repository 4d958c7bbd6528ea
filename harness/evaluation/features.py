"""Features of images, part by part, under conditions that fix their last bits.

A part is a few hundred images. Parts are independent: ranks share them, and their features can be kept in files, so
that interrupted scoring continues after the last whole file.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.dataset import ImageArray, Progress
from harness.data.pixels import channels_first, require_finite_values
from harness.errors import CellFailedError, InputError, NonFiniteError, non_finite_in
from harness.evaluation import extractors
from harness.evaluation.extractors import Features, Network, exact_convolutions
from harness.spec.evaluation import ExtractorChoice
from harness.training import checkpoint
from harness.training.ranks import Ranks, error_line

#: Images per part; fixed, because the last bits of Inception's features may depend on the batch.
PART = 500

#: What the first rank sends to the others when scoring is done.
_DONE = "done"


class Extraction:
    """A feature extractor on a device; its network is built at the first use.

    Attributes:
        label: name@hash, see `extractors.extractor_label`.
        doubts: why its features may not be worth much, one line each.
        evenly: see `extractors.Extractor`.
        slow: see `extractors.Extractor`.
    """

    def __init__(
        self,
        name: ExtractorChoice,
        device: str = "cpu",
        weights: str | None = None,
        ranks: Ranks | None = None,
        writing: Callable[[], AbstractContextManager[None]] = nullcontext,
        at_once: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Find the weights.

        Args:
            name: the extractor, as in `Evaluation.extractor`.
            device: where it runs.
            weights: the file of its weights, see `extractors.weights_of`.
            ranks: the ranks that share the parts; all but the first call `assist`. None: this process alone.
            writing: what features are written in, see `harness.training.hooks.Hooks`.
            at_once: what they are computed in, see there.

        Raises:
            InputError: no such extractor or device, or its weights are not there.
        """
        self._device, self._weights, self._ranks = device, weights, ranks or Ranks()
        self._writing, self._at_once = writing, at_once
        self._extractor = extractors.find(name)
        self.evenly, self.slow = self._extractor.evenly, self._extractor.slow
        self.label = extractors.extractor_label(name, weights)
        self.doubts = self._extractor.doubts(weights)
        with _on(device):
            pass

    @functools.cached_property
    def _network(self) -> Network:
        with torch.random.fork_rng(devices=[]), _on(self._device):  # building a network draws random weights first
            return self._extractor.build(self._device, self._weights)

    def features_of(self, images: NDArray[np.uint8]) -> Features:
        """Features, on the CPU, of uint8 images (n, H, W, C).

        Raises:
            NonFiniteError: the network gives values that are not finite.
            StoppedError: the job was asked to stop.
        """
        batch = self._extractor.batch
        pieces = []
        with torch.no_grad(), _on(self._device), exact_convolutions(), self._at_once():
            for start in range(0, len(images), batch):
                x = torch.from_numpy(channels_first(images[start : start + batch]))
                found = self._network(x.to(self._device))
                pieces.append(Features(found) if isinstance(found, Tensor) else found)
        features = Features(*map(_joined, *((piece.pool, piece.logits, piece.spatial) for piece in pieces)))
        with non_finite_in(f"{self.label}: the weights give features that are not finite"):
            for name, values in vars(features).items():
                if values is not None:
                    require_finite_values(values, f"images' {name} features")
        return features

    def parts(
        self,
        images: ImageArray,
        cache: Callable[[int], Path] | None = None,
        progress: Progress = lambda done, total: None,
        chosen: NDArray[np.int64] | None = None,
    ) -> Iterator[tuple[NDArray[np.uint8], Features]]:
        """Images and features of consecutive parts; at most one part per rank is in memory.

        Args:
            images: uint8 (N, H, W, C).
            cache: gives the file for the features of the part that begins at an index; kept features are read from it.
            progress: called after every part.
            chosen: (n,), indices of the images to use; None: all.
        """
        chosen = np.arange(len(images)) if chosen is None else chosen
        starts = list(range(0, len(chosen), PART))
        for turn in range(0, len(starts), self._ranks.world):
            now = starts[turn : turn + self._ranks.world]
            parts = [np.asarray(images[chosen[first : first + PART]]) for first in now]
            for first, part, features in zip(now, parts, self._turn(now, parts, cache), strict=True):
                yield part, features
                progress(first + len(part), len(chosen))

    def assist(self) -> None:
        """Extract features for the first rank until it calls `dismiss`."""
        part: NDArray[np.uint8] | str | None
        while (part := self._ranks.scatter([])) is None or not isinstance(part, str):
            self._ranks.gather(None if part is None else self._attempted(part))

    def _attempted(self, part: NDArray[np.uint8]) -> Features | Exception:
        """Features, or what went wrong, since the first rank waits for an answer; in words, which can be sent."""
        try:
            return self.features_of(part)
        except Exception as error:
            return error if self._ranks.is_first else CellFailedError(f"rank {self._ranks.rank}: {error_line(error)}")

    def dismiss(self) -> None:
        """Let the other ranks go."""
        self._ranks.scatter([_DONE] * self._ranks.world)

    def _turn(
        self, starts: list[int], parts: list[NDArray[np.uint8]], cache: Callable[[int], Path] | None
    ) -> list[Features]:
        """Features of at most one part per rank, read from its file or extracted by a rank."""
        paths = [cache(first) if cache else None for first in starts]
        found = [self._kept(path, len(part)) for path, part in zip(paths, parts, strict=True)]
        todo = [number for number, features in enumerate(found) if features is None]
        if todo:
            idle = [None] * (self._ranks.world - len(todo))
            mine = self._ranks.scatter([*(parts[number] for number in todo), *idle])
            assert mine is not None  # the first rank's
            own = self._attempted(mine)
            others = self._ranks.gather(None if isinstance(own, Exception) else own)[1:]
            for number, features in zip(todo, [own, *others], strict=False):
                if isinstance(features, Exception):
                    with non_finite_in(f"images {starts[number]} to {starts[number] + len(parts[number]) - 1}"):
                        raise features
                assert features is not None
                self._keep(paths[number], features)
                found[number] = features
        return [features for features in found if features is not None]

    def _kept(self, path: Path | None, count: int) -> Features | None:
        if path is not None:
            # those of an older version may not be finite: they are made again
            with contextlib.suppress(FileNotFoundError, checkpoint.CorruptCheckpointError, NonFiniteError):
                tensors, meta = checkpoint.load(path)
                checkpoint.require_finite(tensors)
                if meta == {"extractor": self.label} and len(tensors["pool"]) == count:
                    return Features(tensors["pool"], tensors.get("logits"), tensors.get("spatial"))
        return None

    def _keep(self, path: Path | None, features: Features) -> None:
        if path is not None:
            tensors = {name: values for name, values in vars(features).items() if values is not None}
            with self._writing():
                checkpoint.save(path, tensors, {"extractor": self.label})


def _joined(*pieces: Tensor | None) -> Any:
    """The values of all batches, on the CPU; None if the extractor gives none."""
    return None if pieces[0] is None else torch.cat([piece.cpu() for piece in pieces if piece is not None])


def _on(device: str) -> AbstractContextManager[object]:
    """Make the device the current one: some networks only use the current GPU."""
    if device == "cpu":
        return nullcontext()
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise InputError(f"device {device!r} is not available here; allowed: cpu, cuda, cuda:<index>")
    return torch.cuda.device(device)
