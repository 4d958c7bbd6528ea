"""Whole training steps, with EMA, log and checkpoints, against bare loops of the same network on fixed tensors."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.data.dataset import LoadedData
from harness.data.latents import Latents
from harness.data.sources import load
from harness.diffusion.objective import build as build_objective
from harness.model.network import build
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.resources import Compilation, Recording
from harness.training.loop import Options
from harness.training.passes import make_ready
from tests.bench.host import Mapped
from tests.bench.ongoing import Ongoing
from tests.bench.pairs import Row, pair, repeated

#: A step that is timed, and how many of them make one call.
Step = Callable[[], object]


class Setting(NamedTuple):
    """A cell to time: its name, its model, images a step, and steps of a call."""

    name: str
    model: dict[str, Any]
    batch: int
    steps: int
    latents: bool = False
    precision: str = "fp32"

    @property
    def cell(self) -> Cell:
        """The cell."""
        vae = {"kind": "pretrained", "name": "stabilityai/sd-vae-ft-mse"}
        data = {"name": "imagenet", "resolution": 256, "vae": vae} if self.latents else {}
        recipe = {"steps": 20_000, "batch_size": self.batch, "precision": self.precision}
        return Cell.model_validate({"model": self.model, "data": data, "training": recipe})


#: The paper's smallest size at patch size 4.
S4 = {"depth": 12, "width": 384, "heads": 6, "patch_size": 4}

SETTINGS = [
    Setting("d4-w64-p2, 8x8x1, batch 64", {"depth": 4, "width": 64, "heads": 4, "patch_size": 2}, 64, 40),
    Setting("d6-w96-p2, 8x8x1, batch 64", {"depth": 6, "width": 96, "heads": 4, "patch_size": 2}, 64, 20),
    Setting("S/4, 32x32x4, batch 8", S4, 8, 4, latents=True),
    Setting("S/4, 32x32x4, batch 8, bf16", S4, 8, 2, latents=True, precision="bf16"),
]


def _inputs(setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fixed clean images, noise, times and labels."""
    shape = setting.cell.data.shape
    x0, noise = torch.randn(2, setting.batch, shape.channels, shape.size, shape.size)
    t, y = torch.randint(1, 1000, (setting.batch,)), torch.randint(0, shape.classes, (setting.batch,))
    return x0, noise, t, y


def bare(setting: Setting, how: Compilation) -> Step:
    """The same network, loss and optimiser on fixed tensors: no draws, no EMA, nothing read back."""
    cell = setting.cell
    network = build(cell.model, cell.data.shape, cell.diffusion.outputs)
    network.initialise(0)
    make_ready(network, compiled=how, recompute=False)
    return _loop(setting, network, network)


def diffusers_loop(setting: Setting) -> Step:
    """The DiT of diffusers of the same shape in a plain loop."""
    from diffusers import DiTTransformer2DModel

    shape, model = setting.cell.data.shape, setting.model
    network: Any = DiTTransformer2DModel(
        num_attention_heads=model["heads"],
        attention_head_dim=model["width"] // model["heads"],
        in_channels=shape.channels,
        out_channels=2 * shape.channels,
        num_layers=model["depth"],
        sample_size=shape.size,
        patch_size=model["patch_size"],
        num_embeds_ada_norm=shape.classes,
    )
    return _loop(setting, network, lambda x, t, y: network(x, timestep=t, class_labels=y).sample)


def _loop(setting: Setting, network: nn.Module, predict: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
    objective = build_objective(setting.cell.diffusion)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0, fused=True)
    x0, noise, t, y = _inputs(setting)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        xt = objective.noised(x0, t, noise)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.precision == "bf16"):
            output = predict(xt, t, y)
        objective.loss(output, x0, xt, t, noise).mean().backward()
        optimizer.step()

    return repeated(step, setting.steps)


def whole(setting: Setting, threads: int, how: Compilation) -> Ongoing:
    """Our training with EMA, log and checkpoints."""
    options = Options("cpu", [], Recording(), None, compiled=how)
    return Ongoing(setting.cell, source(setting), options, setting.steps, threads=threads)


def source(setting: Setting) -> LoadedData | Latents:
    """Digits, or latents in a memory map."""
    if not setting.latents:
        return load(Data())
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    latents: Any = Mapped(folder)
    return Latents(latents, latents, 0.18215, "bench")


def rows(threads: int) -> list[Row]:
    """Every setting against the bare compiled loop, and against diffusers' model."""
    found = []
    for setting in SETTINGS:
        what = f"a training step of {setting.name}, {threads} threads"
        mine = whole(setting, threads, "whole")
        for name, theirs in (
            ("bare compiled loop", bare(setting, "whole")),
            ("bare eager loop", bare(setting, "off")),
            ("diffusers in a plain loop", diffusers_loop(setting)),
        ):
            found.append(pair(what, ("ours, compiled", mine), (name, mine.beside(theirs)), calls=setting.steps))
        mine.close()
        eager = whole(setting, threads, "off")
        theirs = eager.beside(bare(setting, "off"))
        found.append(pair(what, ("ours, eager", eager), ("bare eager loop", theirs), calls=setting.steps))
        eager.close()
    return found
