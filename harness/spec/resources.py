"""What training writes down, and what the cells run on. Outside every id."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from harness.spec.identity import Spec
from harness.spec.kinds import Kind


class Recording(Spec):
    """What training writes down on the way. Changes no weight, so it is outside every id."""

    loss_steps: tuple[int, ...] = Field(
        default=(),
        strict=False,
        description="steps at which the denoising loss is measured; by default 1/4 and 1/2; always at evaluated ones",
    )
    loss_images: int = Field(default=256, gt=0, description="images of each split in the denoising loss")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(),
        strict=False,
        description="where losses, images/s and metrics are copied to; see harness/trackers.py",
    )

    def steps(self, training_steps: int, evaluated: list[int]) -> set[int]:
        """The steps to measure the denoising loss at, the evaluated ones included."""
        chosen = self.loss_steps or (training_steps // 4, training_steps // 2)
        return {step for step in chosen if 0 < step <= training_steps} | set(evaluated)


#: Names that Slurm knows, and expressions of constraints: one printable word, so that it stays one line of a script.
_SLURM_WORD = r"^[!-~]+$"


class ExecutorFacts(NamedTuple):
    """Where an executor is."""

    at: str


EXECUTORS = Kind(
    "EXECUTORS",
    {"local": ExecutorFacts("harness.launch.local:LOCAL"), "slurm": ExecutorFacts("harness.launch.slurm:SLURM")},
)


class Resources(Spec):
    """What the cells run on. Outside every id: the same cell on other resources is the same cell."""

    executor: Annotated[str, EXECUTORS] = "local"
    slots: int | None = Field(default=None, gt=0, description="cells at once; by default what cores or GPUs allow")
    threads: int = Field(default=1, gt=0, description="CPU threads of a rank")
    ranks: int = Field(default=1, gt=0, description="processes of one cell on each node; each has a GPU of its own")
    nodes: int = Field(default=1, gt=0, description="nodes of one cell; more than one on Slurm only")
    micro_batch: int | None = Field(
        default=None, gt=0, description="images of a rank per forward and backward pass; by default its whole share"
    )
    cells_per_gpu: int = Field(default=1, gt=0, description="cells that share one GPU")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_seconds: float = Field(default=120.0, ge=0, description="time between checkpoints; 0: every step")
    sampling_batch: int = Field(default=250, gt=0, description="images sampled at once; sampling resumes on its bounds")
    data_folder: str | None = Field(default=None, description="folder with the data set's files")
    data_download: bool = Field(default=False, description="let torchvision download what is missing")
    inception_weights: str | None = Field(default=None, description="file of the weights of inception-v3-compat")
    adm_reference: str | None = Field(default=None, description='file behind reference = "adm": mu, sigma, ..., arr_0')
    # the request of one cell, which is a Slurm job or has a slot of one; without meaning to the local executor
    partition: str | None = Field(default=None, pattern=_SLURM_WORD)
    account: str | None = Field(default=None, pattern=_SLURM_WORD)
    qos: str | None = Field(default=None, pattern=_SLURM_WORD)
    constraint: str | None = Field(default=None, pattern=_SLURM_WORD)
    time: int = Field(default=1440, gt=0, description="minutes; a longer cell is checkpointed and requeued")
    mem_gb: float | None = Field(
        default=None, gt=0, description="GiB of a cell on each node; by default the partition's"
    )
    gpus: int | None = Field(
        default=None, ge=0, description='of each node, one a rank; by default `ranks` with device = "cuda", else none'
    )
    cells_per_job: int | None = Field(
        default=None, gt=0, description="slots of a job that runs cell after cell in each; by default one job a cell"
    )
    max_parallel: int | None = Field(
        default=None, gt=0, description="jobs of one launch at once; by default all, with cells_per_job one"
    )

    @model_validator(mode="after")
    def _gpus_fit_the_device(self) -> Self:
        if self.gpus is not None and (self.device, self.gpus > 0) in (("cpu", True), ("cuda", False)):
            raise ValueError(f'gpus {self.gpus} contradicts device "{self.device}"; leave one of them out')
        if self.gpus not in (None, 0, self.ranks):
            raise ValueError(
                f"gpus {self.gpus} contradicts ranks {self.ranks}, for each rank has one GPU; leave gpus out"
            )
        return self

    @model_validator(mode="after")
    def _cells_share_by_whole_cells(self) -> Self:
        for key, many in (("cells_per_job", self.cells_per_job is not None), ("cells_per_gpu", self.cells_per_gpu > 1)):
            if many and self.world > 1:
                raise ValueError(
                    f"{key} {getattr(self, key)} is for cells of one process; allowed: ranks 1 and nodes 1"
                )
        return self

    @property
    def gpus_wanted(self) -> int:
        """GPUs of each node of a cell's Slurm job."""
        return self.gpus if self.gpus is not None else self.ranks * (self.device == "cuda")

    @property
    def world(self) -> int:
        """Processes that train one cell together, over all nodes."""
        return self.ranks * self.nodes
