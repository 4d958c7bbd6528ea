"""Score generated images against real ones with torch-fidelity, and say in the record what was compared with what."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset
from torch_fidelity import (
    KEY_METRIC_FID,
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    calculate_metrics,
)

from harness.cell import Data, Evaluation
from harness.data.sources import Dataset, ImageArray
from harness.errors import CellFailedError, InputError
from harness.evaluation import inception
from harness.evaluation.extractors import check_fits, extractor_label, feature_dim

#: The weights behind the published FIDs.
PUBLISHED_INCEPTION = f"{inception.NAME}@{inception.PUBLISHED}"

NEIGHBOURS = 3
_KID_SUBSET = 1000
_IS_CHUNK = 5000
_BATCH = 500
_INCEPTION_BATCH = 64  # it sees every image at 299 x 299
_PRC_BATCH = 1000
_PRC_REFERENCE = 10_000  # as the ADM suite; the cost grows with the square
_SEED = 2020


class _ThreeChannels(TorchDataset[Tensor]):
    """Images as torch-fidelity takes them: bare uint8 tensors (3, H, W); grey is repeated."""

    def __init__(self, images: ImageArray) -> None:
        self.images = images  # (N, H, W, C)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = torch.from_numpy(np.ascontiguousarray(self.images[index].transpose(2, 0, 1)))
        return image.expand(3, -1, -1)


def metric_name(extractor: str) -> str:
    """Name of the Frechet distance in a feature space: FID for the published Inception weights, FD-<extractor> else.

    Args:
        extractor: name of an extractor, or the label `name@hash` of a record.
    """
    return "FID" if extractor == PUBLISHED_INCEPTION else f"FD-{extractor.partition('@')[0]}"


def score(
    images: NDArray[np.uint8],
    evaluation: Evaluation,
    data: Data,
    dataset: Dataset,
    device: str = "cpu",
    inception_weights: str | None = None,
) -> dict[str, object]:
    """Compare generated images with the real ones that `evaluation.reference` names.

    The same images give the same numbers, and the caller's random state is left alone.

    Args:
        images: generated, uint8 (N, H, W, C), levels 0..255.
        evaluation: names extractor and reference; its `samples` must be N.
        data: the data set the images imitate.
        dataset: the same, loaded.
        device: "cpu", "cuda" or "cuda:<index>"; where the extractor runs.
        inception_weights: the file, for the extractor inception-v3-compat; see `harness.evaluation.inception`.

    Returns:
        Under the names of `harness.records`, None where it cannot be computed: `samples`, `extractor`, `reference`,
        `frechet`, `kid` (mean over 10 to 100 subsets of at most 1000 images), `precision` and `recall` (k = 3, against
        the first 10,000 real images at most, or with Inception as many taken evenly), `inception_score` (mean over
        chunks of at least 5000 images, on the extractor's own classes). And `warnings`, a list of lines.

    Raises:
        InputError: images of another type, shape or number; an extractor that does not fit the data,
            or whose weights are not there.
        CellFailedError: all images are the same, so that there is no distribution to measure.
    """
    evaluation = evaluation.resolved(data)
    assert evaluation.extractor is not None  # resolved() fills it in
    check_fits(evaluation.extractor, data)
    _check_images(images, evaluation, data)
    if evaluation.reference == "adm":
        raise InputError('evaluation.reference: "adm" cannot be compared with yet; allowed: train, held-out')
    real = dataset.train if evaluation.reference == "train" else dataset.heldout
    n, n_real = len(images), len(real.images)
    subset = min(_KID_SUBSET, n, n_real)
    # Enough to use every generated image about once; torch-fidelity's 100 would take longer than all the rest.
    subsets = min(100, max(10, n // subset))

    weights = inception.find_weights(inception_weights) if evaluation.extractor == inception.NAME else None
    reference = real.images[:_PRC_REFERENCE]
    if weights is not None:
        inception.check_weights(weights)
        # image folders come class by class, so the first ones would be of a few classes
        reference = real.images[:: max(1, n_real // _PRC_REFERENCE)][:_PRC_REFERENCE]

    common = {
        "feature_extractor": evaluation.extractor,
        "feature_extractor_weights_path": None if weights is None else str(weights),
        "rng_seed": _SEED,
        "batch_size": _BATCH if weights is None else _INCEPTION_BATCH,
        "cuda": device != "cpu",
        "save_cpu_ram": True,  # no loader workers, and distances in pieces
        "cache": False,  # its key knows neither the weights nor the number of images
        "verbose": False,
    }
    generated = _ThreeChannels(images)
    # torch-fidelity's data loader draws from the global RNG; TensorFloat-32 would move Inception's features
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.random.fork_rng(devices=[]), _on(device), exact:
        values = calculate_metrics(
            input1=generated,
            input2=_ThreeChannels(real.images),
            fid=True,
            kid=True,
            kid_subset_size=subset,
            kid_subsets=subsets,
            isc=True,
            isc_splits=max(1, n // _IS_CHUNK),
            **common,
        )
        if min(n, n_real) > NEIGHBOURS:
            values |= calculate_metrics(
                input1=generated,
                input2=_ThreeChannels(reference),
                prc=True,
                prc_neighborhood=NEIGHBOURS,
                prc_batch_size=_PRC_BATCH,
                **common,
            )
    record: dict[str, object] = {
        "samples": n,
        "extractor": extractor_label(evaluation.extractor, inception_weights),
        "reference": f"{dataset.name}/{evaluation.reference}({n_real})@{dataset.fingerprint[:8]}",
        "frechet": _finite(values.get(KEY_METRIC_FID)),
        "kid": _finite(values.get(KEY_METRIC_KID_MEAN)),
        "precision": _finite(values.get(KEY_METRIC_PRECISION)),
        "recall": _finite(values.get(KEY_METRIC_RECALL)),
        "inception_score": _finite(values.get(KEY_METRIC_ISC_MEAN)),
    }
    record["warnings"] = _warnings(record, n, n_real, evaluation.extractor)
    return record


def _check_images(images: NDArray[np.uint8], evaluation: Evaluation, data: Data) -> None:
    shape = data.image_shape
    expected = (shape.size, shape.size, shape.channels)
    if images.dtype != np.uint8:
        raise InputError(f"generated images must be uint8 levels 0..255, got {images.dtype}")
    if images.ndim != 4 or images.shape[1:] != expected:
        raise InputError(f"generated images must have shape (N, {', '.join(map(str, expected))}), got {images.shape}")
    if len(images) != evaluation.samples:
        raise InputError(f"evaluation.samples is {evaluation.samples}, but there are {len(images)} generated images")
    if (images == images[0]).all():
        raise CellFailedError(f"all {len(images)} generated images are the same image; no metric is defined")


def _warnings(record: dict[str, object], n: int, n_real: int, extractor: str) -> list[str]:
    lines = []
    name, enough = metric_name(str(record["extractor"])), 5 * feature_dim(extractor)
    for count, what in ((n, "generated"), (n_real, "real")):
        if count < enough:
            lines.append(
                f"{name} from {count} {what} images is biased upward, by an amount of order 1/N: fewer than five times "
                f"the {feature_dim(extractor)} feature dimensions ({enough}); compare it at the same N only"
            )
    missing = [key for key, value in record.items() if value is None]
    if missing:
        lines.append(f"not computable from {n} generated and {n_real} real images: {', '.join(missing)}")
    return lines


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _on(device: str) -> AbstractContextManager[object]:
    """Torch-fidelity knows "the current GPU" only."""
    if device == "cpu":
        return nullcontext()
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise InputError(f"device {device!r} is not available here; allowed: cpu, cuda, cuda:<index>")
    return torch.cuda.device(device)
