"""Whether a distance in an extractor's features rises as real images get worse: under noise, blur, a dropped class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from harness.data.dataset import Images
from harness.data.draws import stream
from harness.data.pixels import channels_first, to_model_range, to_uint8
from harness.evaluation.frechet import frechet_distance, statistics
from harness.evaluation.train_extractor import blur

#: Standard deviations of noise, in levels of 0..255; passes of a 3x3 binomial blur.
NOISE, BLUR = (10, 20, 40), (1, 2, 4)

#: Most images of a half.
_MOST = 5000

Features = Callable[[NDArray[np.uint8]], NDArray[np.float64]]


@dataclass(frozen=True)
class Check:
    """Distances of one half of the real images, made worse and worse, to the other half.

    Attributes:
        what: is done to the images.
        levels: of it, the first is nothing.
        frechet: the distances; the first is the floor.
        rises: whether it passes.
    """

    what: str
    levels: tuple[str, ...]
    frechet: tuple[float, ...]
    rises: bool


def checks(features: Features, real: Images, classes: int) -> list[Check]:
    """Measure the checks.

    Under noise and blur every step must be farther than the one before. Without a class, that of median frequency or
    the most frequent one, the distance must be above the floor of as many images.

    Args:
        features: of images uint8 (n, H, W, C) -> (n, d).
        real: images in random order.
        classes: how many they have; with fewer than two no class is dropped.
    """
    half = min(len(real.images) // 2, _MOST)
    images, labels = real.array(), real.labels
    reference = statistics(features(images[half : 2 * half]))
    some, their = images[:half], labels[:half]

    def distance(images: NDArray[np.uint8]) -> float:
        return float(f"{frechet_distance(*statistics(features(images)), *reference):.6g}")

    floor = distance(some)
    noisy = [floor, *(distance(with_noise(some, level)) for level in NOISE)]
    soft = [floor, *(distance(blurred(some, passes)) for passes in BLUR)]
    found = [
        Check("noise", ("0", *map(str, NOISE)), tuple(noisy), _rises(noisy)),
        Check("blur", ("0", *map(str, BLUR)), tuple(soft), _rises(soft)),
    ]
    frequent = [label for label, _ in Counter(their.tolist()).most_common()]
    if classes > 1 and len(frequent) > 1:
        dropped = {"median": frequent[len(frequent) // 2], "most frequent": frequent[0]}
        count = int(np.sum(their != frequent[0]))
        series = [distance(some[:count]), *(distance(some[their != label][:count]) for label in dropped.values())]
        found.append(Check("a dropped class", ("none", *dropped), tuple(series), min(series[1:]) > series[0]))
    return found


def _rises(values: list[float]) -> bool:
    return bool(np.all(np.diff(values) > 0))


def with_noise(images: NDArray[np.uint8], deviation: float) -> NDArray[np.uint8]:
    """Images (n, H, W, C) with normal noise of this standard deviation, in levels; always the same."""
    noise = stream("extractor-noise").standard_normal(images.shape, dtype=np.float32)
    return np.clip(np.rint(images + deviation * noise), 0, 255).astype(np.uint8)


def blurred(images: NDArray[np.uint8], passes: int) -> NDArray[np.uint8]:
    """Images (n, H, W, C) after so many passes of a 3x3 binomial blur."""
    x = to_model_range(torch.from_numpy(channels_first(images)))
    for _ in range(passes):
        x = blur(x)
    return to_uint8(x).permute(0, 2, 3, 1).contiguous().numpy()
