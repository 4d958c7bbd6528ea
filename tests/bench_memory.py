"""Peak memory of scoring 50,000 images at d = 2048, beside the extractor: `python -m tests.bench_memory`.

Random features stand in for Inception's; the rest is what `score` does. A quarter of an hour on one busy core, most of
it precision and recall.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch

from harness.evaluation import metrics, references
from harness.evaluation.adm import SPATIAL_DIM
from harness.evaluation.extractors import Features
from harness.evaluation.features import PART, Extraction
from harness.evaluation.statistics import Moments
from harness.evaluation.watch import UNWATCHED
from harness.spec.evaluation import INCEPTION
from harness.training.ranks import Ranks


class Images:
    """N images of 1 x 1 that exist when they are asked for."""

    def __init__(self, count: int) -> None:
        self.shape = (count, 1, 1, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return np.random.default_rng(int(index[0])).integers(0, 256, (len(index), 1, 1, 3), dtype=np.uint8)


class Random(Extraction):
    """Features as many and as wide as Inception's."""

    def __init__(self) -> None:
        self.name = self.label = INCEPTION
        self.evenly, self._ranks = True, Ranks()
        self._generator = torch.Generator().manual_seed(0)

    def features_of(self, images: np.ndarray) -> Features:
        """As `Extraction.features_of`."""
        pool, logits, spatial = (
            torch.rand(len(images), d, generator=self._generator) for d in (2048, 1008, SPATIAL_DIM)
        )
        return Features(pool, logits, spatial)


def peak() -> float:
    """Most memory this process has held, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Print what each stage adds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=50_000)
    n = parser.parse_args().samples
    before, begun = peak(), time.monotonic()

    def told(stage: str) -> None:
        print(f"{stage}: {peak() - before:.2f} GB above the start, {time.monotonic() - begun:.0f} s", flush=True)

    kept = references._extract(Images(20_000), Random(), lambda done, total: None)
    arrays = {name: tensor.numpy() for name, tensor in kept.items()}
    pool, spatial = Moments.from_arrays(arrays, "pool_"), Moments.from_arrays(arrays, "spatial_")
    reference = references.Reference(
        "random", 20_000, pool.mean, pool.covariance, (spatial.mean, spatial.covariance), kept["features"], False, True
    )
    told(f"reference, parts of {PART}")
    generated = metrics._extract(Images(n), Random(), None, lambda done, total: None)
    told(f"features of {n} images")
    metrics._frechet(generated, reference, UNWATCHED)
    told("Frechet distances")
    metrics._other_metrics(generated, reference, UNWATCHED)
    told("KID, precision, recall, inception score")


if __name__ == "__main__":
    main()
