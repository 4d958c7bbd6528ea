"""The smallest cells that a sweep lets through are trained, sampled and scored to the end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from harness.data.sources import load
from harness.evaluation.measure import Subject, measure
from harness.runs.state import Run
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.spec.resources import Recording, Resources
from harness.training.hooks import Hooks
from harness.training.loop import Options, train
from harness.training.ranks import Ranks
from sweeps.grid import load_sweep

SWEEP = """
[grid]
depth = [1]
[model]
patch_size = 4
{model}
[diffusion]
{diffusion}
[training]
steps = 1
batch_size = 1
ema_window = 1.0
[[evaluation]]
{evaluation}
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return Shared(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize(
    ("model", "diffusion", "evaluation"),
    [
        ("width = 8", "timesteps = 8", "samples = 40\nsampler = 'ddpm'\nsampling_steps = 8"),
        ("width = 8", "timesteps = 9", "samples = 3\nsampler = 'ddpm'\nsampling_steps = 1"),
        ("width = 4\nmlp_ratio = 0.25", "timesteps = 8\nbeta_end = 0.999", "samples = 2\nsampling_steps = 8"),
        ("width = 8", "timesteps = 11\nbeta_start = 1e-12", "samples = 11\nsampler = 'ddim'\nsampling_steps = 2"),
    ],
)
def test_a_small_cell_runs_to_its_end(
    model: str, diffusion: str, evaluation: str, tmp_path: Path, shared: Shared
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SWEEP.format(model=model, diffusion=diffusion, evaluation=evaluation))
    sweep = load_sweep(path)
    ((_, cell),) = sweep.cells()
    run, dataset = Run(tmp_path), load(Data())
    train(cell, dataset, run, Options("cpu", [1], Recording(loss_images=8), 60.0), Hooks())
    conditions = {"device": "cpu", "sampling_batch": 50}
    subject = Subject(cell, run, dataset, shared, Resources(), 8, conditions, Hooks(), Ranks())
    record = measure(subject, sweep.evaluations_of(cell)[0], 1)
    assert record is not None
    assert math.isfinite(record["metrics"]["frechet"])
