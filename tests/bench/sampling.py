"""Sampling by `Generator`, as `generate` calls it, against the same forward passes alone; on a GPU also FID-50K of S/2.

A is the network on one fixed batch, as often as the sampler asks it; B draws labels and noise, makes the steps and
decodes to levels.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch

from harness.evaluation.generate import Generator, streams_of
from harness.model.network import Network, build
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.training.hooks import Hooks
from tests.bench.pairs import ROUNDS, Row, pair


class Setting(NamedTuple):
    """A cell to sample: its name, its model, samples at once, and steps of a call."""

    name: str
    model: dict[str, Any]
    batch: int
    steps: int
    latents: bool = False

    @property
    def cell(self) -> Cell:
        """The cell."""
        vae = {"kind": "pretrained", "name": "stabilityai/sd-vae-ft-mse"}
        data = {"name": "imagenet", "resolution": 256, "vae": vae} if self.latents else {}
        return Cell.model_validate({"model": self.model, "data": data})


_D4 = {"depth": 4, "width": 64, "heads": 4}

SETTINGS = [
    Setting("d4-w64-p2, 8x8x1", {**_D4, "patch_size": 2}, 250, 10),
    Setting("d4-w64-p4, 32x32x4", {**_D4, "patch_size": 4}, 50, 10, latents=True),
]

#: FID-50K of the paper's S/2: parts of this size, a few of which are timed.
_S2 = Setting("S/2", {"depth": 12, "width": 384, "heads": 6, "patch_size": 2}, 250, 250, latents=True)
_PARTS, _ALL = 2, 50_000


def _network(setting: Setting, device: str, *, compiled: bool) -> Network:
    cell = setting.cell
    network = build(cell.model, cell.data.shape, cell.diffusion.outputs)
    network.initialise(0)
    if compiled:
        network.compile_regions()
    return network.to(device).eval().requires_grad_(False)


def _row(setting: Setting, *, compiled: bool) -> Row:
    cell, network = setting.cell, _network(setting, "cpu", compiled=compiled)
    evaluation = Evaluation(samples=setting.batch, sampling_steps=setting.steps, extractor="digits-cnn")
    generator = Generator(network, cell, evaluation, "cpu", compiled=compiled)
    x = torch.randn(setting.batch, cell.data.shape.channels, cell.data.shape.size, cell.data.shape.size)
    t = torch.randint(1, 1000, (setting.batch,))
    y = torch.from_numpy(streams_of(evaluation, 0, setting.batch, cell.data.shape).labels(cell.data.shape.classes))

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(setting.steps):
            network(x, t, y)

    def sampled() -> None:
        generator.finish(generator.draw(0, setting.batch, Hooks()))

    how = "compiled" if compiled else "eager"
    what = f"a DDPM step of {setting.batch} samples, {setting.name}, {how}, {torch.get_num_threads()} threads"
    return pair(what, ("forward pass", bare), ("sampling", sampled), calls=setting.steps)


def _compiled_row(setting: Setting) -> Row:
    """Eager sampling against compiled."""
    works = []
    for compiled in (True, False):
        network = _network(setting, "cpu", compiled=compiled)
        evaluation = Evaluation(samples=setting.batch, sampling_steps=setting.steps, extractor="digits-cnn")
        generator = Generator(network, setting.cell, evaluation, "cpu", compiled=compiled)
        works.append(lambda generator=generator: generator.draw(0, setting.batch, Hooks()))  # type: ignore[misc]
    what = f"a DDPM step of {setting.batch} samples, {setting.name}, {torch.get_num_threads()} threads"
    return pair(what, ("compiled", works[0]), ("eager", works[1]), calls=setting.steps)


def fid_50k_seconds() -> float | None:
    """Seconds that the samples of FID-50K of S/2 take on this GPU, from a few parts; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    network = _network(_S2, "cuda", compiled=True)
    evaluation = Evaluation(samples=_ALL, sampling_steps=_S2.steps)
    generator = Generator(network, _S2.cell, evaluation, "cuda", compiled=True)
    generator.finish(generator.draw(0, _S2.batch, Hooks()))  # compiles
    begun = time.perf_counter()
    for part in range(_PARTS):
        generator.finish(generator.draw(part * _S2.batch, _S2.batch, Hooks()))
    return (time.perf_counter() - begun) / (_PARTS * _S2.batch) * _ALL


def rows(threads: int) -> list[Row]:
    """Every setting, eager and compiled."""
    torch.set_num_threads(threads)
    return [
        row
        for setting in SETTINGS
        for row in (_row(setting, compiled=False), _row(setting, compiled=True), _compiled_row(setting))
    ]
