"""What the host does beside the network: a step, and a sampling step, with a network that costs nothing.

The paper's batch, 256 latents of 4 x 32 x 32, comes from a memory map. A is the same noising, loss and optimiser on
fixed tensors; B is a step of the training. The clocks are the main thread's own CPU time, and that of all threads.
Another thread makes the inputs meanwhile, and cores share caches and memory: the main thread's arithmetic takes longer
beside it. So one row sets B beside the same arithmetic while the inputs are made and dropped, and one has a step whose
inputs are given: what is left is the training's own work.
"""

from __future__ import annotations

import copy
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.data.batches import LatentBatches
from harness.data.draws import SampleStreams
from harness.diffusion.objective import build
from harness.evaluation.generate import noise_of_steps
from harness.spec.cell import Cell
from harness.spec.data import InputShape
from harness.spec.resources import Recording
from harness.training.adamw import AdamW
from harness.training.loop import Options, Trainer
from harness.training.ranks import Ranks
from harness.training.state import TrainState
from tests.bench.pairs import Row, pair, repeated

#: Latents of the memory map.
_IMAGES = 4096

#: Steps of one call.
_STEPS = 20


class Free(nn.Module):
    """Predicts zeros, and has one weight for the optimiser."""

    def __init__(self, shape: InputShape, count: int) -> None:
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("zeros", torch.zeros(count, 2 * shape.channels, shape.size, shape.size))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """See `harness.model.network.Network`."""
        zeros: Tensor = self.zeros  # type: ignore[assignment]
        return zeros[: len(x)] + self.weight


class Mapped:
    """A split of latents in a memory map, as `harness.data.latents.LatentSplit`."""

    def __init__(self, folder: Path) -> None:
        path, generator = folder / "latents.npy", np.random.default_rng(0)
        made = np.lib.format.open_memmap(path, "w+", np.float32, (_IMAGES, 2, 2, 4, 32, 32))
        for first in range(0, _IMAGES, 256):
            made[first : first + 256] = generator.standard_normal((256, 2, 2, 4, 32, 32), dtype=np.float32)
        made.flush()
        self.labels = np.arange(_IMAGES) % 1000
        self._moments = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return _IMAGES

    def moments(self, indices: np.ndarray, mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `LatentSplit.moments`."""
        both = np.stack([self._moments[i, int(flip)] for i, flip in zip(indices, mirror, strict=True)])
        return both[:, 0], both[:, 1]


class Share(Ranks):
    """The first of several ranks, without the others."""

    def __init__(self, world: int) -> None:
        self.world = world

    def share(self, count: int) -> slice:
        """The first share."""
        return slice(0, count // self.world)


def paper_cell() -> Cell:
    """A cell with the paper's batch, on latents."""
    vae = {"kind": "pretrained", "name": "stabilityai/sd-vae-ft-mse"}
    return Cell.model_validate(
        {
            "model": {"depth": 1, "width": 16, "patch_size": 8},
            "data": {"name": "imagenet", "resolution": 256, "vae": vae},
            "training": {"steps": 10**9, "batch_size": 256},
        }
    )


def _training(latents: Mapped, world: int) -> list[Row]:
    cell = paper_cell()
    shape, objective = cell.data.shape, build(cell.diffusion)
    n = cell.training.batch_size // world
    network = Free(shape, n)
    optimizer = AdamW(network.parameters(), lr=1e-4)
    ema = copy.deepcopy(network).requires_grad_(False)
    state = TrainState(network=network, ema=ema, optimizer=optimizer, owner="bench")  # type: ignore[arg-type]
    data = LatentBatches(latents, 0.18215, "cpu")  # type: ignore[arg-type]
    trainer = Trainer(state, cell, data, Options("cpu", [], Recording(), 1e9), Share(world))
    x0, noise = torch.randn(2, n, shape.channels, shape.size, shape.size)
    t = torch.randint(1, 1000, (n,))

    def fixed() -> None:
        optimizer.zero_grad()
        xt = objective.noised(x0, t, noise)
        objective.loss(network(xt, t), x0, xt, t, noise).mean().backward()
        optimizer.step()

    feed = trainer.feed
    inputs = feed(state.step)

    def given() -> None:
        trainer.feed = lambda step: inputs  # type: ignore[assignment]
        trainer.step()
        trainer.feed = feed

    def beside() -> None:
        trainer.feed(state.step)
        state.step += 1
        fixed()

    rows = []
    step, alike = ("training step", trainer.step), ("fixed tensors", fixed)
    for clock, which, a, b in (
        (time.thread_time, "main thread", alike, step),
        (time.process_time, "all threads", alike, step),
        (time.thread_time, "main thread", ("fixed tensors, inputs made and dropped", beside), step),
        (time.thread_time, "main thread", alike, ("training step, inputs given", given)),
    ):
        what = f"a step without its network, 1 of {world} ranks, CPU time of {which}"
        works = [(name, repeated(work, _STEPS)) for name, work in (a, b)]
        rows.append(pair(what, *works, calls=_STEPS, clock=clock))
    trainer.close()
    return rows


def _sampling() -> list[Row]:
    objective, shape = build(paper_cell().diffusion), (4, 32, 32)
    output = torch.zeros(250, 8, 32, 32)
    fixed = torch.randn(250, *shape)

    def steps(noise: Callable[[int], Tensor]) -> None:
        objective.sample("ddpm", lambda x, t: output, fixed, _STEPS, noise)

    def drawn() -> None:
        with noise_of_steps(SampleStreams(0, 0, 250, shape), _STEPS, "cpu") as noise:
            steps(lambda step: noise(step + 1))

    rows = []
    for clock, which in ((time.thread_time, "main thread"), (time.process_time, "all threads")):
        what = f"a DDPM step of 250 samples without its network, CPU time of {which}"
        a, b = ("fixed noise", functools.partial(steps, lambda _: fixed)), ("drawn noise", drawn)
        rows.append(pair(what, a, b, calls=_STEPS, clock=clock))
    return rows


def rows() -> list[Row]:
    """Both, on one rank and for the share of one of eight."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        latents = Mapped(Path(folder))
        return [*_training(latents, 1), *_training(latents, 8), *_sampling()]
