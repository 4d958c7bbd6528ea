"""What a job needs, as plain data. The launcher pickles it, and another machine may read it days later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.launch.estimate import Basis
from harness.runs import provenance
from harness.runs.claims import Hold
from harness.runs.layout import EVALUATING, TRAINING
from harness.runs.state import Run
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.extension import Extension
from harness.spec.resources import Recording, Resources


class Placed(Protocol):
    """What is known of a job where it runs: what it was asked to run on, and the GPUs that it was given."""

    @property
    def resources(self) -> Resources:
        """What it runs on."""

    @property
    def gpu(self) -> str | None:
        """What CUDA_VISIBLE_DEVICES becomes, one a rank; None: no GPU."""


@dataclass(frozen=True)
class Payload:
    """A claimed attempt at a cell."""

    folder: str
    attempt: int
    token: str  # of the claim
    study: str
    cell: Cell
    evaluations: tuple[Evaluation, ...]
    recording: Recording
    resources: Resources
    results: str = "results"  # the folder that holds the studies, and what they share
    gpu: str | None = None  # what CUDA_VISIBLE_DEVICES becomes, one a rank; None: no GPU
    steps: tuple[int, ...] | None = None  # measure the kept weights of these steps, on the other track, and never train
    search: tuple[int, ...] = ()  # seeds of a search for the best guidance, see `harness.launch.guidance`
    origin: provenance.Origin | None = None  # the code and the command of the launch
    pooled: bool = False  # one of several cells of a Slurm job, which `harness.launch.slurm_pool` starts and requeues
    extensions: tuple[Extension, ...] = ()  # the user's own files
    basis: Basis | None = None  # what the job's estimate of its own time rests on; None: it makes none
    anew: bool = False  # what an older version began with other random draws is trained anew

    def __getstate__(self) -> dict[str, Any]:
        """The fields, the user's files first: unpickling loads them before the cell that uses them."""
        return {"extensions": self.extensions, **vars(self)}

    @property
    def run(self) -> Run:
        """The run that this is an attempt at."""
        return Run(Path(self.folder), track=TRAINING if self.steps is None else EVALUATING)

    @property
    def hold(self) -> Hold:
        """The claim, in which everything is written."""
        return Hold(self.run, self.attempt, self.token)

    @property
    def shared(self) -> Shared:
        """What the studies share."""
        return Shared(Path(self.results))
