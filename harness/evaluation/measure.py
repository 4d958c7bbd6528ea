"""One evaluation of a checkpoint: sample, score, record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from harness.data.dataset import LoadedData
from harness.data.latents import reconstruction_distance
from harness.data.pixels import UINT8_RULE
from harness.data.vae import decoder
from harness.errors import CellFailedError, non_finite_in
from harness.evaluation.generate import Generator, Made, generate, load_weights
from harness.evaluation.memorisation import optimal_losses
from harness.evaluation.metrics import Setup, score
from harness.evaluation.parts import Origin, compiled_before
from harness.evaluation.pictures import save_grid, save_pairs
from harness.evaluation.watch import Watch
from harness.files import write_json
from harness.model.cost import count_cell
from harness.model.network import Network
from harness.runs import provenance
from harness.runs.cellruns import evaluation_key, split_key
from harness.runs.layout import TRAINING, meta_of
from harness.runs.state import Run
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Resources
from harness.training.checkpoint import CorruptCheckpointError
from harness.training.hooks import Hooks, Report, StoppedError
from harness.training.ranks import Ranks

#: Whether the network is compiled, given whether it was for the samples that are kept; None: there are none.
Choose = Callable[[bool | None], bool]


@dataclass(frozen=True)
class Subject:
    """A cell whose checkpoints are measured, and what the measuring needs.

    Attributes:
        cell: the cell.
        run: its run folder.
        dataset: its data, loaded.
        shared: the folder of autoencoders, latents and references.
        resources: names the files of Inception's weights and of the reference adm.
        loss_images: images per split that the optimal denoiser is measured on, as in `Recording`.
        conditions: what decides the last bits, device and sampling batch among it; the record holds it.
        hooks: tell when to stop, and take the progress.
        ranks: the processes that share the work.
    """

    cell: Cell
    run: Run
    dataset: LoadedData
    shared: Shared
    resources: Resources
    loss_images: int
    conditions: dict[str, Any]
    hooks: Hooks
    ranks: Ranks

    @property
    def device(self) -> str:
        """Where models and extractors run: "cpu" or "cuda"."""
        return str(self.conditions["device"])


def measure(subject: Subject, evaluation: Evaluation, step: int, choose: Choose = bool) -> dict[str, Any] | None:
    """Measure the weights of `step`, and write the record and a picture of samples.

    Every rank calls this; the first one writes. Samples and features that an earlier attempt made are used again, and
    so are samples of other evaluations that differ in scoring only.

    Args:
        subject: the cell.
        evaluation: how to sample and score.
        step: of the training.
        choose: see `Choose`; called on the first rank. By default the network is compiled as it was.

    Returns:
        The record, on the first rank; None on the others.

    Raises:
        CellFailedError: the weights are gone or damaged, or nothing can be measured.
        NonFiniteError: weights, samples, features or metrics hold values that are not finite.
        StoppedError: asked to stop; what is done is kept.
    """
    with non_finite_in(f"evaluation {evaluation_key(evaluation, step)}"):
        return _measure(subject, evaluation, step, choose)


def _measure(subject: Subject, evaluation: Evaluation, step: int, choose: Choose) -> dict[str, Any] | None:
    begun = time.monotonic()
    cell, run, key = subject.cell, subject.run, evaluation_key(evaluation, step)
    network = _weights(subject, evaluation, step)
    weights = subject.ranks.on_first(lambda: run.weights_checksum(step))
    origin = Origin(cell.id, evaluation, weights)
    compiled = subject.ranks.on_first(lambda: choose(compiled_before(run, key, origin)))
    if compiled:
        network.compile_regions()
    subject = replace(subject, conditions={**subject.conditions, "compile_sampling": "on" if compiled else "off"})
    with subject.ranks.together():
        decode = decoder(cell.data, subject.shared, subject.device)
        class_counts = np.bincount(subject.dataset.train.labels, minlength=cell.data.image_shape.classes)
        generator = Generator(network, cell, evaluation, subject.device, decode, class_counts, weights, compiled)
        setup = _setup(subject, key)
        extraction = setup.extraction(evaluation, cell.data)
    batch = subject.conditions["sampling_batch"]
    made = generate(generator, run, key, batch=batch, hooks=subject.hooks, ranks=subject.ranks)
    record = None
    with subject.ranks.together():
        if made is None:
            extraction.assist()  # while the first rank scores
        else:
            record = _record(subject, evaluation, step, weights, made, setup, begun)
    return record


def _record(
    subject: Subject, evaluation: Evaluation, step: int, weights: int | None, made: Made, setup: Setup, begun: float
) -> dict[str, Any]:
    """Score the samples, on the first rank, and write the record and the picture; `weights` is their checksum."""
    cell, run, key = subject.cell, subject.run, evaluation_key(evaluation, step)
    images, labels, drawn = made
    metrics = score(images, evaluation, cell.data, subject.dataset, setup)
    metrics |= optimal_losses(cell, subject.dataset, subject.loss_images, setup.device, setup.shared, setup.watch)
    if cell.data.vae:
        metrics["reconstruction_frechet"] = reconstruction_distance(cell.data, subject.shared, metrics)
    record = {
        **_about(subject, step, weights),
        "evaluation": evaluation.model_dump(mode="json", exclude={"at"}),
        "metrics": metrics,
        "uint8": UINT8_RULE,
        "drawn": drawn,  # the other samples were there, and `seconds` does not count them
        "seconds": round(time.monotonic() - begun, 3),
    }
    with subject.hooks.writing():
        save_grid(run, key, images, labels)
        if pairs := metrics.get("nearest_pairs"):
            save_pairs(run, key, images, subject.dataset.train.images, pairs)
        write_json(run.evaluation_file(key), record)
        run.remove_features(key)
    return record


def _about(subject: Subject, step: int, weights: int | None) -> dict[str, Any]:
    """What every record says of its cell and of how it was made; `weights` is their checksum."""
    cost = count_cell(subject.cell)
    return {
        "cell": subject.cell.id,
        "step": step,
        "weights": weights,
        "params": cost.params,
        "macs": cost.macs,
        "draws": meta_of(subject.run.weights_file(step)).get("draws", 1),
        "conditions": subject.conditions,
        "packages": provenance.packages(),
    }


def record_losses(subject: Subject, keys: list[str]) -> None:
    """Write the record of a cell that is not evaluated: its losses, which stand in its log, count as measured.

    Takes no samples and needs no extractor. Every rank calls this; the first one writes.

    Args:
        subject: the cell, trained.
        keys: of the records that are missing (see `harness.runs.cellruns.losses_key`).

    Raises:
        StoppedError: asked to stop.
    """
    run = subject.run
    with subject.ranks.together():
        for key in keys if subject.ranks.is_first else ():
            begun, step, setup = time.monotonic(), split_key(key)[1], _setup(subject, key)
            metrics = optimal_losses(
                subject.cell, subject.dataset, subject.loss_images, setup.device, setup.shared, setup.watch
            )
            record = {
                **_about(subject, step, run.weights_checksum(step)),
                "metrics": metrics,
                "seconds": round(time.monotonic() - begun, 3),
            }
            with subject.hooks.writing():
                write_json(run.evaluation_file(key), record)


def _weights(subject: Subject, evaluation: Evaluation, step: int) -> Network:
    run = subject.run
    try:
        return load_weights(run, subject.cell, step, ema=evaluation.ema, device=subject.device, ranks=subject.ranks)
    except FileNotFoundError:
        raise CellFailedError(f"the weights of step {step} are gone; kept: {run.weights_steps()}") from None
    except CorruptCheckpointError as error:
        if run.track != TRAINING:
            raise CellFailedError(
                f"{error}; without it, `launch` trains the cell anew where records are owed"
            ) from error
        with subject.hooks.writing():
            run.weights_file(step).unlink(missing_ok=True)
        raise CellFailedError(f"{error}; removed it, launch again with --retry to train it anew") from error


def _setup(subject: Subject, key: str) -> Setup:
    def report(value: Report) -> None:
        subject.hooks.report(value)
        if subject.hooks.should_stop():
            raise StoppedError("stopped while scoring; the next launch goes on there")

    cache = partial(subject.run.features_part, key)
    ranks, hooks = subject.ranks, subject.hooks
    watch = Watch(report, hooks.at_once)
    return Setup(subject.device, subject.resources, subject.shared, cache, watch, ranks, hooks.writing)
