"""Kernel distance, precision, recall and inception score of features that are extracted already.

The numbers are torch-fidelity's. Its own functions import torchvision and torch's compiler, 1.5 s of every job.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data.dataset import Progress

#: Points or images in a distance matrix at once, a side: with 50,000 images, 1000 rows would take 0.7 GB more.
_BATCH = 250

#: Least images in a chunk of the inception score, which is computed in float64.
_IS_CHUNK = 5000

_SEED = 2020


def kernel_distance(generated: Tensor, real: Tensor, size: int, subsets: int) -> float:
    """KID (Binkowski et al. 2018, section 4): the unbiased squared MMD with the kernel (x y / d + 1)^3.

    Args:
        generated: features (N, d).
        real: features (M, d).
        size: of the random subsets, at most N and M.
        subsets: how many; their mean is returned.
    """
    x, y, generator = generated.numpy(), real.numpy(), np.random.RandomState(_SEED)
    found = []
    for _ in range(subsets):
        a, b = (features[generator.choice(len(features), size, replace=False)] for features in (x, y))
        within = sum((kernel.sum(axis=1) - kernel.diagonal()).sum() for kernel in (_kernel(a, a), _kernel(b, b)))
        across = _kernel(a, b).sum(axis=0).sum()
        found.append(float(within / (size * (size - 1)) - 2 * across / size**2))
    return float(np.mean(found))


def _kernel(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    return (a @ b.T * (1 / a.shape[1]) + 1) ** 3


def precision_recall(generated: Tensor, real: Tensor, neighbours: int, progress: Progress) -> tuple[float, float]:
    """Share of the generated images in reach of real ones, and the reverse (Kynkäänniemi et al. 2019, section 2).

    An image reaches as far as its `neighbours`-th nearest one of its own kind. Distances are never N x N in memory.

    Args:
        generated: features (N, d), N above `neighbours`.
        real: features (M, d), M above `neighbours`.
        neighbours: how many.
        progress: takes how many blocks of distances are computed, and of how many.
    """
    blocks, done = sum(math.ceil(len(features) / _BATCH) for features in (generated, real)) ** 2, 0

    def distances(some: Tensor, centres: Tensor) -> Tensor:
        nonlocal done
        found = []
        for part in centres.split(_BATCH):
            found.append(torch.cdist(some, part))
            done += 1
            progress(done, blocks)
        return torch.cat(found, dim=1)

    def within_reach(points: Tensor, centres: Tensor) -> float:
        reach = torch.cat([distances(p, centres).kthvalue(neighbours + 1).values for p in centres.split(_BATCH)])
        within = torch.cat([(distances(part, centres) <= reach).any(dim=1) for part in points.split(_BATCH)])
        return float(within.float().mean())

    return within_reach(generated, real), within_reach(real, generated)


def inception_score(logits: Tensor) -> float:
    """Exponential of the mean divergence of an image's classes from all images' (Salimans et al. 2016, section 4).

    Args:
        logits: (N, classes). The score is the mean over random chunks of at least 5000 images, or of all.
    """
    n, chunks = len(logits), max(1, len(logits) // _IS_CHUNK)
    order = torch.from_numpy(np.random.RandomState(_SEED).permutation(n))
    scores = []
    for i in range(chunks):
        log_p = logits[order[i * n // chunks : (i + 1) * n // chunks]].double().log_softmax(dim=1)
        divergence = log_p.exp() * (log_p - log_p.exp().mean(dim=0, keepdim=True).log())
        scores.append(float(divergence.sum(dim=1).mean().exp()))
    return float(np.mean(scores))
