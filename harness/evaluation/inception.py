"""The Inception network behind FID: where its weights are, and whether they are the published ones.

The network is torch-fidelity's `inception-v3-compat`, a port of the TensorFlow graph of 2015 that published FIDs use.
Its weights are not part of this package.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from harness.errors import InputError
from harness.evaluation.extractors import Extractor, Features, Network, WeightsFile
from harness.files import large_file_hash
from harness.runs.columns import PUBLISHED_INCEPTION
from harness.spec.evaluation import INCEPTION as NAME

#: First 8 hex digits of the sha256 of the published weights file; the file's name contains them.
PUBLISHED = PUBLISHED_INCEPTION.rpartition("@")[2]

#: First 8 hex digits of sha256 over the sorted lines `name shape` of the network's tensors.
_LAYOUT = "d84f693f"

_NAME = f"weights-inception-2015-12-05-{PUBLISHED}.pth"

FILE = WeightsFile(
    NAME, "inception_weights", _NAME, f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{_NAME}"
)

SPATIAL_CHANNELS = 7


class Inception(Extractor):
    """Features of pool_3 for FID, logits for the inception score, and spatial features for sFID."""

    batch = 64  # it sees every image at 299 x 299
    slow = True

    def weights_hash(self, weights: str | None) -> str:
        """See `Extractor`: the hash of the file."""
        return large_file_hash(FILE.find(weights))

    def check(self, weights: str | None) -> None:
        """See `Extractor`."""
        check_weights(FILE.find(weights))

    def build(self, device: str, weights: str | None) -> Network:
        """See `Extractor`.

        The spatial features are for sFID (Nash et al. 2021, as in the ADM suite): the first 7 channels of mixed_6/conv,
        17 x 17, flattened in the order row, column, channel. Here mixed_6/conv is the 1x1 branch of Mixed_6d.
        """
        path = FILE.find(weights)
        check_weights(path)
        try:
            network: Any = FeatureExtractorInceptionV3(
                NAME, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
            )
        except RuntimeError as error:  # a state dict that does not fit
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: other weights than {NAME} has ({reason})") from None
        network.requires_grad_(False).eval().to(device)
        branch: list[Tensor] = []
        network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: branch.append(output))

        def features(images: Tensor) -> Features:
            pool, logits = network(images)
            return Features(pool, logits, branch.pop()[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float())

        return features


INCEPTION = Inception()


def check_weights(path: Path) -> None:
    """Check that the file holds the network's weights and nothing that would be executed.

    torch-fidelity unpickles any file, so this check comes first.

    Raises:
        InputError: a pickle that carries code, a damaged file, other tensors, or values that are not finite.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        lines = [f"{k} {tuple(v.shape)}" for k, v in state.items() if not k.endswith("num_batches_tracked")]
    except Exception:  # a damaged pickle fails in any way, and torch advises to load it unsafely
        raise InputError(f"{path}: no file of PyTorch weights, or damaged; allowed: a copy of {FILE.url}") from None
    if hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:8] != _LAYOUT:
        raise InputError(f"{path}: other weights than {NAME} has; allowed: a copy of {FILE.url}")
    if odd := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise InputError(
            f"{path}: weights that are not finite ({len(odd)} tensors, for example {odd[0]}); "
            f"allowed: a copy of {FILE.url}"
        )
