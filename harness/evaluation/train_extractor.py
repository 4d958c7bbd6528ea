"""Train a feature extractor and write its weights with a card: `python -m harness.evaluation.train_extractor NAME`.

A plain classifier learns to ignore noise and blur, which do not change the class; an extractor must notice them. So
half of the training images are corrupted, and a second head, dropped after training, predicts the strength of noise and
blur from the same 64 features. A third term of the loss pulls the features towards zero mean and unit covariance:
distances then depend on all of them, not only on the few that separate the classes best.

The same torch version on the same kind of processor gives the same bits; others give the same quality.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.data.batches import PixelBatches
from harness.data.dataset import LoadedData, Progress, Source
from harness.data.sources import load
from harness.errors import non_finite_in
from harness.evaluation.classifier import (
    ARCHITECTURES,
    FEATURE_DIM,
    SHIPPED,
    WEIGHTS_FOLDER,
    Architecture,
    Classifier,
    content_hash,
    extract,
)
from harness.evaluation.extractors import exact_convolutions
from harness.evaluation.frechet import frechet_distance, statistics
from harness.files import at_home
from harness.spec.data import Data
from harness.training import checkpoint


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: AdamW with warm-up and cosine decay, and a loss of three terms.

    Attributes:
        steps: optimiser steps.
        batch_size: images per step, drawn with replacement.
        learning_rate: the highest rate, reached after a warm-up over a tenth of the steps.
        weight_decay: AdamW's.
        dropout: share of the features set to 0 before the two heads.
        noise: highest standard deviation of the added noise, in units of the model's range [-1, 1].
        corruption_weight: weight of the corruption head's squared error.
        covariance_weight: weight of the squared distance of mean and covariance from 0 and identity, per feature.
        seed: decides initial weights, batches and corruption.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    dropout: float = 0.2
    noise: float = 0.5
    corruption_weight: float = 1.0
    covariance_weight: float = 0.1
    seed: int = 0


RECIPES: dict[str, Recipe] = {
    "digits-cnn": Recipe(steps=1000),
    "fashion-cnn": Recipe(steps=3000),
}


def train(
    architecture: Architecture,
    dataset: LoadedData,
    recipe: Recipe,
    *,
    device: str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Classifier:
    """Train a classifier on the train split, on one CPU thread or a GPU; the caller's RNG and threads are restored.

    Args:
        architecture: of the classifier.
        dataset: images, with the labels that it learns unless it learns quarter turns.
        recipe: how to train it.
        device: "cpu" or "cuda".
        progress: called after every step.

    Returns:
        The classifier in evaluation mode.

    Raises:
        NonFiniteError: the weights became non-finite.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are split by thread, so the number of threads decides the last bits
    try:
        with torch.random.fork_rng(devices=[] if device == "cpu" else None), exact_convolutions():
            torch.manual_seed(recipe.seed)
            return _train(Classifier(architecture), architecture, dataset, recipe, device, progress)
    finally:
        torch.set_num_threads(threads)


