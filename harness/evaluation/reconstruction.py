"""The error of an autoencoder alone: errors and distances of reconstructed held-out images."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.data.dataset import Images, LoadedData
from harness.data.draws import stream
from harness.data.pixels import require_finite_values, to_uint8
from harness.data.vae import DECODE_BATCH, Autoencoder
from harness.evaluation.features import Extraction
from harness.evaluation.frechet import FrechetTarget
from harness.evaluation.pictures import save_picture
from harness.evaluation.references import moments_of
from harness.training.hooks import Hooks

#: Held-out images in a row of the picture of reconstructions.
_SHOWN = 12


def reconstruction(
    autoencoder: Autoencoder,
    dataset: LoadedData,
    extractions: Iterable[Extraction],
    device: str,
    hooks: Hooks,
) -> dict[str, Any]:
    """How well held-out images survive encoding (to the mean) and decoding: a bound for any model of the latents.

    Returns:
        `samples`; `mean_absolute_error` in levels of 0..255; `psnr` in dB; `distances`: by extractor label, the
        Frechet distance of the reconstructions to their own originals (`held-out`, usually called rFD or rFID) and to
        the training images (`train`), and of the originals to the training images (`floor`).

    Raises:
        NonFiniteError: the autoencoder or an extractor gives values that are not finite.
    """
    images: Images = dataset.heldout
    rebuilt, absolute, squared, total = [], 0.0, 0.0, len(images.images)
    begun = time.monotonic()
    for first in range(0, total, DECODE_BATCH):
        batch = np.asarray(images.images[np.arange(first, min(first + DECODE_BATCH, total))])
        decoded = _rebuilt(autoencoder, batch, device, first)
        difference = decoded.astype(np.float64) - batch
        absolute, squared = absolute + np.abs(difference).sum(), squared + (difference**2).sum()
        rebuilt.append(decoded)
        done = first + len(batch)
        speed = done / max(time.monotonic() - begun, 1e-9)
        hooks.report({"stage": "reconstruct", "done": done, "total": total, "images_per_s": speed})
    values = total * math.prod(batch.shape[1:])
    return {
        "samples": total,
        "mean_absolute_error": round(float(absolute) / values, 4),
        "psnr": round(10 * math.log10(255**2 * values / float(squared)), 3) if squared else None,
        "distances": {
            extraction.label: _distances(np.concatenate(rebuilt), dataset, extraction) for extraction in extractions
        },
    }


def save_reconstructions(path: Path, autoencoder: Autoencoder, dataset: LoadedData, device: str) -> None:
    """Write a picture of random held-out images, and below each what the autoencoder makes of it.

    Raises:
        NonFiniteError: the autoencoder gives values that are not finite.
    """
    total = len(dataset.heldout.labels)
    chosen = np.sort(stream("reconstructions").permutation(total)[: 2 * _SHOWN])
    originals = np.asarray(dataset.heldout.images[chosen])
    pairs = np.concatenate([originals, _rebuilt(autoencoder, originals, device)])
    rows = [
        np.arange(first, min(first + _SHOWN, len(chosen))) + below
        for first in range(0, len(chosen), _SHOWN)
        for below in (0, len(chosen))
    ]
    save_picture(path, pairs, rows, min(_SHOWN, len(chosen)))


def _rebuilt(autoencoder: Autoencoder, images: NDArray[np.uint8], device: str, first: int = 0) -> NDArray[np.uint8]:
    """Images (n, H, W, channels), encoded to the mean and decoded; `first` is the place of the first, for errors."""
    mean = torch.from_numpy(autoencoder.moments(images)[:, 0]).to(device)
    require_finite_values(mean, "latents of held-out images", first)
    levels = to_uint8(autoencoder.decode(mean, 1.0), "reconstructed held-out images", first)
    return levels.permute(0, 2, 3, 1).cpu().numpy()


def _distances(rebuilt: NDArray[np.uint8], dataset: LoadedData, extraction: Extraction) -> dict[str, float]:
    decoded, heldout, train = (
        moments_of(images, extraction) for images in (rebuilt, dataset.heldout.images, dataset.train.images)
    )
    to_heldout, to_train = (FrechetTarget(real.mean, real.covariance) for real in (heldout, train))
    return {
        "held-out": to_heldout.terms_of(decoded).distance,
        "train": to_train.terms_of(decoded).distance,
        "floor": to_train.terms_of(heldout).distance,
    }
