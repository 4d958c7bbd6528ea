"""The interface of a feature extractor, which turns images into features; distances are measured between features.

Each extractor has a file of its own in this folder, and a line in `harness.spec.evaluation`.
"""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import InputError
from harness.files import file_hash
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.spec.evaluation import EXTRACTORS, TRAINED_AT, ExtractorChoice, TrainedExtractor, extractor_name
from harness.spec.kinds import imported
from harness.spec.resources import Resources


@dataclass(frozen=True)
class Features:
    """The features of n images, from which the metrics are computed.

    Attributes:
        pool: (n, d), for the distances.
        logits: (n, classes), for the inception score; None: the extractor has no classes.
        spatial: (n, 2023), for sFID; None for extractors other than Inception.
    """

    pool: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


#: Maps images uint8 (n, C, H, W) on the device to features: (n, d) alone, or a `Features`.
Network = Callable[[Tensor], Tensor | Features]


class Extractor(ABC):
    """A feature extractor.

    The first seven attributes are for extractors in a user's file; for a built-in one they are in its line of
    `harness.spec.evaluation`.

    Attributes:
        channels: of the images it reads.
        size: pixels a side that it reads; None: any.
        dims: how many features it gives per image.
        references: published statistics of its features, to compare images with.
        external: whether its weights come from outside the package; a launch then checks that they are there.
        weights: field of `Resources` that names the file of its weights.
        gmacs: 1e9 multiply-adds for one image, for the price of a sweep; 0: left out of it.
        batch: images in one call of the network; the last bits of the features may depend on it.
        slow: whether its features are kept in files, from which interrupted scoring continues.
        evenly: whether precision and recall take real images at even distances; False: the first ones.
    """

    channels: int
    size: int | None = None
    dims: int
    references: tuple[str, ...] = ()
    external: bool = False
    weights: str = "inception_weights"
    gmacs: float = 0.0
    batch: int = 500
    slow: bool = False
    evenly: bool = True

    @abstractmethod
    def build(self, device: str, weights: str | None) -> Network:
        """Build the network on a device, which is the current one. The caller restores the global random state.

        Args:
            device: "cpu", "cuda" or "cuda:<index>".
            weights: the file that the field `weights` of the resources names, if any.

        Raises:
            InputError: its weights are missing or damaged.
        """

    def weights_hash(self, weights: str | None) -> str | None:
        """Hash of the weights, at least 8 hex digits; None: that of the file that defines the extractor."""
        return None

    def doubts(self, weights: str | None) -> list[str]:
        """Why its features may not be worth much, one line each, for the records."""
        return []

    def check(self, weights: str | None) -> None:  # noqa: B027  # nothing to find: the weights are in a package
        """Check that the weights are there and can be read.

        Raises:
            InputError: one line that says where to get them.
        """


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights that is not part of this package.

    Attributes:
        extractor: whose weights.
        option: field of `Resources` that names the file.
        name: of the published file.
        url: where it is published.
    """

    extractor: str
    option: str
    name: str
    url: str

    def find(self, configured: str | None) -> Path:
        """The configured file, or else the one in torch's download folder.

        Raises:
            InputError: it is not there; the message says where to get it.
        """
        if configured is not None:
            path = Path(configured)
            if not path.is_file():
                raise InputError(f"resources.{self.option}: {path}: no such file; allowed: a copy of {self.url}")
            return path
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
        path = Path(os.environ.get("TORCH_HOME", cache)).expanduser() / "hub" / "checkpoints" / self.name
        if not path.is_file():
            raise InputError(
                f"evaluation.extractor {self.extractor} needs its weights, in resources.{self.option} or in "
                f"{path.parent}: curl -L --create-dirs -o {path} {self.url}"
            )
        return path


def exact_convolutions() -> AbstractContextManager[object]:
    """Convolutions without TensorFloat-32, which is cuDNN's default and moves features by about 1e-3."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def weights_of(choice: ExtractorChoice, data: Data, resources: Resources, shared: Shared | None) -> str | None:
    """The file with the weights of an extractor, if they are not in a package: a trained one's of this data is shared.

    Raises:
        InputError: a trained extractor without a folder of results.
    """
    if not isinstance(choice, TrainedExtractor):
        return resources.weights_of(choice)
    if shared is None:
        raise InputError(f"evaluation.extractor {choice.name}: a trained extractor needs a folder of results")
    return str(shared.extractor_weights(choice.folder_name(data)))


def find(name: ExtractorChoice) -> Extractor:
    """The extractor of this name, or of this recipe.

    Raises:
        InputError: there is none.
    """
    if not isinstance(name, TrainedExtractor) and name not in EXTRACTORS.names:
        raise InputError(f"evaluation.extractor: unknown {name!r}; allowed: {', '.join(EXTRACTORS.names)}")
    extractor: Extractor = imported(TRAINED_AT) if isinstance(name, TrainedExtractor) else EXTRACTORS.load(name)
    return extractor


def extractor_label(name: ExtractorChoice, weights: str | None = None) -> str:
    """`<name>@<first 8 hex digits of the hash of its weights>`: identifies the feature space in records.

    Args:
        name: the extractor.
        weights: the file of its weights, see `weights_of`.

    Raises:
        InputError: unknown name, or a missing or damaged weights file.
    """
    extractor = find(name)
    found = extractor.weights_hash(weights)
    if found is None:
        _, _, of_user_file = str(EXTRACTORS.identity(extractor_name(name))).partition("#")
        found = of_user_file or file_hash(Path(inspect.getfile(type(extractor))))
    return f"{extractor_name(name)}@{found[:8]}"
