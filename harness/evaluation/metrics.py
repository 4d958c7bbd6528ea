"""Score generated images against real ones, and record what was compared with what.

Features are extracted once, part by part. Frechet distances are computed from streaming statistics
(`harness.evaluation.statistics`); KID, precision, recall and inception score by torch-fidelity from the same features.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.data.dataset import ImageArray, LoadedData, Progress
from harness.errors import CellFailedError, InputError
from harness.evaluation import adm
from harness.evaluation.extractors import weights_of
from harness.evaluation.features import Extraction
from harness.evaluation.frechet import SAMPLES_PER_DIMENSION, FrechetTarget, Terms, extrapolate
from harness.evaluation.memorisation import nearest
from harness.evaluation.references import Reference, adm_reference, reference_of
from harness.evaluation.statistics import Blocks, Moments
from harness.evaluation.watch import UNWATCHED, Watch
from harness.runs.columns import metric_name
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.spec.evaluation import Evaluation, check_fits
from harness.spec.resources import Resources
from harness.training.ranks import Ranks

NEIGHBOURS = 3

#: The distance is recorded at every tenth of the samples.
_PREFIXES = 10

#: Disjoint folds, of two tenths each.
_FOLDS = 5

_KID_SUBSET = 1000

_IS_CHUNK = 5000

_PRC_BATCH = 250  # with 50,000 images, 1000 rows of distances would take 0.7 GB more

_SEED = 2020


@dataclass(frozen=True)
class _Generated:
    """What the metrics need of the generated images: sums for the distances, features for the rest."""

    pool: Tensor  # (N, d)
    logits: Tensor | None  # (N, classes)
    blocks: Blocks
    spatial: Blocks  # empty if the extractor gives no spatial features


@dataclass(frozen=True)
class Setup:
    """Where features are extracted, and where slow results are kept.

    Attributes:
        device: "cpu", "cuda" or "cuda:<index>"; where the extractor runs.
        resources: names the files of Inception's weights and of the reference adm.
        shared: where references are kept; None: they are not kept.
        cache: gives the file for the features of the part of `features.PART` images that begins at an index; used for
            slow extractors only. None: features are not kept.
        watch: takes the progress, and stops what takes long.
        ranks: this process, the first rank, and those that help by `Extraction.assist`. None: this process alone.
        writing: what features are written in, see `harness.training.hooks.Hooks`.
    """

    device: str = "cpu"
    resources: Resources = field(default_factory=Resources)
    shared: Shared | None = None
    cache: Callable[[int], Path] | None = None
    watch: Watch = UNWATCHED
    ranks: Ranks | None = None
    writing: Callable[[], AbstractContextManager[None]] = nullcontext

    def extraction(self, evaluation: Evaluation, data: Data) -> Extraction:
        """The extractor of an evaluation, on the device.

        Raises:
            InputError: it does not fit the data; its weights or the device are missing.
        """
        check_fits(evaluation.resolved(data), data)
        choice = evaluation.resolved(data).extractor
        assert choice is not None  # resolved() fills it in
        weights = weights_of(choice, data, self.resources, self.shared)
        return Extraction(choice, self.device, weights, self.ranks, self.writing, self.watch.at_once)


def score(
    images: ImageArray, evaluation: Evaluation, data: Data, dataset: LoadedData | None, setup: Setup | None = None
) -> dict[str, Any]:
    """Compare generated images with the real ones that `evaluation.reference` names.

    The same images give the same numbers, and the caller's random state does not change. Only one part of the images is
    in memory at a time. For 50,000 images at d = 2048 the features take 0.4 GB and the sums of ten blocks 0.34 GB; the
    total without the extractor is below 2 GB (`python -m tests.bench_memory` measures it).

    Args:
        images: generated, uint8 (N, H, W, C), levels 0..255, in the order of the samples.
        evaluation: names extractor and reference; its `samples` must be N.
        data: the data set the images imitate.
        dataset: the same, loaded; None where the reference is "adm", which needs none.
        setup: where features are computed and kept; by default they are computed on the CPU and not kept.

    Returns:
        Values by column name; None where one cannot be computed:

        - `samples`, `extractor`, `reference`;
        - `frechet`, its two terms, its predicted bias, its extrapolation to infinitely many samples, its mean and
          standard deviation over five disjoint folds (see `frechet`), and its floor (`references.Reference.floor`);
        - `frechet_train` and `frechet_heldout`, the distances to both splits, and how near the training images are
          (`memorisation.nearest`); not with an ADM reference;
        - `sfid` (Inception only);
        - `kid`, the mean over 10 to 100 subsets of at most 1000 images;
        - `precision` and `recall`, with k = 3, against at most 10,000 real images: the first ones, or taken evenly (see
          `Extractor.evenly`);
        - `inception_score`, the mean over chunks of at least 5000 images, on the extractor's own classes;
        - `nested`, the distance at every tenth of the samples, and `warnings`, a list of lines.

    Raises:
        InputError: images of a wrong type, shape or number; an extractor or reference that does not fit the data or
            whose file is missing.
        CellFailedError: all images are the same, so no metric is defined.
    """
    setup, evaluation = setup or Setup(), evaluation.resolved(data)
    extraction = setup.extraction(evaluation, data)
    try:
        setup.watch.progress("features")(0, evaluation.samples)
        _check_shape(images, evaluation, data)
        return _score(images, evaluation, data, dataset, setup, extraction)
    finally:  # the other ranks wait for it
        extraction.dismiss()


def _score(
    images: ImageArray,
    evaluation: Evaluation,
    data: Data,
    dataset: LoadedData | None,
    setup: Setup,
    extraction: Extraction,
) -> dict[str, Any]:
    of_adm, watch = evaluation.reference == "adm", setup.watch
    with watch.at_once():
        batch = adm.find(setup.resources.adm_reference, data.image_shape.size) if of_adm else None
    generated = _extract(images, extraction, setup.cache if extraction.slow else None, watch.progress("features"))

    @functools.cache
    def own(split: str) -> Reference:
        assert dataset is not None  # by the caller, where the reference is not an ADM batch
        return reference_of(dataset, split, data, extraction, setup.shared, watch)

    reference = adm_reference(batch, extraction, setup.shared, watch) if batch else own(evaluation.reference)
    record: dict[str, Any] = {"samples": len(images), "extractor": extraction.label, "reference": reference.label}
    record |= _frechet(generated, reference, watch)
    with watch.at_once():
        record |= _other_metrics(generated, reference, watch)
    record |= dict.fromkeys(("frechet_train", "frechet_heldout", "nearest_ratio", "copies"))
    if batch is None and dataset is not None:
        record |= _memorisation(generated, dataset, own, {evaluation.reference: record["frechet"]}, watch)
    record["warnings"] = [*_warnings(record, reference, generated), *extraction.doubts]
    return record


def _check_shape(images: ImageArray, evaluation: Evaluation, data: Data) -> None:
    shape = data.image_shape
    expected = (shape.size, shape.size, shape.channels)
    if len(images.shape) != 4 or tuple(images.shape[1:]) != expected:
        raise InputError(f"generated images must have shape (N, {', '.join(map(str, expected))}), got {images.shape}")
    if len(images) != evaluation.samples:
        raise InputError(f"evaluation.samples is {evaluation.samples}, but there are {len(images)} generated images")
    first = np.asarray(images[np.arange(1)])
    if first.dtype != np.uint8:
        raise InputError(f"generated images must be uint8 levels 0..255, got {first.dtype}")


def _extract(
    images: ImageArray, extraction: Extraction, cache: Callable[[int], Path] | None, progress: Progress
) -> _Generated:
    n = len(images)
    bounds = sorted({n * k // _PREFIXES for k in range(1, _PREFIXES + 1)} - {0})
    blocks, spatial, constant = Blocks(bounds), Blocks([n]), True
    pool: Tensor | None = None
    logits: Tensor | None = None
    first = np.asarray(images[np.arange(1)])
    for part, features in extraction.parts(images, cache, progress):
        constant = constant and bool((part == first).all())
        done = blocks.count
        pool, logits = _put(features.pool, pool, n, done), _put(features.logits, logits, n, done)
        blocks.add(features.pool.numpy())
        if features.spatial is not None:
            spatial.add(features.spatial.numpy())
    if constant:
        raise CellFailedError(f"all {n} generated images are the same image; no metric is defined")
    assert pool is not None
    return _Generated(pool, logits, blocks, spatial)


def _put(values: Tensor | None, into: Tensor | None, n: int, at: int) -> Tensor | None:
    """Write values (count, d) into a tensor (n, d) from row `at` on; joining pieces would take twice the memory."""
    if values is not None:
        into = values.new_empty(n, values.shape[1]) if into is None else into
        into[at : at + len(values)] = values
    return into


def _frechet(generated: _Generated, reference: Reference, watch: Watch) -> dict[str, Any]:
    """The distance and its uncertainty."""
    calls, progress = itertools.count(1), watch.progress("distances")

    def terms_of(moments: Moments) -> Terms:
        with watch.at_once():
            terms = reference.target.terms_of(moments)
        progress(next(calls), _PREFIXES + _FOLDS)
        return terms

    # beside the sums of the blocks, only one d x d matrix is in memory at a time
    nested = [(moments.count, terms_of(moments)) for moments in generated.blocks.prefixes() if moments.count >= 2]
    counts, distances = [count for count, _ in nested], [terms.distance for _, terms in nested]
    n, whole = nested[-1]
    limit = extrapolate(counts, distances, len(reference.mu))
    equal = n % _PREFIXES == 0  # folds of different sizes would not compare
    folds = [terms_of(fold).distance for fold in generated.blocks.folds(_PREFIXES // _FOLDS)] if equal else []
    with watch.at_once():
        spatial = FrechetTarget(*reference.spatial) if reference.spatial and generated.spatial.count else None
    return {
        "frechet": whole.distance,
        "frechet_mean_term": whole.mean,
        "frechet_cov_term": whole.covariance,
        "frechet_bias": whole.bias(n),
        "frechet_infinity": limit.limit if limit else None,
        "frechet_infinity_se": limit.standard_error if limit else None,
        "frechet_folds_mean": float(np.mean(folds)) if folds else None,
        "frechet_folds_sd": float(np.std(folds, ddof=1)) if folds else None,
        "frechet_fold_samples": n // _FOLDS if folds else None,
        "frechet_floor": reference.floor(n, watch),
        "sfid": spatial.terms_of(generated.spatial.whole).distance if spatial else None,
        "nested": [{"samples": count, "frechet": distance} for count, distance in zip(counts, distances, strict=True)],
    }


def _memorisation(
    generated: _Generated,
    dataset: LoadedData,
    own: Callable[[str], Reference],
    known: dict[str, float],
    watch: Watch,
) -> dict[str, Any]:
    """Distances to both splits, and how near the samples are to the training images.

    `known` holds the distances already measured, by split.
    """
    found: dict[str, Any] = {}
    for split, images, key in (("train", dataset.train, "train"), ("held-out", dataset.heldout, "heldout")):
        if len(images.images) < 2:
            continue
        reference = own(split)
        if split not in known:
            with watch.at_once():
                known[split] = reference.target.terms_of(generated.blocks.whole).distance
        found[f"frechet_{key}"] = known[split]
        if split == "train" and reference.complete:
            with watch.at_once():
                near = nearest(generated.pool, reference.features, watch.progress("nearest"))
            found |= {"nearest_ratio": near.ratio, "copies": near.copies, "nearest_pairs": near.pairs}
    return found


class _Counted(TorchFunctionMode):
    """Counts the calls of torch.cdist in here: precision and recall take long, and torch-fidelity tells nothing."""

    def __init__(self, calls: int, progress: Progress) -> None:
        super().__init__()
        self._done, self._calls, self._progress = 0, calls, progress

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and count it."""
        found = func(*args, **(kwargs or {}))
        if func is torch.cdist:
            self._done += 1
            self._progress(self._done, self._calls)
        return found


