"""Cells -> rows with tokens, parameters, GMACs, training and sampling cost, disk, estimated time and state.

Needs neither the data nor the autoencoder nor a GPU, and allocates no weights.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict
from fractions import Fraction
from typing import Any, NamedTuple

from harness.data.latents import is_encoded
from harness.data.vae_cost import vae_cost
from harness.launch.estimate import (
    ASSUMED_GMACS_PER_S,
    Basis,
    Finished,
    Probes,
    Throughput,
    Work,
    basis_of,
    finished,
    sampled,
    throughput,
    work_of,
)
from harness.launch.site import LONGEST_ON_CORES, Course, Planned, Site, course, divided, site_of, with_gpus
from harness.model.cost import count_cell
from harness.runs.cellruns import CellRun
from harness.runs.state import State
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Resources
from sweeps.grid import Sweep
from sweeps.protocols import Origin

Row = dict[str, Any]

_FLOAT = 4  # bytes

_STATES = 2  # a run keeps its two newest while it trains

#: The parts of a cell's work, in 1e9 multiply-adds.
_GMACS = ("train_gmacs", "sampling_gmacs", "decoding_gmacs", "scoring_gmacs")


class _Priced(NamedTuple):
    """A cell, its row and its work."""

    item: CellRun
    row: Row
    work: Work


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
        Rows whose `images` are those that the training sees, `epochs` times all that there are (None where only the
        data tells how many); whose `estimated_s` is wall time of the cell at the `site`, between `estimated_least` and
        `estimated_most` where an interval is known (None elsewhere); `time_source` says from what (see
        `harness.launch.estimate`), and `probe` is what a probe of its shape found, None without one; `measured_s` is
        the wall time that a finished cell took, None for others; `share` is the share of the site that the cell takes.
        `gpu_hours` is one GPU's time at `tflops` (`throughput` says on whose word) for training, sampling, decoding by
        the autoencoder and scoring.
        Bytes on disk: `weights_bytes` (plain and averaged weights of every evaluated step), `states_bytes` (while it
        trains: weights, averages and two moments of the optimizer, twice), `samples_bytes` (generated images), and
        `latents_bytes` of the folder `latents`, which cells with the same data and autoencoder share; None where there
        are none, or where the number of images is not known without the data. `encoding_gmacs` is what it takes to
        make that folder, once; 0 where it is made.
    """
    precisions = {item.cell.training.precision for item in items}
    done = finished(items)
    took = {one.item.cell.id: one.seconds for one in done}
    rates = {precision: throughput(done, precision, tflops) for precision in precisions}
    site = site_of(sweep.resources, gpus)
    prices: dict[Hashable, tuple[Row, Work]] = {}  # of cells that differ in their seeds alone
    cells = []
    for item in items:
        cell = item.cell
        kind = (cell.model, cell.diffusion, cell.data, cell.training)
        if kind not in prices:
            prices[kind] = _price(sweep, cell, rates[cell.training.precision], shared)
        about = {"id": cell.id, "name": item.name, "seed": cell.seed, "state": item.now.state.value}
        price, work = prices[kind]
        cells.append(_Priced(item, {**about, "measured_s": took.get(cell.id), **price}, work))
    rows = [cell.row for cell in cells]
    _estimate(sweep, cells, done, site, shared)
    on_cores = not any(site.has_gpu(sweep.resources_of(item.cell)) for item in items)
    may_assume = on_cores and sweep.resources.device == "auto" and gpus is None
    if may_assume and _course(sweep, rows).seconds > LONGEST_ON_CORES:
        _estimate(sweep, cells, done, with_gpus(site), shared)
    return rows


