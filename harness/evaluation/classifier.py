"""Feature extractors for small data sets: small classifiers, whose weights ship with this package."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from harness.data.pixels import channels_first, to_model_range
from harness.errors import InputError
from harness.evaluation.extractors import Extractor, Features, Network, exact_convolutions, find
from harness.spec.data import DATA_SETS, InputShape
from harness.spec.evaluation import TRAINED_DIMS

WEIGHTS_FOLDER = Path(__file__).parent / "weights"

FEATURE_DIM = TRAINED_DIMS


#: The classifiers in this package, and the data sets that they were trained on.
SHIPPED: dict[str, str] = {"digits-cnn": "digits", "fashion-cnn": "fashion-mnist"}


@dataclass(frozen=True)
class Architecture:
    """How the classifiers differ.

    Attributes:
        shape: of the images it takes, and how many classes it tells apart.
        widths: channels of the convolution at each resolution, from the first one's to that of 4 to 7 pixels a side.
        stride: of the first convolution, which has a kernel of twice that; 1: it is 3x3.
        turns: whether its four classes are the quarter turns of an image.
    """

    shape: InputShape
    widths: tuple[int, ...]
    stride: int = 1
    turns: bool = False

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Architecture:
        """Of its fields, as JSON gives them back."""
        shape, widths = InputShape(*document["shape"]), tuple(document["widths"])
        return cls(shape, widths, document["stride"], document["turns"])


ARCHITECTURES: dict[str, Architecture] = {
    name: Architecture(DATA_SETS.facts(data).shape, widths)
    for (name, data), widths in zip(SHIPPED.items(), [(32, 64), (16, 32, 64, 64)], strict=True)
}


class Classifier(nn.Module):
    """Convolutions with SiLU, halving the resolution between them; at 4 to 7 pixels a linear layer gives the features.

    The features are taken before any activation: a ReLU would kill dimensions and leave a singular covariance.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        shape, widths, stride = architecture.shape, architecture.widths, architecture.stride
        first = {"kernel_size": 3, "padding": 1}
        if stride > 1:
            first = {"kernel_size": 2 * stride, "stride": stride, "padding": stride // 2}
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inner, outer, **({"kernel_size": 3, "padding": 1} if index else first))  # type: ignore[arg-type]
            for index, (inner, outer) in enumerate(zip((shape.channels, *widths), widths, strict=False))
        )
        side = (shape.size // stride) >> (len(widths) - 1)
        self.features = nn.Linear(widths[-1] * side**2, FEATURE_DIM)
        self.classes = nn.Linear(FEATURE_DIM, shape.classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Float images (N, C, H, W) in [-1, 1] -> features (N, 64), logits (N, classes)."""
        for index, convolution in enumerate(self.convolutions):
            if index:
                x = F.avg_pool2d(x, 2)
            x = F.silu(convolution(x))
        features = self.features(x.flatten(1))  # (N, 64)
        return features, self.classes(F.silu(features))


@dataclass(frozen=True)
class Weights:
    """A trained extractor, read from its file.

    Attributes:
        tensors: state of `Classifier`.
        card: what it is, how it was trained and what was measured (see `train_extractor.py`).
        content_hash: sha256 of the tensors' bytes in the order of their sorted names, 64 hex digits.
    """

    tensors: dict[str, Tensor]
    card: dict[str, Any]
    content_hash: str


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Sha256 (64 hex digits) of the tensors' bytes in the order of their sorted names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def load_weights(name: str) -> Weights:
    """Read an extractor's weights and card.

    Raises:
        InputError: unknown name; missing or damaged file; a content hash that differs from the card's.
    """
    find(name)
    return read_weights(WEIGHTS_FOLDER / f"{name}.safetensors")


def read_weights(path: Path) -> Weights:
    """Read a weights file as `train_extractor.py` writes it.

    Raises:
        InputError: missing or damaged file; a content hash that differs from the card's.
    """
    try:
        with safe_open(path, "pt") as file:
            card = json.loads(file.metadata()["card"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        if not isinstance(card, dict):
            raise TypeError(f"its card is a {type(card).__name__}")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no readable extractor weights ({error})") from error
    found = content_hash(tensors)
    if found != card.get("content_hash"):
        raise InputError(f"{path}: content hash {found[:8]} differs from the card's; the file is damaged")
    return Weights(tensors, card, found)


def build(name: str) -> Classifier:
    """Build the trained classifier, in evaluation mode on the CPU.

    Raises:
        InputError: unknown name, or a damaged weights file.
    """
    weights = load_weights(name)
    return with_weights(ARCHITECTURES[name], weights.tensors)


def with_weights(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Classifier:
    """A trained classifier, in evaluation mode on the CPU."""
    network = Classifier(architecture)
    network.load_state_dict(tensors)
    return network.requires_grad_(False).eval()


def infer(network: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits of stored images; the caller's precision settings do not change them.

    The network runs in float32. The result is float64, because torch-fidelity computes means, kernels and distances in
    the type of its input.

    Args:
        network: a classifier in evaluation mode.
        images: uint8 (N, C, H, W), on the network's device.

    Returns:
        Features float64 (N, 64), logits float64 (N, classes).
    """
    # The strides of a slice of repeated channels select another convolution kernel, with other last bits.
    x = to_model_range(images.clone(memory_format=torch.contiguous_format))
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False), exact_convolutions():
        features, logits = network(x)
    return features.double(), logits.double()


def extract(
    network: Classifier, images: NDArray[np.uint8], batch_size: int = 512
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features (N, 64) and logits (N, classes) of uint8 images (N, H, W, C), computed where the network is."""
    device = network.features.weight.device
    batches = (channels_first(images[start : start + batch_size]) for start in range(0, len(images), batch_size))
    found = (infer(network, torch.from_numpy(batch).to(device)) for batch in batches)
    features, logits = zip(*found, strict=True)
    return torch.cat(features).cpu().numpy(), torch.cat(logits).cpu().numpy()


class ClassifierExtractor(Extractor):
    """A classifier as an extractor. The images of its data set are not sorted, so the first ones are a fair sample."""

    evenly = False

    def __init__(self, name: str) -> None:
        self._name = name

    def weights_hash(self, weights: str | None) -> str:
        """See `Extractor`: the hash of its tensors."""
        return load_weights(self._name).content_hash

    def build(self, device: str, weights: str | None) -> Network:
        """See `Extractor`."""
        network = build(self._name).to(device)
        return lambda images: Features(*infer(network, images))


DIGITS_CNN, FASHION_CNN = map(ClassifierExtractor, SHIPPED)