def _train(
    network: Classifier,
    architecture: Architecture,
    dataset: LoadedData,
    recipe: Recipe,
    device: str,
    progress: Progress,
) -> Classifier:
    images = PixelBatches(dataset.train, device)
    corruption_head = nn.Linear(FEATURE_DIM, 2).to(device)  # noise, blur; both in [0, 1]
    network = network.to(device)
    parameters = [*network.parameters(), *corruption_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    warm_up = max(1, recipe.steps // 10)

    def rate(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, recipe.steps - warm_up))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in range(recipe.steps):
        chosen = torch.randint(len(images.labels), (recipe.batch_size,))
        x, labels = images.x0(chosen.numpy(), None, None).contiguous(), images.labels[chosen.to(device)]
        if architecture.turns:
            labels = torch.randint(4, (recipe.batch_size,)).to(device)
            x = turned(x, labels)
        x, levels = corrupt(x, recipe.noise)
        features = network(x)[0]  # (batch, 64)
        hidden = F.silu(F.dropout(features, recipe.dropout))
        loss = (
            F.cross_entropy(network.classes(hidden), labels)
            + recipe.corruption_weight * F.mse_loss(corruption_head(hidden), levels)
            + recipe.covariance_weight * _distance_from_standard(features)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress(step + 1, recipe.steps)
    with non_finite_in(f"the classifier after step {recipe.steps}"):
        checkpoint.require_finite(network.state_dict())
    return network.requires_grad_(False).eval()


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Images (N, C, S, S), each turned by its number (N,) of quarters."""
    whole = torch.stack([images.rot90(quarters, (2, 3)) for quarters in range(4)])
    return whole[turns, torch.arange(len(images), device=images.device)]


def _distance_from_standard(features: Tensor) -> Tensor:
    """Squared distance of mean and covariance of a batch (N, d) from 0 and identity, per feature."""
    mean = features.mean(dim=0)
    centred = features - mean
    excess = centred.T @ centred / (len(features) - 1) - torch.eye(features.shape[1], device=features.device)
    return (mean.square().sum() + excess.square().sum()) / features.shape[1]


def corrupt(images: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Blur half of the images and add noise to half of them, independently and at random strength.

    Args:
        images: float (N, C, H, W) in [-1, 1].
        noise: standard deviation of the strongest noise.

    Returns:
        Images in [-1, 1], and their levels (N, 2): noise and blur, 0 for none, 1 for the strongest.
    """
    levels = torch.rand(len(images), 2) * (torch.rand(len(images), 2) < 0.5)
    levels, normal = levels.to(images.device), torch.randn(images.shape).to(images.device)
    sigma, mix = (level[:, None, None, None] for level in levels.unbind(1))
    x = images + mix * (blur(images) - images)
    return (x + noise * sigma * normal).clamp(-1, 1), levels


def blur(images: Tensor) -> Tensor:
    """Binomial 3x3 blur (1 2 1) of images (N, C, H, W), edges repeated."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=images.dtype, device=images.device)
    kernel = torch.outer(line, line).expand(images.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=images.shape[1])


def heldout_accuracy(network: Classifier, dataset: LoadedData, *, turns: bool = False) -> float:
    """Share of held-out images whose class is found; with `turns`, of their four quarter turns."""
    images, labels = dataset.heldout.array(), dataset.heldout.labels
    if not turns:
        return accuracy(extract(network, images)[1], labels)
    return float(np.mean([np.mean(extract(network, np.rot90(images, k, (1, 2)))[1].argmax(1) == k) for k in range(4)]))


def accuracy(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Share of images whose largest logit is their class."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def make_card(
    name: str, architecture: Architecture, network: Classifier, dataset: LoadedData, recipe: Recipe
) -> dict[str, Any]:
    """Measure a classifier and describe it.

    Returns:
        The card. Its `floors` are Frechet distances between real images: the lowest that generated images can be
        expected to reach at these numbers of images.
    """
    train_features, _ = extract(network, dataset.train.array())
    heldout_features, _ = extract(network, dataset.heldout.array())
    half = len(train_features) // 2
    spectrum = np.linalg.eigvalsh(statistics(train_features)[1])
    return {
        "name": name,
        "version": 1,
        "content_hash": content_hash(network.state_dict()),
        "data": dataset.name,
        "data_fingerprint": dataset.fingerprint,
        "architecture": f"3x3 convolutions {architecture.widths} with SiLU, 2x2 average pooling between them, "
        f"linear features, SiLU, linear classes",
        "parameters": sum(p.numel() for p in network.parameters()),
        "feature_dim": FEATURE_DIM,
        "heldout_accuracy": heldout_accuracy(network, dataset, turns=architecture.turns),
        "covariance_rank": int(np.linalg.matrix_rank(statistics(train_features)[1], hermitian=True)),
        "covariance_condition": float(f"{spectrum[-1] / spectrum[0]:.4g}") if spectrum[0] > 0 else None,
        "floors": [
            _floor("held-out vs train", heldout_features, train_features),
            _floor("first half of train vs second half", train_features[:half], train_features[half:]),
        ],
        "recipe": vars(recipe),
        "torch": torch.__version__,
        "command": f"python -m harness.evaluation.train_extractor {name}",
    }


def _floor(what: str, one: NDArray[np.float64], other: NDArray[np.float64]) -> dict[str, Any]:
    distance = frechet_distance(*statistics(one), *statistics(other))
    return {"what": what, "samples": [len(one), len(other)], "frechet": float(f"{distance:.6g}")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train a feature extractor and write its weights with a card.")
    parser.add_argument("name", choices=sorted(ARCHITECTURES))
    parser.add_argument("--data-folder", type=lambda text: Path(at_home(text)), help="folder with the data set's files")
    parser.add_argument(
        "--output",
        type=lambda text: Path(at_home(text)),
        default=WEIGHTS_FOLDER,
        help="folder to write NAME.safetensors into",
    )
    options = parser.parse_args(arguments)
    name: str = options.name

    dataset, architecture = load(Data(name=SHIPPED[name]), Source(options.data_folder)), ARCHITECTURES[name]
    network = train(architecture, dataset, RECIPES[name])
    card = make_card(name, architecture, network, dataset, RECIPES[name])
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / f"{name}.safetensors"
    save_file(network.state_dict(), file, {"card": json.dumps(card, sort_keys=True)})
    file.chmod(0o644)  # safetensors writes files that only the owner can read
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
