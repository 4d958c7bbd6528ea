"""A block, a network and an objective of a user's own file: two steps of training, samples, a price and a record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.sources import load
from harness.errors import InputError
from harness.evaluation.generate import Generator, generate, load_weights
from harness.evaluation.memorisation import optimal_losses
from harness.launch.plan import plan
from harness.model.cost import count_cell
from harness.runs.cellruns import cell_runs
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.resources import Recording
from harness.training.hooks import Hooks
from harness.training.loop import Options, train
from sweeps.grid import Sweep, load_sweep

torch.set_num_threads(1)

BLOCK = '''
"""Attention and MLP side by side, each with a gate that starts at zero."""

from torch import Tensor

from harness.model.blocks.block import Block, Modulation, modulate
from harness.spec.model import DiTSpec


class ParallelBlock(Block):
    adaptive = True
    starts_at_zero = ("modulation.",)

    def __init__(self, model: DiTSpec) -> None:
        super().__init__(model)
        self.modulation = Modulation(model.width, 6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation.vectors(c)
        attended = self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate1 * attended + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


BLOCKS = {"parallel": ParallelBlock}
'''

NETWORK = '''
"""A network that mixes all pixels, with its time and its label as further inputs."""

import torch
from pydantic import Field

from harness.model.network import Network
from harness.spec.model import ModelSpec


class MixerSpec(ModelSpec):
    hidden: int = Field(gt=0, description="width of the hidden layer")
    sizes = {"tiny": {"hidden": 4}}


class Mixer(Network):
    Spec = MixerSpec

    def __init__(self, model, shape, outputs):
        super().__init__(model, shape, outputs)
        values = shape.channels * shape.size**2
        self.labels = torch.nn.Embedding(shape.classes + 1, model.hidden)
        self.first = torch.nn.Linear(values + 1, model.hidden)
        self.last = torch.nn.Linear(model.hidden, outputs * values)

    def forward(self, x, t, y=None):
        hidden = self.first(torch.cat((x.flatten(1), t.float()[:, None] / 1000), dim=1))
        hidden = hidden if y is None else hidden + self.labels(y)
        return self.last(hidden.tanh()).view(len(x), -1, *x.shape[2:])


NETWORKS = {"mixer": Mixer}
'''

OBJECTIVE = '''
"""A straight way: the network predicts noise - x_0 on a straight way, and Euler's rule follows it back."""

import torch

from harness.diffusion.objective import Objective


def euler(objective, denoise, x, steps, step_noise):
    for i in range(steps, 0, -1):
        t = torch.full((len(x),), i / steps * objective.spec.timesteps, device=x.device)
        x = x - denoise(x, t).float() / steps
        yield x


class Straight(Objective):
    samplers = {"euler": euler}

    def draw(self, generator, count, low=0.0, high=1.0):
        return generator.uniform(max(low, 1e-3), high, size=count).astype("float32") * self.spec.timesteps

    def variances(self, t):
        t = t.double() / self.spec.timesteps
        return (1 - t) ** 2, t**2

    def target(self, x0, noise):
        return noise - x0


