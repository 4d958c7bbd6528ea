"""DINOv2 ViT-L/14 as dgm-eval uses it (Stein et al. 2023, "Exposing flaws of generative model evaluation metrics").

The network is timm's (the extra `dinov2`); its weights are not part of this package. Images are resized to 224 pixels
as Pillow does it (bicubic, antialiased, whole levels), and the features are the class token after the last norm.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.errors import InputError
from harness.evaluation.extractors import Extractor, Network, WeightsFile
from harness.files import large_file_hash
from harness.model import formats
from harness.model.formats import State

FILE = WeightsFile(
    "dinov2-vit-l14",
    "dinov2_weights",
    "dinov2_vitl14_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
)

#: Pixels a side that the network sees, and those that its positions were trained for.
SIZE, TRAINED_SIZE = 224, 518

PATCH = 14

#: Of ImageNet's channels, for levels in [0, 1].
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Of the official files; training alone uses it.
_MASK = "mask_token"


class Shape(NamedTuple):
    """Of a vision transformer."""

    name: str
    width: int
    depth: int
    heads: int


VIT_L = Shape("ViT-L/14", 1024, 24, 16)


class DinoV2(Extractor):
    """Class tokens (n, width)."""

    batch = 32
    slow = True

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def weights_hash(self, weights: str | None) -> str:
        """See `Extractor`: the hash of the file."""
        return large_file_hash(FILE.find(weights))

    def check(self, weights: str | None) -> None:
        """See `Extractor`."""
        path = FILE.find(weights)
        if find_spec("timm") is None:
            raise InputError(
                f"evaluation.extractor {FILE.extractor} needs timm: pip install 'dit-scaling-harness[dinov2]'"
            )
        read_weights(path, self._shape)

    def build(self, device: str, weights: str | None) -> Network:
        """See `Extractor`."""
        self.check(weights)
        state = read_weights(FILE.find(weights), self._shape)
        state["pos_embed"] = resized_positions(state["pos_embed"])
        network = transformer(self._shape, SIZE)
        network.load_state_dict(state)
        network.requires_grad_(False).eval().to(device)
        mean, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, DEVIATION))

        def features(images: Tensor) -> Tensor:
            tokens: Tensor = network.forward_features((resized(images) / 255 - mean) / deviation)
            return tokens[:, 0].double()

        return features


DINOV2 = DinoV2(VIT_L)


def transformer(shape: Shape, size: int) -> Any:
    """The network for images of `size` pixels a side, with timm's own weights."""
    from timm.models.vision_transformer import VisionTransformer  # takes seconds

    return VisionTransformer(
        img_size=size,
        patch_size=PATCH,
        num_classes=0,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        init_values=1.0,  # it scales the branches of a block
    )


def resized(images: Tensor) -> Tensor:
    """Images uint8 (n, 3, H, W) at 224 x 224, as Pillow resizes them: columns, then rows, each to whole levels."""
    found = images.float()
    for size in ((images.shape[2], SIZE), (SIZE, SIZE)):
        found = F.interpolate(found, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    return found


def resized_positions(positions: Tensor) -> Tensor:
    """The positions (1, 1 + 37 * 37, width) for 16 x 16 patches, as DINOv2's own code interpolates them.

    It adds 0.1 to the number of patches a side, and does not antialias; timm's own way gives other features.
    """
    trained, side = TRAINED_SIZE // PATCH, SIZE // PATCH
    grid = positions[:, 1:].unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / trained
    patches = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic").flatten(2).transpose(1, 2)
    return torch.cat((positions[:, :1], patches), dim=1)


def read_weights(path: Path, shape: Shape) -> State:
    """The weights of an official file, under timm's names, which are the same. Nothing in the file is executed.

    Raises:
        InputError: no file of weights, weights of another network, or values that are not finite.
    """
    state = {name: value.float() for name, value in formats.weights_of(formats.load_pickle(path), str(path)).items()}
    state.pop(_MASK, None)
    with torch.device("meta"):
        expected = {name: value.shape for name, value in transformer(shape, TRAINED_SIZE).state_dict().items()}
    other = [name for name in (*expected, *state) if name not in expected or name not in state]
    other += [name for name, value in state.items() if name in expected and value.shape != expected[name]]
    if other:
        named = other[0]
        found = tuple(state[named].shape) if named in state else "missing"
        wanted = tuple(expected[named]) if named in expected else "unknown"
        raise InputError(
            f"{path}: other weights than DINOv2 {shape.name} has ({len(other)} tensors differ, for example {named}: "
            f"{found}, expected {wanted}); allowed: a copy of {FILE.url}"
        )
    formats.require_finite(state, str(path))
    return state
