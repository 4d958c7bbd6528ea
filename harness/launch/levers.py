"""How a sweep could cost less, and what that costs in comparability."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.launch.estimate import Throughput, sampling_passes
from harness.launch.plan import latents_bytes
from harness.runs.cellruns import CellRun
from harness.spec.evaluation import Evaluation
from sweeps.grid import Sweep
from sweeps.protocols import Protocol

#: The protocol that samples less, by its name in sweeps/protocols.toml.
FAST = "fast"

#: Cells that a law is fitted to at least, when the dearest ones are left out and forecast.
_FITTED = 5

#: The share of the images that the lever takes.
_SUBSET = 0.1


@dataclass(frozen=True)
class Lever:
    """A change of the sweep file, the GPU hours and bytes of disk it saves, and what the results then compare with."""

    change: str
    hours: float
    price: str
    disk: int = 0


def levers(sweep: Sweep, items: list[CellRun], rows: list[dict[str, Any]]) -> list[Lever]:
    """What saves GPU hours, the most first; only what saves a hundredth of all, or disk.

    Args:
        sweep: the sweep.
        items: its cells.
        rows: of `harness.launch.plan.plan`.
    """
    total = sum(row["gpu_hours"] for row in rows)
    found = [*_dearest_cells(rows), *_fewer_steps(rows), *_fast(sweep, items, rows), *_subset(items, rows)]
    return sorted((lever for lever in found if lever.hours > total / 100 or lever.disk), key=lambda lever: -lever.hours)


def _rate(rows: list[dict[str, Any]]) -> Throughput:
    return Throughput(rows[0]["tflops"], rows[0]["throughput"])


def _dearest_cells(rows: list[dict[str, Any]]) -> Iterator[Lever]:
    """The two dearest models, if enough others are left."""
    dear = sorted(rows, key=lambda row: row["gmacs"], reverse=True)[:2]
    if len({row["gmacs"] for row in rows}) >= _FITTED + 2:
        names = " and ".join(row["name"] for row in dear)
        yield Lever(
            f"leave out {names} ([[exclude]]), and let the report forecast them",
            sum(row["gpu_hours"] for row in dear),
            "a forecast with an interval instead of their values; the other cells compare as before",
        )


def _fewer_steps(rows: list[dict[str, Any]]) -> Iterator[Lever]:
    hours = _rate(rows).hours(sum(row["train_gmacs"] for row in rows)) * 3 / 4
    yield Lever("a quarter of training.steps", hours, "values compare at equal steps only, and are not converged")


def _fast(sweep: Sweep, items: list[CellRun], rows: list[dict[str, Any]]) -> Iterator[Lever]:
    """The fast protocol for every evaluation that samples more."""
    fast: Protocol = sweep.protocols[FAST]
    model = Evaluation.model_validate(fast.fields)
    saved = 0.0
    for item, row in zip(items, rows, strict=True):
        evaluations = sweep.evaluations_of(item.cell)
        diffusion = item.cell.diffusion
        if model.sampler not in diffusion.samplers:
            continue
        passes = {e.id: sampling_passes(e, diffusion) * len(e.steps(item.cell.training.steps)) for e in evaluations}
        if all_passes := sum(passes.values()):
            less = sum(
                max(0.0, 1 - sampling_passes(model, diffusion) / sampling_passes(e, diffusion)) * passes[e.id]
                for e in evaluations
            )
            saved += row["sampling_gmacs"] * less / all_passes
    price = f"{model.samples:,} samples against the train split: values compare with {FAST} ones only"
    yield Lever(f'protocol = "{FAST}" in [[evaluation]]', _rate(rows).hours(saved), price)


def _subset(items: list[CellRun], rows: list[dict[str, Any]]) -> Iterator[Lever]:
    """A share of the images, where they are encoded first."""
    latents = {
        row["latents"]: (row, item.cell.data) for item, row in zip(items, rows, strict=True) if row["latents_bytes"]
    }
    if not latents or any(data.subset is not None for _, data in latents.values()):
        return
    hours, disk = 0.0, 0
    for row, data in latents.values():
        less = data.model_copy(update={"subset": _SUBSET})
        kept = (less.images or 0) / (data.images or 1)
        hours += _rate(rows).hours(row["encoding_gmacs"]) * (1 - kept)
        disk += row["latents_bytes"] - (latents_bytes(less) or 0)
    price = "other data: values compare with none of the whole, and images that are seen often are memorised"
    yield Lever(f"data.subset = {_SUBSET} in [data], the training as long as before", hours, price, disk)
