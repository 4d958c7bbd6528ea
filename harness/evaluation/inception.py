"""The Inception network behind FID: where its weights lie, and whether they are the published ones.

The network is torch-fidelity's `inception-v3-compat`, a port of the TensorFlow graph of 2015 that the literature's FIDs
rest on. Its weights are not shipped here. Torch is imported only when they are read.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from harness.errors import InputError
from harness.runs.columns import PUBLISHED_INCEPTION
from harness.spec.evaluation import INCEPTION

NAME = INCEPTION

#: The published weights: first 8 hex digits of the file's sha256, which its own name carries.
PUBLISHED = PUBLISHED_INCEPTION.rpartition("@")[2]

#: First 8 hex digits of sha256 over the sorted lines `name shape` of the network's tensors.
_LAYOUT = "d84f693f"

FILE = f"weights-inception-2015-12-05-{PUBLISHED}.pth"

URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"


def find_weights(configured: str | None) -> Path:
    """The weights file: the one configured (`resources.inception_weights`), else where torch keeps what it downloads.

    Raises:
        InputError: it is not there; the message says where to get it.
    """
    if configured is not None:
        path = Path(configured)
        if not path.is_file():
            raise InputError(f"resources.inception_weights: {path}: no such file; allowed: a copy of {URL}")
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    path = Path(os.environ.get("TORCH_HOME", cache)).expanduser() / "hub" / "checkpoints" / FILE
    if not path.is_file():
        raise InputError(
            f"evaluation.extractor {NAME} needs its weights: download {URL} and set resources.inception_weights to the "
            f"file, or put it into {path.parent}"
        )
    return path


def weights_label(path: Path) -> str:
    """`inception-v3-compat@<first 8 hex digits of the file's sha256>`: identifies the feature space in records."""
    status = path.stat()
    return f"{NAME}@{_sha256(path, status.st_mtime_ns, status.st_size)[:8]}"


def check_weights(path: Path) -> None:
    """Check that the file holds the network's weights and nothing that would be executed.

    torch-fidelity unpickles whatever it is given, so this comes first.

    Raises:
        InputError: a pickle that carries code, a damaged file, or other tensors.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        lines = [f"{k} {tuple(v.shape)}" for k, v in state.items() if not k.endswith("num_batches_tracked")]
    except Exception as error:  # a damaged pickle fails in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: no readable Inception weights ({reason}); allowed: a copy of {URL}") from None
    if hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:8] != _LAYOUT:
        raise InputError(f"{path}: other weights than {NAME} has; allowed: a copy of {URL}")


@functools.cache
def _sha256(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


INCEPTION_BATCH = 64  # it sees every image at 299 x 299

SPATIAL = "spatial"

SPATIAL_CHANNELS = 7

WITH_SPATIAL = f"{NAME}-with-spatial"


class InceptionWithSpatial(FeatureExtractorInceptionV3):  # type: ignore[misc]  # torch-fidelity has no types
    """Inception with one more layer, `spatial`: what sFID compares (Nash et al. 2021, as in the ADM suite).

    The first 7 channels of mixed_6/conv, which here is the 1x1 branch of Mixed_6d, 17 x 17, flattened in the order
    row, column, channel: 2023 features.
    """

    features_list: list[str]

    def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
        super().__init__(name, features_list, **options)
        self._spatial: Tensor | None = None
        self.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module: object, inputs: object, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Names of the layers."""
        return *FeatureExtractorInceptionV3.get_provided_features_list(), SPATIAL

    @staticmethod
    def can_be_compiled() -> bool:
        """Compilation would change the numbers."""
        return False

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Layers asked for, in that order, of uint8 (N, 3, H, W) images."""
        asked = self.features_list
        self.features_list = [layer for layer in asked if layer != SPATIAL]
        try:
            layers = dict(zip(self.features_list, super().forward(x), strict=False))
        finally:
            self.features_list = asked
        assert self._spatial is not None  # every forward pass goes through Mixed_6d
        layers[SPATIAL], self._spatial = self._spatial, None
        return tuple(layers[layer] for layer in asked)
