"""Whether a model copies its training images: the distance to the nearest ones, and the loss of a pure memoriser.

On small data a falling Frechet distance may mean copying: copies of the training set score best.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.batches import Batches, batches
from harness.data.dataset import LoadedData, Progress
from harness.diffusion.objective import Objective, build
from harness.errors import non_finite_in
from harness.evaluation.references import once
from harness.evaluation.watch import UNWATCHED, Watch
from harness.files import read_json, write_json
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.diffusion import LOSS_BINS
from harness.spec.identity import canonical_json
from harness.training.losses import measure_losses

#: A sample is a copy if its distance to the nearest training image is below this share of that to the second nearest
#: (Yoon, Choi, Kwon & Ryu 2023, "Diffusion probabilistic models generalize when they fail to memorize").
COPY_RATIO = 1 / 3

#: Samples that a picture shows beside their nearest training image: so many most alike, and as many others.
SHOWN = 10

#: The optimal denoiser compares every input with every training image. With more images than this (mirror images
#: count) its loss is not measured.
MOST_IMAGES = 100_000

#: Nor with more values than this: it holds all training images in memory, 2 GB at most.
_MOST_VALUES = 2**29

_FORMAT = 1

#: Distances in memory at once.
_CHUNK_VALUES = 2**22

#: Training images that the optimal denoiser takes at once.
_POINTS = 4096


@dataclass(frozen=True)
class Nearest:
    """How near samples are to training images.

    Attributes:
        ratio: median over the samples of: distance to the nearest divided by distance to the second nearest.
        copies: share of the samples that have a ratio below 1/3 or equal a training image.
        pairs: some samples and the training image that is nearest to each, by index: the `SHOWN` with the smallest
            ratio, the smallest first, then as many spread evenly over all samples.
    """

    ratio: float
    copies: float
    pairs: list[tuple[int, int]]


def nearest(samples: Tensor, train: Tensor, progress: Progress = lambda done, total: None) -> Nearest:
    """Compare the features of samples (N, d) with those of all training images (M, d); M is at least 2."""
    found, who = [], []
    reference = train.double()
    rows = max(1, _CHUNK_VALUES // len(train))
    for start in range(0, len(samples), rows):
        some = samples[start : start + rows].double()
        near = torch.cdist(some, reference).topk(2, largest=False).indices  # (rows, 2)
        # computed again from differences: cdist multiplies matrices, which puts a copy 1e-6 away from itself
        distances, order = (some[:, None] - reference[near]).norm(dim=2).sort(dim=1)
        found.append(distances)
        who.append(near.gather(1, order)[:, 0])
        progress(start + len(some), len(samples))
    first, second = torch.cat(found).unbind(1)
    ratio = torch.where(first > 0, first / second, 0.0)  # 0 / 0 if two training images equal the sample
    count, owners = min(SHOWN, len(samples)), torch.cat(who)
    shown = torch.cat([ratio.argsort(stable=True)[:count], torch.arange(count) * len(samples) // count])
    pairs = [(int(sample), int(owners[sample])) for sample in shown]
    return Nearest(float(ratio.median()), float((ratio < COPY_RATIO).double().mean()), pairs)


class OptimalDenoiser:
    """The prediction with the least error on the training images, in closed form: a pure memoriser.

    With x_t = sqrt(a) x_0 + sqrt(b) noise, image i has the weight w_i ~ exp(-|x_t - sqrt(a) x_i|^2 / (2 b)); the best
    x_0 is the weighted mean, and the noise follows from it. With labels, only images of the same class count.

    Args:
        images: float32 (M, C, S, S), as the network sees them.
        labels: (M,); None without classes.
        objective: gives the target and the noise levels.
    """

    def __init__(self, images: Tensor, labels: Tensor | None, objective: Objective) -> None:
        self._images, self._labels, self._objective = images, labels, objective

    def __call__(self, xt: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The expected target (N, C, S, S) of the objective, given xt (N, C, S, S), times t (N,) and labels y (N,)."""
        x = xt.double().flatten(1)  # (N, D)
        share, rest = (variance[:, None] for variance in self._objective.variances(t))  # (N, 1) each
        largest = x.new_full((len(x), 1), -torch.inf)
        weights, weighted = torch.zeros_like(largest), torch.zeros_like(x)
        for start in range(0, len(self._images), _POINTS):
            points = self._images[start : start + _POINTS].double().flatten(1)  # (P, D)
            squares = x.square().sum(1, keepdim=True) + share * points.square().sum(1)
            logits = (share.sqrt() * (x @ points.T) - squares / 2) / rest  # (N, P)
            if self._labels is not None and y is not None:
                logits = logits.masked_fill(self._labels[start : start + _POINTS] != y[:, None], -torch.inf)
            new = torch.maximum(largest, logits.amax(1, keepdim=True))
            new_or_0 = torch.where(new > -torch.inf, new, 0.0)  # no image of this class so far
            before, now = (largest - new_or_0).exp(), (logits - new_or_0).exp()
            weights = before * weights + now.sum(1, keepdim=True)
            weighted = before * weighted + now @ points
            largest = new
        x0 = weighted / weights.clamp_min(1.0)  # below 1 only if no image has the label; then it is 0
        noise = (x - share.sqrt() * x0) / rest.sqrt()
        return self._objective.target(x0, noise).reshape(xt.shape).float()


