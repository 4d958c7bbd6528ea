"""Features of images, part by part: torch-fidelity's extractors under the conditions that fix their bits.

A part is a few hundred images. Parts do not depend on each other, so ranks share them, and their features can be kept
as files: scoring that was interrupted goes on after the last whole one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity import register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from harness.data.dataset import ImageArray
from harness.data.pixels import channels_first
from harness.errors import InputError
from harness.evaluation import inception
from harness.evaluation.classifier import FEATURES, LOGITS
from harness.evaluation.extractors import extractor_label
from harness.evaluation.inception import INCEPTION_BATCH, SPATIAL, WITH_SPATIAL, InceptionWithSpatial
from harness.training import checkpoint
from harness.training.ranks import Ranks

#: Images a part. A part of the arithmetic with Inception, whose last bits may depend on the batch.
PART = 500

_BATCH = 500

#: What the other ranks hear when there is nothing more to do.
_DONE = "done"

#: Told how many of how many images are done; may raise to stop.
Progress = Callable[[int, int], None]

if WITH_SPATIAL not in FEATURE_EXTRACTORS_REGISTRY:  # torch-fidelity refuses a second registration
    register_feature_extractor(WITH_SPATIAL, InceptionWithSpatial)


@dataclass(frozen=True)
class Features:
    """What the metrics are made of, of n images, on the CPU.

    Attributes:
        pool: (n, d), for the distances.
        logits: (n, classes), for the inception score.
        spatial: (n, 2023), for sFID; None from extractors other than Inception.
    """

    pool: Tensor
    logits: Tensor
    spatial: Tensor | None


class Extractor:
    """A feature extractor on a device; the network is built when it is first needed.

    Attributes:
        name: as in `Evaluation.extractor`.
        label: name@hash, see `extractors.extractor_label`.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        inception_weights: str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Find the weights.

        Args:
            name: the extractor.
            device: where it runs.
            inception_weights: the file, for inception-v3-compat; see `harness.evaluation.inception`.
            ranks: who shares the parts of the first rank; the others call `assist`. None: nobody.

        Raises:
            InputError: no such extractor or device, or its weights are not there.
        """
        self.name, self._device, self._ranks = name, device, ranks or Ranks()
        self.is_inception = name == inception.NAME
        self._weights = inception.find_weights(inception_weights) if self.is_inception else None
        self.label = extractor_label(name, inception_weights)
        with _on(device):
            pass

    @functools.cached_property
    def _network(self) -> Any:
        registered, layers = self.name, [FEATURES, LOGITS]
        if self._weights is not None:
            inception.check_weights(self._weights)
            registered, layers = WITH_SPATIAL, ["2048", "logits_unbiased", SPATIAL]
        with torch.random.fork_rng(devices=[]), _on(self._device):  # building a network draws random weights first
            try:
                return create_feature_extractor(
                    registered,
                    layers,
                    cuda=self._device != "cpu",
                    feature_extractor_weights_path=None if self._weights is None else str(self._weights),
                    verbose=False,
                )
            except RuntimeError as error:  # a state dict that does not fit
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"{self._weights}: other weights than {self.name} has ({reason})") from None

    def features_of(self, images: NDArray[np.uint8]) -> Features:
        """Features of uint8 images (n, H, W, 1 or 3); grey ones go in as three equal channels.

        Raises:
            InputError: the weights give values that are not finite.
        """
        batch = INCEPTION_BATCH if self.is_inception else _BATCH
        outputs = []
        # TensorFloat-32 would move Inception's features
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.no_grad(), _on(self._device), exact:
            for start in range(0, len(images), batch):
                x = torch.from_numpy(channels_first(images[start : start + batch])).expand(-1, 3, -1, -1).contiguous()
                outputs.append([layer.cpu() for layer in self._network(x.to(self._device))])
        pool, logits, *spatial = (torch.cat(layer) for layer in zip(*outputs, strict=True))
        if not (torch.isfinite(pool).all() and torch.isfinite(logits).all()):
            raise InputError(f"{self.label}: the weights give features that are not finite")
        return Features(pool, logits, spatial[0] if spatial else None)

    def parts(
        self,
        images: ImageArray,
        cache: Callable[[int], Path] | None = None,
        progress: Progress = lambda done, total: None,
    ) -> Iterator[tuple[NDArray[np.uint8], Features]]:
        """Images and features of consecutive parts; at most one part a rank is in memory.

        Args:
            images: uint8 (N, H, W, C).
            cache: file for the features of the part that begins at an index; those that are there are not made again.
            progress: told after every part.
        """
        starts = list(range(0, len(images), PART))
        for turn in range(0, len(starts), self._ranks.world):
            now = starts[turn : turn + self._ranks.world]
            parts = [np.asarray(images[np.arange(first, min(first + PART, len(images)))]) for first in now]
            for first, part, features in zip(now, parts, self._turn(now, parts, cache), strict=True):
                yield part, features
                progress(first + len(part), len(images))

    def assist(self) -> None:
        """Work for the first rank until it is done with scoring (`dismiss`)."""
        part: NDArray[np.uint8] | str | None
        while (part := self._ranks.scatter([])) is None or not isinstance(part, str):
            self._ranks.gather(None if part is None else self.features_of(part))

    def dismiss(self) -> None:
        """Let the other ranks go."""
        self._ranks.scatter([_DONE] * self._ranks.world)

    def _turn(
        self, starts: list[int], parts: list[NDArray[np.uint8]], cache: Callable[[int], Path] | None
    ) -> list[Features]:
        """Features of a part a rank, or of fewer."""
        paths = [cache(first) if cache else None for first in starts]
        found = [self._kept(path, len(part)) for path, part in zip(paths, parts, strict=True)]
        todo = [number for number, features in enumerate(found) if features is None]
        if todo:
            idle = [None] * (self._ranks.world - len(todo))
            mine = self._ranks.scatter([*(parts[number] for number in todo), *idle])
            assert mine is not None  # the first rank's
            for number, features in zip(todo, self._ranks.gather(self.features_of(mine)), strict=False):
                self._keep(paths[number], features)
                found[number] = features
        return [features for features in found if features is not None]

    def _kept(self, path: Path | None, count: int) -> Features | None:
        if path is not None:
            with contextlib.suppress(FileNotFoundError, checkpoint.CorruptCheckpointError):
                tensors, meta = checkpoint.load(path)
                if meta == {"extractor": self.label} and len(tensors["pool"]) == count:
                    return Features(tensors["pool"], tensors["logits"], tensors.get("spatial"))
        return None

    def _keep(self, path: Path | None, features: Features) -> None:
        if path is not None:
            tensors = {"pool": features.pool, "logits": features.logits}
            if features.spatial is not None:
                tensors["spatial"] = features.spatial
            checkpoint.save(path, tensors, {"extractor": self.label})


def _on(device: str) -> AbstractContextManager[object]:
    """Torch-fidelity knows "the current GPU" only."""
    if device == "cpu":
        return nullcontext()
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise InputError(f"device {device!r} is not available here; allowed: cpu, cuda, cuda:<index>")
    return torch.cuda.device(device)