def _price(sweep: Sweep, cell: Cell, rate: Throughput, shared: Shared | None) -> tuple[Row, Work]:
    """What a cell costs and has to do, wherever it runs and whatever its seed is."""
    cost, asked = count_cell(cell), sweep.asked_of(cell)
    evaluations = [evaluation for _, evaluation in asked]
    gmacs, work = cost.macs / 1e9, work_of(cell, evaluations, cost.macs)
    encoded = cell.data.vae is None or (shared is not None and is_encoded(cell.data, shared))
    kept = {step for evaluation in evaluations for step in evaluation.steps(cell.training.steps)} | {
        cell.training.steps
    }
    row = {
        "data": cell.data.name,
        "block": cell.model.label,
        **{key: getattr(cell.model, key, None) for key in ("depth", "width", "heads", "patch_size")},
        "tokens": cell.tokens,
        "params": cost.params,
        "params_m": cost.params / 1e6,
        "gmacs": gmacs,
        "gflops": 2 * gmacs,
        "learning_rate": cell.training.learning_rate,
        "steps": cell.training.steps,
        "images": (images := cell.training.steps * cell.training.batch_size),
        "epochs": None if cell.data.training_images is None else images / cell.data.training_images,
        **{key: getattr(work, key) for key in _GMACS},
        "gpu_hours": rate.hours(work.gmacs),
        "tflops": rate.tflops,
        "throughput": rate.source,
        "weights_bytes": 2 * _FLOAT * cost.params * len(kept),
        "states_bytes": _STATES * 4 * _FLOAT * cost.params,
        "samples_bytes": _samples_bytes(cell, evaluations),
        "latents": cell.data.encoding_name if cell.data.vae else None,
        "latents_bytes": latents_bytes(cell.data),
        "encoding_gmacs": 0.0 if encoded else (cell.data.images or 0) * 2 * vae_cost(cell.data).encode / 1e9,
        "evaluations": [_evaluation_row(*pair) for pair in asked],
    }
    return row, work


def _estimate(sweep: Sweep, cells: list[_Priced], done: list[Finished], site: Site, shared: Shared | None) -> None:
    """Write into the rows how long the cells take at a site, and what of it."""
    name, groups = site.name(sweep.resources), dict[Resources, int]()
    bases: dict[tuple[Resources, Throughput], Basis] = {}
    probes = Probes(shared) if site.here and shared is not None else None
    for item, row, work in cells:
        resources, rate = sweep.resources_of(item.cell), Throughput(row["tflops"], row["throughput"])
        group = groups.setdefault(resources, len(groups))
        if (resources, rate) not in bases:
            bases[resources, rate] = basis_of(done, resources, rate, here=site.here)
        device = "cuda" if site.has_gpu(resources) else "cpu"
        probe = probes.of(item.cell, resources, device) if probes else None
        found = bases[resources, rate].estimate(work, device, resources.world, probe)
        row |= {"site": name, "on_gpu": device == "cuda", "share": float(site.share(resources))}
        row |= {"ranks": resources.world, "group": group, "time_source": found["source"]}  # a group: equal resources
        row |= {f"estimated_{key}": found[key] for key in ("least", "most")} | {"estimated_s": found["seconds"]}
        row["probe"] = None if probe is None else asdict(probe)
        seconds = 3600 * rate.hours(row["encoding_gmacs"])
        seconds = seconds if device == "cuda" else row["encoding_gmacs"] / ASSUMED_GMACS_PER_S
        row["encoding_s"] = seconds / sweep.resources.world


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
    rate = _overall(rows)
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


def _overall(rows: list[Row]) -> Throughput:
    """The throughput of all cells; of several precisions the mean over their operations."""
    rates = list(dict.fromkeys(Throughput(row["tflops"], row["throughput"]) for row in rows))
    if len(rates) == 1:
        return rates[0]
    hours = sum(row["gpu_hours"] for row in rows)
    mean = sum(row["tflops"] * row["gpu_hours"] for row in rows) / hours
    return Throughput(mean, " and ".join(dict.fromkeys(rate.source for rate in rates)))


def latents_bytes(data: Data) -> int | None:
    """Disk of a data set's latents: float32 mean and deviation of every image and of its mirror image.

    None without an autoencoder, or when only the data tells how many images there are.
    """
    images = data.images
    if data.vae is None or images is None:
        return None
    return images * 2 * 2 * data.shape.channels * data.shape.size**2 * _FLOAT


def _samples_bytes(cell: Cell, evaluations: list[Evaluation]) -> int:
    """Generated images, one byte a channel, of every evaluated step; evaluations with the same ones share them."""
    channels, size, _ = cell.data.image_shape
    made = sampled((e, step) for e in evaluations for step in e.steps(cell.training.steps))
    return sum(e.samples for e in made) * channels * size**2
