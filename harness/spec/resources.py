"""What training writes down, and what the cells run on. Outside every id."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from harness.files import at_home
from harness.spec.evaluation import EXTRACTORS
from harness.spec.identity import Spec
from harness.spec.kinds import Kind

#: How a network is compiled: not at all, part by part (see `Network.regions`), or as one graph. "on" is what the
#: records of older versions call it part by part.
Compilation = Literal["off", "on", "whole"]


class Recording(Spec):
    """What training writes down on the way. Changes no weight, so it is outside every id."""

    loss_steps: tuple[int, ...] = Field(
        default=(),
        strict=False,
        description="steps at which the denoising loss is measured, besides those of evaluations; "
        "by default a quarter and a half of the training",
    )
    loss_images: int = Field(
        default=256, gt=0, description="images of each split that the denoising loss is measured on"
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=(),
        strict=False,
        description="programs that losses, images/s and metrics are copied to",
    )

    def steps(self, training_steps: int, evaluated: list[int]) -> set[int]:
        """The steps to measure the denoising loss at, the evaluated ones included."""
        chosen = self.loss_steps or (training_steps // 4, training_steps // 2)
        return {step for step in chosen if 0 < step <= training_steps} | set(evaluated)


#: Marks of fields, for the command line and the docs: read by Slurm only; the name of a file or folder.
_SLURM = Field(json_schema_extra={"executor": "slurm"})
_PATH = Field(json_schema_extra={"format": "path"})

#: The name of a file or folder, in which `~` is the user's home.
_Path = Annotated[str, AfterValidator(at_home)]

#: One printable word, so that it stays one line of a script.
_SlurmWord = Annotated[
    str | None, _SLURM, Field(pattern=r"^[!-~]+$", description="a name or expression, as sbatch takes it")
]


class ExecutorFacts(NamedTuple):
    """Where the code of an executor is, and whether its jobs go on without the launch that started them."""

    at: str
    detached: bool


EXECUTORS = Kind(
    "EXECUTORS",
    {
        "local": ExecutorFacts("harness.launch.local:LOCAL", detached=False),
        "slurm": ExecutorFacts("harness.launch.slurm:SLURM", detached=True),
    },
)


class Resources(Spec):
    """What the cells run on. Outside every id: the same cell on other resources is the same cell."""

    executor: Annotated[str, EXECUTORS] = Field(default="local", description="what runs the cells")
    slots: int | None = Field(
        default=None, gt=0, description="cells at once on this machine; by default as many as its cores or GPUs allow"
    )
    threads: int = Field(default=1, gt=0, description="CPU threads of a cell, or of each of its ranks")
    ranks: int = Field(
        default=1, gt=0, description="processes that share one cell on each node, each with a GPU of its own"
    )
    nodes: Annotated[int, _SLURM] = Field(default=1, gt=0, description="nodes of one cell, each with `ranks` processes")
    micro_batch: int | None = Field(
        default=None,
        gt=0,
        description="most images that a rank trains on at once, a divisor of its share; gradients add up to the global "
        "batch; by default its share, on a GPU half of it, a quarter, ... where that does not fit",
    )
    recompute: bool = Field(
        default=False,
        description="keep no activations inside the network's blocks, and compute them again in the backward pass: "
        "less memory, about a third more time, the same weights",
    )
    cells_per_gpu: int = Field(default=1, gt=0, description="cells that share one GPU")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="what computes; auto: a GPU where one is visible, else the CPU"
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="whether the network is compiled; auto: where the work is long enough to pay for it",
    )
    checkpoint_seconds: float | None = Field(
        default=None,
        ge=0,
        description="seconds between two checkpoints, the most that a kill -9 loses; 0 writes one at every step; by "
        "default a tenth of the time trained so far, at least 5 s and 50 times what a checkpoint takes, at most 120 s",
    )
    sampling_batch: int = Field(
        default=250, gt=0, description="images sampled at once; interrupted sampling goes on after the last whole batch"
    )
    data_folder: Annotated[_Path | None, _PATH] = Field(default=None, description="folder with the data set's files")
    data_download: bool = Field(default=False, description="download missing data (torchvision)")
    inception_weights: Annotated[_Path | None, _PATH] = Field(
        default=None, description="file with the weights of inception-v3-compat"
    )
    dinov2_weights: Annotated[_Path | None, _PATH] = Field(
        default=None, description="file with the weights of dinov2-vit-l14"
    )
    adm_reference: Annotated[_Path | None, _PATH] = Field(
        default=None, description='file behind reference = "adm": an .npz with mu, sigma and arr_0'
    )
    # what Slurm gives one cell, which is a job or a slot of a job
    partition: _SlurmWord = None
    account: _SlurmWord = None
    qos: _SlurmWord = None
    constraint: _SlurmWord = None
    time: Annotated[int, _SLURM] = Field(
        default=1440, gt=0, description="minutes of a job; a cell that takes longer writes a checkpoint and is requeued"
    )
    mem_gb: Annotated[float | None, _SLURM] = Field(
        default=None, gt=0, description="GiB of a cell on each node; by default what the partition gives"
    )
    gpus: Annotated[int | None, _SLURM] = Field(
        default=None,
        ge=0,
        description='GPUs of a node: 0, or one for each rank; by default 0, with device = "cuda" one for each rank',
    )
    cells_per_job: Annotated[int | None, _SLURM] = Field(
        default=None,
        gt=0,
        description="slots of a job, each of which runs cell after cell; by default every cell is a job",
    )
    max_parallel: Annotated[int | None, _SLURM] = Field(
        default=None, gt=0, description="jobs at once; by default all, with `cells_per_job` one"
    )

    @model_validator(mode="after")
    def _gpus_fit_the_device(self) -> Self:
        if self.gpus is not None and (self.device, self.gpus > 0) in (("cpu", True), ("cuda", False)):
            raise ValueError(f'gpus {self.gpus} contradicts device "{self.device}"; leave one of them out')
        if self.gpus not in (None, 0, self.ranks):
            raise ValueError(
                f"gpus {self.gpus} contradicts ranks {self.ranks}, for each rank has one GPU; leave gpus out, "
                'for device = "cuda" gives each rank one'
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

    def weights_of(self, extractor: str) -> str | None:
        """The file with the weights of an extractor, if one is named."""
        path: str | None = getattr(self, EXTRACTORS.facts(extractor).weights, None)
        return path

    @property
    def gpus_wanted(self) -> int:
        """GPUs of each node of a cell's Slurm job."""
        return self.gpus if self.gpus is not None else self.ranks * (self.device == "cuda")

    @property
    def world(self) -> int:
        """Processes that train one cell together, over all nodes."""
        return self.ranks * self.nodes


#: The fields that name a file or a folder.
PATHS = tuple(name for name, field in Resources.model_fields.items() if field.json_schema_extra == {"format": "path"})
