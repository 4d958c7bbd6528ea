"""Cells -> rows with tokens, parameters, GMACs, training and sampling cost, disk, estimated time and state.

Needs neither the data nor the autoencoder nor a GPU, and allocates no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from harness.data.autoencoders import folder_name
from harness.launch.machine import default_slots, visible_gpus
from harness.model.cost import count_cell
from harness.runs.cellruns import CellRun
from harness.runs.log import TrainLog
from harness.runs.state import State
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.evaluation import Evaluation
from sweeps.grid import Sweep
from sweeps.protocols import Origin

Row = dict[str, Any]

#: Assumed speed of one CPU thread, until a finished cell of the study tells better: multiply-adds per second in matrix
#: products, and seconds of overhead per transformer block and forward-and-backward pass. Order of magnitude only.
ASSUMED_GMACS_PER_S = 25.0

ASSUMED_BLOCK_SECONDS = 0.8e-3

#: Assumed speed of one GPU, in 1e12 floating-point operations per second: a third of an A100's peak in bf16.
ASSUMED_TFLOPS = 100.0

#: A backward pass costs about two forward passes.
_BACKWARD = 2

_FLOAT = 4  # bytes

_STATES = 2  # a run keeps its two newest while it trains


@dataclass(frozen=True)
class Throughput:
    """What one GPU is taken to sustain, in 1e12 floating-point operations (2 * multiply-adds) per second.

    `source` says on whose word: "given", "measured on N finished cells" or "assumed".
    """

    tflops: float
    source: str

    def hours(self, gmacs: float) -> float:
        """GPU hours of so many 1e9 multiply-adds."""
        return 2 * gmacs * 1e9 / (self.tflops * 1e12) / 3600


def throughput(items: Sequence[CellRun], tflops: float | None = None) -> Throughput:
    """What one GPU sustains: as given, else as the study's cells that a GPU trained did, else assumed."""
    if tflops is not None:
        return Throughput(tflops, "given")
    rates = [rate for item in items if (rate := _measured_tflops(item)) is not None]
    if rates:
        return Throughput(median(rates), f"measured on {len(rates)} finished cell{'s' * (len(rates) > 1)}")
    return Throughput(ASSUMED_TFLOPS, "assumed")


def plan(sweep: Sweep, items: list[CellRun], tflops: float | None = None) -> list[Row]:
    """One row a cell.

    Args:
        sweep: the sweep.
        items: its cells and their runs.
        tflops: what one GPU sustains, in 1e12 floating-point operations per second; see `throughput`.

    Returns:
        Rows whose `estimated_s` is wall time on one slot of this machine, fitted to the study's finished cells if there
        are any; `gpu_hours` is one GPU's time for training and sampling at `tflops` (`throughput` says on whose word).
        Bytes on disk: `weights_bytes` (plain and averaged weights of every evaluated step), `states_bytes` (while it
        trains: weights, averages and two moments of the optimizer, twice), `samples_bytes` (generated images), and
        `latents_bytes` of the folder `latents`, which cells with the same data and autoencoder share; None where there
        are none, or where the number of images is not known without the data.
    """
    rate = throughput(items, tflops)
    on_gpu = sweep.resources.device != "cpu" and bool(visible_gpus())
    rows: list[Row] = []
    for item in items:
        cell = item.cell
        cost = count_cell(cell)
        gmacs = cost.macs / 1e9
        evaluations = sweep.evaluations_of(cell)
        train_gmacs = 3 * gmacs * cell.training.batch_size * cell.training.steps
        sampling_gmacs = sum(_sampling_passes(cell, e) for e in evaluations) * gmacs
        gpu_hours = rate.hours(train_gmacs + sampling_gmacs)
        kept = {step for evaluation in evaluations for step in evaluation.steps(cell.training.steps)}
        rows.append(
            {
                "id": cell.id,
                "name": item.name,
                "data": cell.data.name,
                **{key: getattr(cell.model, key, None) for key in ("block", "depth", "width", "heads", "patch_size")},
                "tokens": cell.tokens,
                "params": cost.params,
                "params_m": cost.params / 1e6,
                "gmacs": gmacs,
                "gflops": 2 * gmacs,
                "seed": cell.seed,
                "train_gmacs": train_gmacs,
                "sampling_gmacs": sampling_gmacs,
                "gpu_hours": gpu_hours,
                "tflops": rate.tflops,
                "throughput": rate.source,
                "weights_bytes": 2 * _FLOAT * cost.params * len(kept),
                "states_bytes": _STATES * 4 * _FLOAT * cost.params,
                "samples_bytes": sum(_sample_bytes(cell, e) for e in evaluations),
                "latents": folder_name(cell.data) if cell.data.vae else None,
                "latents_bytes": latents_bytes(cell.data),
                "estimated_s": 3600 * gpu_hours / sweep.resources.world
                if on_gpu
                else _assumed_seconds(cell, evaluations, gmacs),
                "evaluations": [_evaluation_row(*pair) for pair in zip(sweep.origins, evaluations, strict=True)],
                "state": item.now.state.value,
            }
        )
    scale = _measured_over_assumed(items, rows)
    for row in rows:
        row["estimated_s"] = round(row["estimated_s"] * scale, 1)
    return rows


