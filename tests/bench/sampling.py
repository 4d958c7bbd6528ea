"""Sampling against the same forward passes alone, eager and compiled; on a GPU also the samples of FID-50K of S/2."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from harness.evaluation.generate import Generator, streams_of
from harness.model.network import build
from harness.spec.evaluation import Evaluation
from harness.training.hooks import Hooks
from tests.bench.pairs import Row, pair
from tests.bench.training import Setting

_D4 = {"depth": 4, "width": 64, "heads": 4}

#: `batch` is samples at once, `steps` those of a call.
SETTINGS = [
    Setting("d4-w64-p2, 8x8x1", {**_D4, "patch_size": 2}, 250, 10),
    Setting("d4-w64-p4, 32x32x4", {**_D4, "patch_size": 4}, 50, 10, latents=True),
]

_S2 = Setting("S/2", {"depth": 12, "width": 384, "heads": 6, "patch_size": 2}, 250, 250, latents=True)

#: Parts of S/2 that are timed, and samples that are asked for.
_PARTS, _ALL = 2, 50_000


class Works(NamedTuple):
    """Calls of one network."""

    forward: Callable[[], object]  # on a fixed batch, as often as there are steps
    sample: Callable[[], object]  # a part: labels, noise, steps and levels


def works(setting: Setting, device: str, *, compiled: bool) -> Works:
    """The network of a setting, and what is timed of it."""
    cell, count = setting.cell, setting.batch
    network = build(cell.model, cell.data.shape, cell.diffusion.outputs)
    network.initialise(0)
    network.to(device).eval().requires_grad_(False)
    if compiled:
        network.compile_regions()
    evaluation = Evaluation(samples=_ALL, sampling_steps=setting.steps)
    generator = Generator(network, cell, evaluation, device, compiled=compiled)
    channels, size, classes = cell.data.shape
    x, t = torch.randn(count, channels, size, size, device=device), torch.full((count,), 500, device=device)
    y = torch.from_numpy(streams_of(evaluation, 0, count, cell.data.shape).labels(classes)).to(device)

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(setting.steps):
            network(x, t, y)

    return Works(forward, lambda: generator.finish(generator.draw(0, count, Hooks())))


def fid_50k_seconds() -> float | None:
    """Seconds that the samples of FID-50K of S/2 take on this GPU, by a few parts, undecoded; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    sample = works(_S2, "cuda", compiled=True).sample
    sample()  # compiles
    begun = time.perf_counter()
    for _ in range(_PARTS):
        sample()
    return (time.perf_counter() - begun) / (_PARTS * _S2.batch) * _ALL


def rows(threads: int) -> list[Row]:
    """Every setting: sampling against the forward passes, eager and compiled, and both against each other."""
    torch.set_num_threads(threads)
    found = []
    for setting in SETTINGS:
        what = f"a DDPM step of {setting.batch} samples, {setting.name}, {threads} threads"
        both = [(how, works(setting, "cpu", compiled=how == "compiled")) for how in ("eager", "compiled")]
        for how, work in both:
            a, b = (f"forward pass, {how}", work.forward), (f"sampling, {how}", work.sample)
            found.append(pair(what, a, b, calls=setting.steps))
        eager, compiled = (work.sample for _, work in both)
        found.append(pair(what, ("sampling, compiled", compiled), ("sampling, eager", eager), calls=setting.steps))
    return found
