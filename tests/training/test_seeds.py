"""Each seed of a training moves its own draws, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.data.batches import batches
from harness.data.dataset import LoadedData
from harness.data.sources import load
from harness.diffusion.objective import build
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.training.feed import Feed
from harness.training.state import TrainState


@pytest.fixture(scope="module")
def dataset() -> LoadedData:
    return load(Data())


def drawn(dataset: LoadedData, **seeds: Any) -> dict[str, torch.Tensor]:
    """All that chance decides in the first steps of a training, by name."""
    cell = Cell.model_validate(
        {
            "model": {"depth": 1, "width": 16, "patch_size": 4},
            "data": {"horizontal_flips": True},
            "training": {"steps": 3, "batch_size": 64, "label_dropout": 0.5},
            **seeds,
        }
    )
    network = TrainState.initial(cell, "cpu").network
    feed = Feed(cell, batches(dataset, "cpu").train, build(cell.diffusion), slice(0, 64), "cpu")
    inputs = [feed(step) for step in range(3)]
    labels = [step.y for step in inputs if step.y is not None]
    return {
        "initialisation": torch.cat([weights.flatten() for weights in network.state_dict().values()]),
        "order": torch.cat([torch.stack([step.x0 for step in inputs]).flatten(), torch.stack(labels).flatten()]),
        "times": torch.stack([step.t for step in inputs]),
        "noise": torch.stack([step.noise for step in inputs]),
    }


@pytest.mark.parametrize(
    ("seeds", "moved"),
    [
        ({"initialisation": 5}, {"initialisation"}),
        ({"order": 5}, {"order"}),
        ({"noise": 5}, {"times", "noise"}),
        ({"initialisation": 0, "noise": 0}, set()),
    ],
)
def test_a_seed_moves_its_own_draws(dataset: LoadedData, seeds: dict[str, int], moved: set[str]) -> None:
    plain, other = drawn(dataset), drawn(dataset, seeds=seeds)
    assert {name for name, values in plain.items() if not torch.equal(values, other[name])} == moved


def test_three_seeds_apart_draw_as_one_that_is_the_same(dataset: LoadedData) -> None:
    plain, apart = drawn(dataset, seed=7), drawn(dataset, seeds=dict.fromkeys(("initialisation", "order", "noise"), 7))
    assert all(torch.equal(values, apart[name]) for name, values in plain.items())
