"""What a study trains once before its cells, extractors and autoencoders, and what that costs. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.data import autoencoders
from harness.data.vae_cost import vae_cost
from harness.launch.estimate import ASSUMED_GMACS_PER_S, Throughput
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.data import TrainedVae
from harness.spec.evaluation import TrainedExtractor
from sweeps.grid import Sweep


def trained_first(sweep: Sweep, cells: Iterable[Cell], shared: Shared) -> dict[str, float]:
    """What is not trained yet, as "extractor NAME on DATA" or "autoencoder of DATA": 1e9 multiply-adds."""
    gmacs: dict[str, float] = {}
    for data, asked in {(cell.data, sweep.evaluations_of(cell)) for cell in cells}:
        for choice in (evaluation.extractor for evaluation in asked):
            if isinstance(choice, TrainedExtractor) and not shared.extractor_weights(choice.folder_name(data)).exists():
                forward = choice.gmacs(data.image_shape) * choice.batch_size * choice.steps
                gmacs[f"extractor {choice.name} on {data.name}"] = 3 * forward
        vae = data.vae
        if isinstance(vae, TrainedVae) and autoencoders.card_of(data, shared) is None:
            cost = vae_cost(data)
            gmacs[f"autoencoder of {data.name}"] = 3 * (cost.encode + cost.decode) / 1e9 * vae.batch_size * vae.steps
    return dict(sorted(gmacs.items()))


def first_seconds(gmacs: float, row: Mapping[str, Any]) -> float:
    """Seconds for that, by the throughput of a row of the plan, or the assumed speed of one thread."""
    if row["on_gpu"]:
        return 3600 * Throughput(row["tflops"], row["throughput"]).hours(gmacs)
    return gmacs / ASSUMED_GMACS_PER_S
