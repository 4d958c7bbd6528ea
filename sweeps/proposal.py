"""The sweep that suits a folder of images and a time: resolution, grid, steps, batch, evaluation. Pure; no files.

One chain of designs leads from modest to rich: the resolution rises to 32 pixels, then come two seeds, larger models,
and larger pictures. The richest one whose fewest useful steps fit the budget is taken, with as many steps as fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.spec.evaluation import TRAINED_DIMS
from harness.spec.model import nearest_heads
from sweeps.grid import Sweep, sweep_of

#: Depth and width of the models, each about twice as expensive as the one before; the last ones are the paper's.
LADDER = (
    *((2, 32), (2, 48), (2, 64), (3, 64), (4, 80), (5, 96), (6, 128), (8, 160), (10, 192)),
    *((12, 256), (12, 384), (12, 512), (12, 768), (24, 1024), (28, 1152)),
)

#: Shapes of a design: neighbours on the ladder.
SHAPES = 5

#: Pixels a side; from `_LATENTS` on, latents of 32 a side by an autoencoder that is trained on the folder.
RESOLUTIONS = (8, 16, 32, 64, 128, 256)
_LATENTS, _LATENT_SIDE, _LATENT_CHANNELS = 128, 32, 4

#: Up to this resolution more pixels come before all else. Beyond it models begin further up the ladder; and a
#: resolution below that of the images is kept for so many places of the ladder.
_SMALL, _PLACES_UP, _PLACES = 32, 2, 3

#: The width must carry the noise of a whole patch, with some room: at a width equal to the values of a patch the
#: models of `sweeps/fashion-latents.toml` failed.
_ROOM = 1.25

#: The fewest steps that are worth a study: at the lowest place, for each pixel of a side beyond, for each place up.
_FEWEST_STEPS, _STEPS_A_PIXEL, _STEPS_A_PLACE = 400, 25, 1.5

#: More passes over the images than this teach them by heart.
MOST_EPOCHS = 400

#: The share of the budget that is for what the plan counts; the rest is for starts, losses and scoring.
COUNTED = 0.85

#: Samples: at most, and at least for each feature of the extractor, below which a plan warns of the bias.
_MOST_SAMPLES, _SAMPLES_A_FEATURE = 10_000, 5

#: Images of a step on a CPU, and on a GPU where the folder has at least so many to learn from.
_BATCH, _GPU_BATCH, _MANY = 64, 256, 10_000


@dataclass(frozen=True)
class Facts:
    """What a proposal must know of a folder of images.

    Attributes:
        folder: its path.
        name: of the extractor that is trained on it.
        fingerprint: of its content.
        train: images to learn from, by class.
        heldout: images that are held out.
        side: median of the short sides, in pixels.
        labelled: whether the models learn the classes.
    """

    folder: str
    name: str
    fingerprint: str
    train: tuple[int, ...]
    heldout: int
    side: int
    labelled: bool

    @property
    def images(self) -> int:
        """Images to learn from."""
        return sum(self.train)


@dataclass(frozen=True)
class Design:
    """A proposal.

    Attributes:
        facts: of the folder.
        resolution: pixels a side.
        place: of the smallest shape on the ladder.
        seeds: trainings of each model.
        batch_size: images of a step.
        steps: of each training; 0: the fewest that are worth it.
    """

    facts: Facts
    resolution: int
    place: int
    seeds: int
    batch_size: int
    steps: int = 0

    @property
    def fewest_steps(self) -> int:
        """Steps below which the study is not worth its time."""
        fewest = max(_FEWEST_STEPS, _STEPS_A_PIXEL * self.resolution) * _STEPS_A_PLACE**self.place
        return min(_rounded(fewest), self.most_steps)

    @property
    def most_steps(self) -> int:
        """Steps that show every image `MOST_EPOCHS` times."""
        return max(1, MOST_EPOCHS * self.facts.images // self.batch_size)

    @property
    def on_latents(self) -> bool:
        """Whether the models learn latents instead of pixels."""
        return self.resolution >= _LATENTS

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Depth and width of the models."""
        return LADDER[self.place : self.place + SHAPES]

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """The larger patch first, where a model is wide enough for it."""
        small = 4 if self.resolution == 64 else 2
        return tuple(p for p in (2 * small, small) if any(self._carries(p, width) for _, width in self.shapes))

    @property
    def narrow(self) -> dict[int, list[int]]:
        """By patch size, the widths that do not carry the noise of a patch."""
        found = {p: [width for _, width in self.shapes if not self._carries(p, width)] for p in self.patch_sizes}
        return {patch_size: list(dict.fromkeys(widths)) for patch_size, widths in found.items() if widths}

    @property
    def samples(self) -> int:
        """Images to generate: half as many as there are to learn from, so that these give a floor for the distance."""
        wanted = min(self.facts.images // 2, max(500, self.fewest_steps), _MOST_SAMPLES)
        return max(_SAMPLES_A_FEATURE * TRAINED_DIMS, wanted // 100 * 100)

    def _carries(self, patch_size: int, width: int) -> bool:
        channels = _LATENT_CHANNELS if self.on_latents else 3
        return width >= _ROOM * channels * patch_size**2

    @cached_property
    def document(self) -> dict[str, Any]:
        """The sweep file, as TOML has it."""
        facts, steps = self.facts, self.steps or self.fewest_steps
        shapes = [{"depth": d, "width": w, "heads": nearest_heads(w)} for d, w in self.shapes]
        data = {"name": "folder", "resolution": self.resolution, "classes": len(facts.train)}
        data |= {"fingerprint": facts.fingerprint} | ({} if facts.labelled else {"labels": False})
        if self.on_latents:
            factor = self.resolution // _LATENT_SIDE
            data["vae"] = {"kind": "trained", "factor": factor, "channels": _LATENT_CHANNELS}
        document: dict[str, Any] = {
            "title": f"What compute buys on the images of {Path(facts.folder).name}",
            "grid": {"shape": shapes, "patch_size": [*self.patch_sizes], "seed": [*range(self.seeds)]},
            "data": data,
            "training": {
                "steps": steps,
                "batch_size": self.batch_size,
                "learning_rate": {"base": 3e-3, "width": 64, "exponent": 0.6},
                "warmup_steps": steps // 20,
                "gradient_clip": 1.0,
                "ema_window": 0.1,
            },
        }
        labels = {"labels": "training"} if facts.labelled else {}
        ddim = {"samples": self.samples, "sampler": "ddim", "sampling_steps": 25}
        document["evaluation"] = [ddim | labels | {"extractor": {"kind": "trained", "name": facts.name}}]
        if self.narrow:
            document["exclude"] = [{"patch_size": p, "width": widths} for p, widths in self.narrow.items()]
        return document | {"resources": {"data_folder": facts.folder}}

    def sweep(self, path: Path, study: str) -> Sweep:
        """The sweep that the file `path` will hold."""
        return sweep_of(path, study, self.document)


#: Seconds that a design takes.
Price = Callable[[Design], float]


def propose(facts: Facts, budget: float, price: Price, *, on_gpu: bool = False) -> Design:
    """The richest design that a budget allows, with as many steps as it allows; else the most modest one.

    Args:
        facts: of the folder.
        budget: in seconds.
        price: of a design.
        on_gpu: whether the cells run on a GPU.

    Returns:
        A design; it has fewer than its `fewest_steps` where the budget is too small for any.
    """
    designs = _chain(facts, on_gpu=on_gpu)
    found = next(designs)
    if affordable(found, budget, price):
        for design in designs:
            if not affordable(design, budget, price):
                break
            found = design
    return fitted(found, budget, price)


def affordable(design: Design, budget: float, price: Price) -> bool:
    """Whether a budget allows the fewest steps of a design."""
    return price(replace(design, steps=design.fewest_steps)) <= COUNTED * budget


def fitted(design: Design, budget: float, price: Price) -> Design:
    """A design with as many steps as a budget allows, at least one."""
    low, high = 1, design.most_steps
    while high - low > max(1, low // 100):
        middle = math.isqrt(low * high) if high > 4 * low else (low + high) // 2
        if price(replace(design, steps=middle)) <= COUNTED * budget:
            low = middle
        else:
            high = middle
    best = high if price(replace(design, steps=high)) <= COUNTED * budget else low
    return replace(design, steps=_rounded(best))


def _chain(facts: Facts, *, on_gpu: bool) -> Iterator[Design]:
    """The designs that suit a folder, from modest to rich."""
    batch = _GPU_BATCH if on_gpu and facts.images >= _MANY else _BATCH
    batch = min(batch, 1 << (facts.images.bit_length() - 1))
    resolutions = [side for side in RESOLUTIONS if side <= 1.25 * facts.side] or [RESOLUTIONS[0]]
    for resolution in resolutions:
        first = 0 if resolution <= _SMALL else _PLACES_UP
        modest = Design(facts, resolution, first, 1, batch)
        yield modest
        if resolution < min(_SMALL, resolutions[-1]):
            continue  # more pixels are worth more than what follows
        last = len(LADDER) - SHAPES if resolution == resolutions[-1] else first + _PLACES - 1
        for place in range(first, last + 1):
            design = replace(modest, place=place, seeds=2)
            if place > first and design.fewest_steps == design.most_steps:
                break  # the images are too few for models that need more steps
            yield design


def _rounded(steps: float) -> int:
    """Two digits of a number of steps, rounded down; of few steps all."""
    unit = 10 ** max(0, int(math.log10(steps)) - 1)
    return int(steps // unit * unit)