OBJECTIVES = {"straight": Straight}
'''

SWEEP = """
extend = ["mine.py"]
[training]
steps = 2
batch_size = 4
[[evaluation]]
samples = 6
sampling_steps = 5
extractor = "digits-cnn"
"""


pytestmark = pytest.mark.usefixtures("users_files")


def sweep_of(folder: Path, file: str, text: str) -> Sweep:
    (folder / "mine.py").write_text(file)
    (folder / "s.toml").write_text(SWEEP + text)
    return load_sweep(folder / "s.toml")


def two_steps(folder: Path, cell: Cell) -> Run:
    run = Run(folder / "run")
    run.folder.mkdir()
    train(cell, load(cell.data), run, Options("cpu", [2], Recording(loss_images=16), checkpoint_seconds=1e9), Hooks())
    return run


def priced(sweep: Sweep, folder: Path) -> list[dict[str, object]]:
    return plan(sweep, cell_runs(sweep, Study(folder, "s")))


def test_a_block_of_ones_own(tmp_path: Path) -> None:
    text = '[grid]\nblock = ["adaln-zero", "parallel"]\n[model]\ndepth = 2\nwidth = 16\npatch_size = 4\n'
    sweep = sweep_of(tmp_path, BLOCK, text)
    zero, mine = (cell for _, cell in sweep.cells())
    assert count_cell(mine) == count_cell(zero)  # the same matrices, otherwise arranged
    assert [row["block"] for row in priced(sweep, tmp_path)] == ["adaln-zero", "parallel"]
    run = two_steps(tmp_path, mine)
    network = load_weights(run, mine, 2, ema=True, device="cpu")
    assert type(network.blocks[0]).__name__ == "ParallelBlock"  # type: ignore[index]
    (rows,) = [row for row in TrainLog(run).rows() if row["step"] == 2 and "bins_train" in row]
    assert len(rows["bins_train"]) == 8


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, NETWORK, '[grid]\nsize = ["tiny"]\nseed = [0, 1]\n[model]\nnetwork = "mixer"\n')
    (name, cell), (other, _) = sweep.cells()
    assert (name, other) == ("tiny-hidden4-seed0", "tiny-hidden4-seed1")
    assert Cell.model_validate_json(cell.model_dump_json()) == cell
    assert count_cell(cell).macs == 65 * 4 + 4 * 128
    (row, _) = priced(sweep, tmp_path)
    assert (row["depth"], row["params"]) == (None, 11 * 4 + 66 * 4 + 5 * 128)
    run = two_steps(tmp_path, cell)
    network = load_weights(run, cell, 2, ema=False, device="cpu")
    assert network(torch.zeros(3, 1, 8, 8), torch.zeros(3), torch.tensor([0, 1, 10])).shape == (3, 2, 8, 8)
    again = type(network)(cell.model, cell.data.shape, 2)
    again.initialise(0)
    assert not torch.equal(again.get_parameter("first.weight"), network.get_parameter("first.weight"))


def test_an_objective_of_ones_own(tmp_path: Path) -> None:
    text = '[grid]\ndepth = [1]\n[model]\nwidth = 16\npatch_size = 4\n[diffusion]\nobjective = "straight"\n'
    with pytest.raises(InputError, match=r"sampler: unknown sampler 'ddpm' for objective straight; .*: euler"):
        sweep_of(tmp_path, OBJECTIVE, text)
    straight = SWEEP.replace("sampling_steps = 5", 'sampler = "euler"\nsampling_steps = 1500')
    (tmp_path / "s.toml").write_text(straight + text)
    sweep = load_sweep(tmp_path / "s.toml")  # continuous time takes more sampling steps than timesteps
    ((_, cell),) = sweep.cells()
    run = two_steps(tmp_path, cell)
    network = load_weights(run, cell, 2, ema=True, device="cpu")
    assert network(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.tensor([0])).shape == (1, 1, 8, 8)
    (evaluation,) = (e.model_copy(update={"sampling_steps": 5}) for e in sweep.evaluations_of(cell))
    made = generate(Generator(network, cell, evaluation, "cpu"), run, "k", batch=4, hooks=Hooks())
    assert made is not None
    assert made[0][np.arange(len(made[0]))].shape == (6, 8, 8, 1)
    losses = optimal_losses(cell, load(cell.data), 64)
    assert losses["loss_optimal_train"] < losses["loss_optimal_heldout"]  # type: ignore[operator]
    assert np.isfinite(list(losses.values())).all()  # type: ignore[arg-type]


FIELDS = OBJECTIVE.replace(
    "class Straight(Objective):",
    """from harness.spec.diffusion import DiffusionSpec


class Fields(DiffusionSpec):
    timesteps: int = 10
    power: float = 2.0


class Straight(Objective):
    Spec = Fields
    passes = {"euler": 3}""",
)


def test_an_objective_with_fields_of_its_own(tmp_path: Path) -> None:
    text = '[grid]\ndepth = [1]\n[model]\nwidth = 16\npatch_size = 4\n[diffusion]\nobjective = "straight"\n'
    sweep = SWEEP.replace("sampling_steps = 5", 'sampler = "euler"\nsampling_steps = 5') + text
    (tmp_path / "mine.py").write_text(FIELDS)
    (tmp_path / "s.toml").write_text(f"{sweep}power = 3.0\n")
    ((_, cell),) = load_sweep(tmp_path / "s.toml").cells()
    assert (cell.diffusion.model_dump()["power"], cell.diffusion.sampling_passes("euler", 5)) == (3.0, 15)
    assert cell.diffusion.label.startswith("straight#")  # with the hash of the file
    (tmp_path / "s.toml").write_text(f"{sweep}beta_end = 0.01\n")
    with pytest.raises(
        InputError, match=r"diffusion\.beta_end: unknown key; allowed in diffusion: objective, timesteps"
    ):
        load_sweep(tmp_path / "s.toml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[grid]\nhidden = [4]\n[model]\nnetwork = "mixr"\n', "grid.hidden: 'hidden' is no field of a cell; allowed: "),
        ('[grid]\nseed = [0]\n[model]\nnetwork = "mixr"\n', "model.network: should be 'dit', 'unet' or 'mixer'"),
        (
            '[grid]\ndepth = [4]\n[model]\nnetwork = "mixer"\n',
            "grid.depth: 'depth' is no field of a cell; allowed: ",
        ),
        ('[grid]\nsize = ["S"]\n[model]\nnetwork = "mixer"\n', "grid.size: unknown size 'S'; allowed: tiny"),
        ('[grid]\nseed = [0]\n[model]\nnetwork = "mixer"\n', "model.hidden: is missing"),
        (
            '[grid]\nnetwork = ["dit", "mixer"]\n[model]\nhidden = 4\n',
            "model: hidden: unknown key of network dit; allowed: network, depth, width",
        ),
    ],
)
def test_wrong_fields_of_a_network_are_one_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InputError) as raised:
        sweep_of(tmp_path, NETWORK, text)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)
