"""Cells -> rows with tokens, parameters, GMACs, training and sampling cost, disk, estimated time and state.

Needs neither the data nor the autoencoder nor a GPU, and allocates no weights.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Any

from harness.data.autoencoders import folder_name
from harness.data.latents import is_encoded
from harness.data.vae_cost import vae_cost
from harness.launch.site import LONGEST_ON_CORES, Course, Planned, Site, course, divided, site_of, with_gpus
from harness.model.cost import count_cell
from harness.runs.cellruns import CellRun
from harness.runs.log import TrainLog
from harness.runs.speed import train_tflops
from harness.runs.state import State
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.diffusion import DiffusionSpec
from harness.spec.evaluation import EXTRACTORS, Evaluation
from harness.spec.resources import Resources
from sweeps.grid import Sweep
from sweeps.protocols import Origin

Row = dict[str, Any]

#: Assumed speed of one CPU thread, until a finished cell of the study tells better: multiply-adds per second in matrix
#: products, and seconds of overhead per transformer block and forward-and-backward pass. Order of magnitude only.
ASSUMED_GMACS_PER_S = 25.0

ASSUMED_BLOCK_SECONDS = 0.8e-3

#: Assumed speed of one GPU, in 1e12 floating-point operations per second: a third of an A100's peak in bf16.
ASSUMED_TFLOPS = 100.0


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


def plan(
    sweep: Sweep,
    items: list[CellRun],
    tflops: float | None = None,
    gpus: int | None = None,
    shared: Shared | None = None,
) -> list[Row]:
    """One row a cell.

    Args:
        sweep: the sweep.
        items: its cells and their runs.
        tflops: what one GPU sustains, in 1e12 floating-point operations per second; see `throughput`.
        gpus: how many the machine has on which it is to run; None: as many as this one.
        shared: the folder in which encoded images are found; None: there are none.

    Returns:
        Rows whose `estimated_s` is wall time of the cell at the `site`, fitted to the study's finished cells if some
        ran on the same kind of device (`time_source` says by what); `measured_s` is the wall time that a finished cell
        took, None for others; `share` is the share of the site that the cell takes. `gpu_hours` is one GPU's
        time at `tflops` (`throughput` says on whose word) for training, sampling, decoding by the autoencoder and
        scoring.
        Bytes on disk: `weights_bytes` (plain and averaged weights of every evaluated step), `states_bytes` (while it
        trains: weights, averages and two moments of the optimizer, twice), `samples_bytes` (generated images), and
        `latents_bytes` of the folder `latents`, which cells with the same data and autoencoder share; None where there
        are none, or where the number of images is not known without the data. `encoding_gmacs` is what it takes to
        make that folder, once; 0 where it is made.
    """
    rate = throughput(items, tflops)
    site = site_of(sweep.resources, gpus)
    prices: dict[Hashable, Row] = {}  # of cells that differ in their seeds alone
    rows = []
    for item in items:
        cell = item.cell
        kind = (cell.model, cell.diffusion, cell.data, cell.training)
        if kind not in prices:
            prices[kind] = _price(sweep, cell, rate, shared)
        measured = measured_seconds(item) if item.now.state is State.DONE else None
        about = {"id": cell.id, "name": item.name, "seed": cell.seed, "state": item.now.state.value}
        rows.append({**about, "measured_s": measured, **prices[kind]})
    _estimate(sweep, items, rows, site)
    on_cores = not any(site.has_gpu(sweep.resources_of(item.cell)) for item in items)
    may_assume = on_cores and sweep.resources.device == "auto" and gpus is None
    if may_assume and _course(sweep, rows).seconds > LONGEST_ON_CORES:
        _estimate(sweep, items, rows, with_gpus(site))
    return rows


def _price(sweep: Sweep, cell: Cell, rate: Throughput, shared: Shared | None) -> Row:
    """What a cell costs, wherever it runs and whatever its seed is."""
    cost = count_cell(cell)
    gmacs = cost.macs / 1e9
    asked = sweep.asked_of(cell)
    evaluations = [evaluation for _, evaluation in asked]
    train_gmacs = 3 * gmacs * cell.training.batch_size * cell.training.steps
    sampling_gmacs = sum(_sampling_passes(cell, e) for e in evaluations) * gmacs
    images = [(e, e.samples * len(e.steps(cell.training.steps))) for e in evaluations]
    vae = vae_cost(cell.data)
    decoding_gmacs = sum(count for _, count in images) * vae.decode / 1e9
    scoring_gmacs = sum(count * EXTRACTORS.facts(str(e.extractor)).gmacs for e, count in images)
    encoded = cell.data.vae is None or (shared is not None and is_encoded(cell.data, shared))
    kept = {step for evaluation in evaluations for step in evaluation.steps(cell.training.steps)} | {
        cell.training.steps
    }
    return {
        "data": cell.data.name,
        **{key: getattr(cell.model, key, None) for key in ("block", "depth", "width", "heads", "patch_size")},
        "tokens": cell.tokens,
        "params": cost.params,
        "params_m": cost.params / 1e6,
        "gmacs": gmacs,
        "gflops": 2 * gmacs,
        "learning_rate": cell.training.learning_rate,
        "train_gmacs": train_gmacs,
        "sampling_gmacs": sampling_gmacs,
        "decoding_gmacs": decoding_gmacs,
        "scoring_gmacs": scoring_gmacs,
        "gpu_hours": rate.hours(train_gmacs + sampling_gmacs + decoding_gmacs + scoring_gmacs),
        "tflops": rate.tflops,
        "throughput": rate.source,
        "weights_bytes": 2 * _FLOAT * cost.params * len(kept),
        "states_bytes": _STATES * 4 * _FLOAT * cost.params,
        "samples_bytes": sum(_sample_bytes(cell, e) for e in evaluations),
        "latents": folder_name(cell.data) if cell.data.vae else None,
        "latents_bytes": latents_bytes(cell.data),
        "encoding_gmacs": 0.0 if encoded else (cell.data.images or 0) * 2 * vae.encode / 1e9,
        "evaluations": [_evaluation_row(*pair) for pair in asked],
    }


def _estimate(sweep: Sweep, items: list[CellRun], rows: list[Row], site: Site) -> None:
    """Write into the rows how long the cells take at a site, and what of it."""
    name, groups = site.name(sweep.resources), dict[Resources, int]()
    for item, row in zip(items, rows, strict=True):
        resources = sweep.resources_of(item.cell)
        on_gpu = site.has_gpu(resources)
        row |= {"site": name, "on_gpu": on_gpu, "share": float(site.share(resources)), "ranks": resources.world}
        row["group"] = groups.setdefault(resources, len(groups))  # cells with the same resources
        row["estimated_s"] = 3600 * row["gpu_hours"] / resources.world if on_gpu else _assumed_seconds(item.cell, row)
        row["encoding_s"] = _encoding_seconds(row) / sweep.resources.world
    ratios = {on_gpu: _measured_over_assumed(items, rows, on_gpu) for on_gpu in {row["on_gpu"] for row in rows}}
    for row in rows:
        found = ratios[row["on_gpu"]]
        row["estimated_s"] = round(row["estimated_s"] * (median(found) if found else 1.0), 1)
        unmeasured = row["throughput"] if row["on_gpu"] else "assumed"
        row["time_source"] = f"by {len(found)} finished cell{'s' * (len(found) != 1)}" if found else unmeasured


def _encoding_seconds(row: Row) -> float:
    """Of one process: on one GPU, or one thread."""
    gmacs: float = row["encoding_gmacs"]
    rate = Throughput(row["tflops"], row["throughput"])
    return rate.hours(gmacs) * 3600 if row["on_gpu"] else gmacs / ASSUMED_GMACS_PER_S


def _course(sweep: Sweep, rows: list[Row]) -> Course:
    """How what is not done goes, the encoding of its data first; the longest cells start first.

    Where Slurm has a cap, cells with other resources are arrays of their own, beside each other or in turn.
    """
    left = sorted((row for row in rows if row["state"] != State.DONE), key=lambda row: row["train_gmacs"], reverse=True)
    encoding = sum({row["latents"]: row["encoding_s"] for row in left if row["latents"]}.values())
    resources, groups = sweep.resources, dict[Any, list[Row]]()
    capped = resources.executor == "slurm" and resources.max_parallel is not None and resources.cells_per_job is None
    for row in left:
        groups.setdefault(row["group"] if capped else None, []).append(row)
    caps = divided(resources.max_parallel, [len(group) for group in groups.values()]) if groups else []
    courses = []
    for group, most in zip(groups.values(), caps or [resources.max_parallel] * len(groups), strict=True):
        shares = [Fraction(1, most) if capped and most else Fraction(row["share"]) for row in group]
        planned = [
            Planned(row["estimated_s"], share.limit_denominator(10_000), row["states_bytes"])
            for row, share in zip(group, shares, strict=True)
        ]
        courses.append(course(planned))
    seconds, states = ([getattr(one, key) for one in courses] for key in Course._fields)
    if caps is None:  # in turn
        return Course(round(encoding + sum(seconds), 1), max(states))
    return Course(round(encoding + max(seconds, default=0.0), 1), sum(states))


def _evaluation_row(origin: Origin, evaluation: Evaluation) -> Row:
    protocol = origin.protocol.name if origin.protocol else None
    return {"id": evaluation.id, "protocol": protocol, **evaluation.model_dump(mode="json")}


def totals(sweep: Sweep, rows: list[Row]) -> Row:
    """Sums over the grid, and the wall time at the site of what is not done."""
    goes = _course(sweep, rows)
    latents = {row["latents"]: row for row in rows if row["latents"] is not None}
    encoding = sum(row["encoding_gmacs"] for row in latents.values())
    bytes_ = [row["latents_bytes"] for row in latents.values()]
    summed = ("train_gmacs", "sampling_gmacs", "decoding_gmacs", "scoring_gmacs", "weights_bytes", "samples_bytes")
    rate = Throughput(rows[0]["tflops"], rows[0]["throughput"])
    return {
        "cells": len(rows),
        **{key: sum(row[key] for row in rows) for key in summed},
        "encoding_gmacs": encoding,
        "gpu_hours": sum(row["gpu_hours"] for row in rows) + rate.hours(encoding),
        "tflops": rate.tflops,
        "throughput": rate.source,
        "states_bytes": goes.states_bytes,  # a finished run keeps no state
        "latents": len(latents),
        "latents_bytes": None if None in bytes_ else sum(bytes_),
        "site": rows[0]["site"],
        "on_gpu": any(row["on_gpu"] for row in rows),
        "estimated_s": goes.seconds,
        "time_source": " and ".join(dict.fromkeys(row["time_source"] for row in rows)),
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
    return train_tflops(macs, recipe.batch_size * recipe.steps / gpu_seconds)


def _sampling_passes(cell: Cell, evaluation: Evaluation) -> int:
    """As `sampling_passes`, over all training steps to measure at."""
    return len(evaluation.steps(cell.training.steps)) * sampling_passes(evaluation, cell.diffusion)


def sampling_passes(evaluation: Evaluation, diffusion: DiffusionSpec) -> int:
    """Forward passes of one image each, at one training step: those of the sampler, twice with guidance."""
    passes = diffusion.sampling_passes(evaluation.sampler, evaluation.sampling_steps)
    return evaluation.samples * passes * (2 if evaluation.guidance != 1 else 1)


def _assumed_seconds(cell: Cell, row: Row) -> float:
    """On one CPU thread."""
    recipe = cell.training
    pass_seconds = ASSUMED_BLOCK_SECONDS * (cell.model.layers + 2)
    gmacs = row["train_gmacs"] + row["sampling_gmacs"] + row["decoding_gmacs"] + row["scoring_gmacs"]
    return float(recipe.steps * pass_seconds + gmacs / ASSUMED_GMACS_PER_S)


def _measured_over_assumed(items: list[CellRun], rows: list[Row], on_gpu: bool) -> list[float]:
    """The ratio of each cell that has finished on such a device."""
    return [
        row["measured_s"] / row["estimated_s"]
        for item, row in zip(items, rows, strict=True)
        if row["measured_s"] and row["on_gpu"] == on_gpu and _devices(item) <= {"cuda" if on_gpu else "cpu"}
    ]


def _devices(item: CellRun) -> set[str]:
    """What the attempts at a cell computed on, as far as they say it."""
    started = [attempt.started for attempt in item.run.attempts() if attempt.started]
    return {one["conditions"]["device"] for one in started if "conditions" in one}


def measured_seconds(item: CellRun) -> float | None:
    """Wall time of training and evaluating a cell, from its records."""
    trained = [row["seconds"] for row in TrainLog(item.run).rows() if "seconds" in row]
    records = [item.run.measured(key) for key in item.owed]
    if not trained or any(record is None for record in records):
        return None
    return float(trained[-1]) + sum(float(record.get("seconds", 0)) for record in records if record)