def optimal_losses(
    cell: Cell,
    dataset: LoadedData,
    loss_images: int,
    device: str = "cpu",
    shared: Shared | None = None,
    watch: Watch = UNWATCHED,
) -> dict[str, float | None]:
    """Loss of the optimal denoiser of the training images on both splits, measured as by `measure_losses`.

    Cells with the same data and diffusion share it, so it is kept beside the references.

    Args:
        cell: for its data and diffusion.
        dataset: its images.
        loss_images: images per split, as in `Recording`.
        device: where it is computed.
        shared: where the result is kept; None: nowhere.
        watch: see `references.once`.

    Returns:
        `loss_optimal_train` and `loss_optimal_heldout`. None for latents, which are drawn anew at every step, and for
        more than 100,000 images or 2 GB of them; the second also where it has no bound (`Objective.keeps_noise`).
    """
    count = len(dataset.train.labels) * (2 if cell.data.horizontal_flips else 1)
    shape = cell.data.image_shape
    values = count * shape.channels * shape.size**2
    if cell.data.vae is not None or count > MOST_IMAGES or values > _MOST_VALUES:
        return dict.fromkeys(("loss_optimal_train", "loss_optimal_heldout"))

    def make() -> dict[str, Any]:
        data = batches(dataset, device)
        objective = build(cell.diffusion)
        denoiser = OptimalDenoiser(*_points(cell, data.train), objective)
        calls, progress = itertools.count(), watch.progress("optimal loss")

        def counted(xt: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
            progress(next(calls), len(data) * LOSS_BINS)
            return denoiser(xt, t, y)

        with non_finite_in("the optimal denoiser"), watch.at_once():
            losses = measure_losses(counted, cell, data, loss_images)
        finite = {"train", "heldout"} if objective.keeps_noise else {"train"}
        return {f"loss_optimal_{name}": losses[f"loss_{name}"] if name in finite else None for name in data._fields}

    described = f"{_FORMAT} {canonical_json(cell.data)} {dataset.fingerprint} {canonical_json(cell.diffusion)}"
    described += f" {loss_images} {LOSS_BINS}"
    key = hashlib.sha256(described.encode()).hexdigest()[:12]
    folder = shared.reference_folder(f"{cell.data.name}-optimal-denoiser-{key}") if shared else None

    def read(folder: Path) -> dict[str, Any] | None:
        return read_json(folder / "losses.json", ("loss_optimal_train", "loss_optimal_heldout"))

    def write(folder: Path, losses: dict[str, Any]) -> None:
        write_json(folder / "losses.json", losses)

    return once(folder, "measuring the optimal denoiser", read, make, write, watch)


def _points(cell: Cell, train: Batches) -> tuple[Tensor, Tensor | None]:
    """The training images as the model sees them (with mirror images if it flips), and their labels."""
    indices = np.arange(len(train.labels))
    images, labels = train.x0(indices, None, None), train.labels
    if cell.data.horizontal_flips:
        images = torch.cat([images, train.x0(indices, np.ones(len(indices), dtype=bool), None)])
        labels = torch.cat([labels, labels])
    return images, labels if cell.data.shape.classes else None