def _evaluation_row(origin: Origin, evaluation: Evaluation) -> Row:
    protocol = origin.protocol.name if origin.protocol else None
    return {"id": evaluation.id, "protocol": protocol, **evaluation.model_dump(mode="json")}


def totals(sweep: Sweep, rows: list[Row]) -> Row:
    """Sums over the grid, and the wall time on the slots of this machine of what is not done."""
    gpus = [] if sweep.resources.device == "cpu" else visible_gpus()
    slots = default_slots(sweep.resources, gpus)
    left = [row["estimated_s"] for row in rows if row["state"] != State.DONE]
    latents = {row["latents"]: row["latents_bytes"] for row in rows if row["latents"] is not None}
    summed = ("train_gmacs", "sampling_gmacs", "gpu_hours", "weights_bytes", "samples_bytes")
    return {
        "cells": len(rows),
        **{key: sum(row[key] for row in rows) for key in summed},
        "tflops": rows[0]["tflops"],
        "throughput": rows[0]["throughput"],
        # a finished run keeps no state: at most the largest ones at once
        "states_bytes": sum(sorted((row["states_bytes"] for row in rows), reverse=True)[:slots]),
        "latents": len(latents),
        "latents_bytes": None if None in latents.values() else sum(latents.values()),
        "slots": slots,
        # cells start in order, each on the first free slot; no better than the sum over slots or the longest cell
        "estimated_s": round(max(sum(left) / slots, max(left, default=0.0)), 1),
    }


def latents_bytes(data: Data) -> int | None:
    """Disk of a data set's latents: float32 mean and deviation of every image and of its mirror image.

    None without an autoencoder, or when only the data tells how many images there are.
    """
    images = data.images
    if data.vae is None or images is None:
        return None
    return images * 2 * 2 * data.shape.channels * data.shape.size**2 * _FLOAT


def _sample_bytes(cell: Cell, evaluation: Evaluation) -> int:
    """Generated images, one byte a channel, kept for every evaluated step."""
    channels, size, _ = cell.data.image_shape
    return len(evaluation.steps(cell.training.steps)) * evaluation.samples * channels * size**2


def _measured_tflops(item: CellRun) -> float | None:
    """What each GPU of a finished cell sustained; None on a CPU, on changing numbers of them, or before it is done."""
    if item.now.state is not State.DONE:
        return None
    started = [a.started["conditions"] for a in item.run.attempts() if a.started and "conditions" in a.started]
    seconds = [row["seconds"] for row in TrainLog(item.run).rows() if row.get("seconds")]
    gpus = {conditions.get("ranks", 1) for conditions in started}
    if {conditions["device"] for conditions in started} != {"cuda"} or len(gpus) != 1 or not seconds:
        return None
    recipe = item.cell.training
    macs = count_cell(item.cell).macs
    gpu_seconds = float(seconds[-1]) * int(gpus.pop())
    return 2 * (1 + _BACKWARD) * macs * recipe.batch_size * recipe.steps / gpu_seconds / 1e12


def _sampling_passes(cell: Cell, evaluation: Evaluation) -> int:
    """As `sampling_passes`, over all training steps to measure at."""
    return len(evaluation.steps(cell.training.steps)) * sampling_passes(evaluation)


def sampling_passes(evaluation: Evaluation) -> int:
    """Forward passes of one image each, at one training step; guidance doubles them."""
    return evaluation.samples * evaluation.sampling_steps * (2 if evaluation.guidance != 1 else 1)


def _assumed_seconds(cell: Cell, evaluations: tuple[Evaluation, ...], gmacs: float) -> float:
    recipe = cell.training
    pass_seconds = ASSUMED_BLOCK_SECONDS * (cell.model.layers + 2)
    train = recipe.steps * (pass_seconds + (1 + _BACKWARD) * recipe.batch_size * gmacs / ASSUMED_GMACS_PER_S)
    images = sum(_sampling_passes(cell, e) for e in evaluations)
    return train + images * gmacs / ASSUMED_GMACS_PER_S


def _measured_over_assumed(items: list[CellRun], rows: list[Row]) -> float:
    """Median ratio over the finished cells; 1 when there are none."""
    done = [(item, row) for item, row in zip(items, rows, strict=True) if item.now.state is State.DONE]
    ratios = [seconds / row["estimated_s"] for item, row in done if (seconds := measured_seconds(item))]
    return median(ratios) if ratios else 1.0


def measured_seconds(item: CellRun) -> float | None:
    """Wall time of training and evaluating a cell, from its records."""
    trained = [row["seconds"] for row in TrainLog(item.run).rows() if "seconds" in row]
    records = [item.run.measured(key) for key in item.owed]
    if not trained or any(record is None for record in records):
        return None
    return float(trained[-1]) + sum(float(record["seconds"]) for record in records if record)