def _other_metrics(generated: _Generated, reference: Reference, watch: Watch) -> dict[str, Any]:
    """KID, precision, recall and inception score, by torch-fidelity.

    Precision and recall are of float32 distances. The ADM suite's own run in float16, and are up to .003 and .006 away.
    """
    # here, for a job that trains need not wait for all that it imports
    from torch_fidelity import KEY_METRIC_KID_MEAN, KEY_METRIC_PRECISION, KEY_METRIC_RECALL
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    n, real = len(generated.pool), reference.features
    subset = min(_KID_SUBSET, n, len(real))
    # every generated image is used about once; torch-fidelity's 100 would take longer than all the rest
    subsets = min(100, max(10, n // subset))
    options = {"kid_subset_size": subset, "kid_subsets": subsets, "rng_seed": _SEED, "verbose": False}
    watch.progress("kernel distance")(0, 0)
    kid = kid_features_to_metric(generated.pool, real, **options)
    neighbours = {}
    if min(n, len(reference.neighbours)) > NEIGHBOURS:
        # save_cpu_ram: distances in pieces, never N x N
        options = {"prc_neighborhood": NEIGHBOURS, "prc_batch_size": _PRC_BATCH, "save_cpu_ram": True, "verbose": False}
        blocks = sum(math.ceil(len(features) / _PRC_BATCH) for features in (generated.pool, reference.neighbours))
        with _Counted(blocks**2, watch.progress("precision")):
            neighbours = prc_features_to_metric(generated.pool, reference.neighbours, **options)
    return {
        "kid": _finite(kid[KEY_METRIC_KID_MEAN]),
        "precision": _finite(neighbours.get(KEY_METRIC_PRECISION)),
        "recall": _finite(neighbours.get(KEY_METRIC_RECALL)),
        "inception_score": None if generated.logits is None else _finite(_inception_score(generated.logits)),
    }


def _inception_score(logits: Tensor) -> float:
    """Shuffles and splits as torch-fidelity does, but calls it per chunk: it copies all of its input to float64."""
    from torch_fidelity import KEY_METRIC_ISC_MEAN
    from torch_fidelity.metric_isc import isc_features_to_metric

    n, chunks = len(logits), max(1, len(logits) // _IS_CHUNK)
    order = torch.from_numpy(np.random.RandomState(_SEED).permutation(n))
    scores = [
        isc_features_to_metric(logits[order[i * n // chunks : (i + 1) * n // chunks]], splits=1, shuffle=False)
        for i in range(chunks)
    ]
    return float(np.mean([chunk[KEY_METRIC_ISC_MEAN] for chunk in scores]))


def _warnings(record: dict[str, Any], reference: Reference, generated: _Generated) -> list[str]:
    lines = []
    n, dims = generated.pool.shape
    name, enough = metric_name(str(record["extractor"])), SAMPLES_PER_DIMENSION * dims
    own = reference.moments is not None  # an ADM batch does not say how many images its statistics are from
    for count, what in ((n, "generated"), (reference.count if own else enough, "real")):
        if count < enough:
            lines.append(
                f"{name} from {count} {what} images is biased upward, by an amount of order 1/N: fewer than five times "
                f"the {dims} feature dimensions ({enough}); compare it at the same N only"
            )
    metrics = ["frechet", "kid", "precision", "recall", *([] if generated.logits is None else ["inception_score"])]
    if missing := [key for key in metrics if record[key] is None]:
        lines.append(f"not computable from {n} generated and {reference.count} real images: {', '.join(missing)}")
    if own and record["frechet_floor"] is None:
        lines.append(
            f"no real-vs-real floor at N = {n}: it takes twice as many real images, the reference has {reference.count}"
        )
    return lines


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
