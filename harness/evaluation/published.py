"""Published values of released checkpoints, which `dit-harness verify` holds ours against: `published.csv`.

A tolerance is what another sampling and other code for the same may move a value by: 2 % of an FID and 0.03, 3 % of an
sFID and 0.04, 3 % of an inception score, 0.02 of precision and recall, which are published to two digits.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, field_validator

from harness.errors import InputError
from harness.spec.data import Data, InputShape, PretrainedVae
from harness.spec.evaluation import INCEPTION, Evaluation
from harness.spec.model import DiTSpec

TABLE = Path(__file__).with_name("published.csv")

#: The metrics that the table may hold, by their columns in results.csv.
METRICS = ("frechet", "sfid", "inception_score", "precision", "recall")


class Value(NamedTuple):
    """A published value."""

    metric: str
    value: float
    tolerance: float


class Published(BaseModel):
    """A row of the table: a released model, how it was sampled, and what came out.

    Attributes:
        model: its name in the literature.
        objective: what it was trained for.
        resolution: pixels a side of its images.
        guidance: scale of classifier-free guidance, with `sampler` and `sampling_steps` as `Evaluation` has them.
        samples: N.
        decoder: name of the autoencoder on the Hugging Face hub.
        reference: file of the ADM suite, without its ending.
        source: paper and table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    objective: str
    resolution: int
    patch_size: int
    depth: int
    width: int
    heads: int
    guidance: float
    samples: int
    sampler: str
    sampling_steps: int
    decoder: str
    reference: str
    frechet: float
    frechet_tolerance: float
    sfid: float | None
    sfid_tolerance: float | None
    inception_score: float | None
    inception_score_tolerance: float | None
    precision: float | None
    precision_tolerance: float | None
    recall: float | None
    recall_tolerance: float | None
    source: str

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, text: str) -> str | None:
        return text or None

    @property
    def values(self) -> list[Value]:
        """What was published of it."""
        found = [(metric, getattr(self, metric), getattr(self, f"{metric}_tolerance")) for metric in METRICS]
        return [Value(metric, value, tolerance) for metric, value, tolerance in found if value is not None]

    @property
    def evaluation(self) -> Evaluation:
        """How it was measured; the rest is the paper's, which are the defaults of `Evaluation`."""
        return Evaluation(
            samples=self.samples,
            sampler=self.sampler,
            sampling_steps=self.sampling_steps,
            guidance=self.guidance,
            extractor=INCEPTION,
            reference="adm",
        )

    @property
    def data(self) -> Data:
        """What it learned: ImageNet's latents."""
        return Data(
            name="imagenet", resolution=self.resolution, vae=PretrainedVae(kind="pretrained", name=self.decoder)
        )

    def is_of(self, model: DiTSpec, shape: InputShape, objective: str) -> bool:
        """Whether it is of a network of this shape; the heads, which no checkpoint shows, do not matter."""
        mine = (self.objective, self.data.shape, self.patch_size, self.depth, self.width)
        return mine == (objective, shape, model.patch_size, model.depth, model.width)

    @property
    def label(self) -> str:
        """Model and resolution."""
        return f"{self.model} {self.resolution}x{self.resolution}"


def rows() -> list[Published]:
    """All rows of the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [Published.model_validate(row) for row in csv.DictReader(file)]


def find(source: Path, model: DiTSpec, shape: InputShape, objective: str, guidance: float | None) -> Published:
    """The row of a checkpoint.

    Args:
        source: the checkpoint, for messages.
        model: its network.
        shape: of its input.
        objective: what it was trained for.
        guidance: scale; None: that of the first row of this shape.

    Raises:
        InputError: the table has none of this shape, or not with this guidance; the message lists those it has.
    """
    table = rows()
    same = [row for row in table if row.is_of(model, shape, objective)]
    if not same:
        known = dict.fromkeys(f"{row.label} ({row.objective})" for row in table)
        raise InputError(
            f"{source}: nothing is published of objective {objective}, depth {model.depth}, width {model.width}, "
            f"patch_size {model.patch_size}, input {shape.size}x{shape.size}x{shape.channels}, {shape.classes} "
            f"classes; the table has {', '.join(known)}"
        )
    found = [row for row in same if guidance in (None, row.guidance)]
    if not found:
        allowed = ", ".join(f"{row.guidance:g}" for row in same)
        raise InputError(f"--guidance: {guidance:g} is not published of {same[0].label}; allowed: {allowed}")
    return found[0]
