"""The Inception network behind FID: where its weights are, and whether they are the published ones.

The network is torch-fidelity's `inception-v3-compat`, a port of the TensorFlow graph of 2015 that the literature's FIDs
rest on. Its weights are not shipped here.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from harness.errors import InputError
from harness.evaluation.extractors import Extractor, Features, Network
from harness.files import large_file_hash
from harness.runs.columns import PUBLISHED_INCEPTION
from harness.spec.evaluation import INCEPTION as NAME

#: The published weights: first 8 hex digits of the file's sha256, which its own name carries.
PUBLISHED = PUBLISHED_INCEPTION.rpartition("@")[2]

#: First 8 hex digits of sha256 over the sorted lines `name shape` of the network's tensors.
_LAYOUT = "d84f693f"

FILE = f"weights-inception-2015-12-05-{PUBLISHED}.pth"

URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"

SPATIAL = "spatial"

SPATIAL_CHANNELS = 7


class Inception(Extractor):
    """Features of pool_3 for FID, logits for the inception score, and spatial features for sFID."""

    batch = 64  # it sees every image at 299 x 299
    slow = True

    def weights_hash(self, weights: str | None) -> str:
        """See `Extractor`: of the file."""
        return large_file_hash(find_weights(weights))

    def check(self, weights: str | None) -> None:
        """See `Extractor`."""
        check_weights(find_weights(weights))

    def build(self, device: str, weights: str | None) -> Network:
        """See `Extractor`."""
        path = find_weights(weights)
        check_weights(path)
        try:
            network = InceptionWithSpatial(
                NAME, ["2048", "logits_unbiased", SPATIAL], feature_extractor_weights_path=str(path)
            )
        except RuntimeError as error:  # a state dict that does not fit
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: other weights than {NAME} has ({reason})") from None
        network.requires_grad_(False).eval().to(device)
        return lambda images: Features(*network(images))


INCEPTION = Inception()


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


def check_weights(path: Path) -> None:
    """Check that the file holds the network's weights and nothing that would be executed.

    torch-fidelity unpickles whatever it is given, so this comes first.

    Raises:
        InputError: a pickle that carries code, a damaged file, or other tensors.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        lines = [f"{k} {tuple(v.shape)}" for k, v in state.items() if not k.endswith("num_batches_tracked")]
    except Exception as error:  # a damaged pickle fails in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: no readable Inception weights ({reason}); allowed: a copy of {URL}") from None
    if hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:8] != _LAYOUT:
        raise InputError(f"{path}: other weights than {NAME} has; allowed: a copy of {URL}")


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
