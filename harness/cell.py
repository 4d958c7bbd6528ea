"""The specs: what a run *is* (Cell), how it is measured (Evaluation) and what it runs on (Resources).

Only `Cell` and `Evaluation` have ids. An id hashes the fields that differ from the schema's defaults, so a field
added later with a default leaves every older id unchanged. Therefore: a default never changes; a new behaviour is a
new value.
This module imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import InputError

ID_DIGITS = 12

_SpecT = TypeVar("_SpecT", bound=BaseModel)

#: The four designs of the paper, and adaln-gate: adaLN-Zero's gates without its zero initialisation.
Block = Literal["in-context", "cross-attention", "adaln", "adaln-zero", "adaln-gate"]

#: The published sizes (Peebles & Xie 2023, Table 1): depth, width, heads.
SIZES: dict[str, dict[str, int]] = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}


class InputShape(NamedTuple):
    """What a data set feeds the model: channels, pixels (or latent positions) per side, number of classes."""

    channels: int
    size: int
    classes: int


#: The data sets whose images have one size. The others (imagenet, folder) are cropped to `Data.resolution`.
INPUT_SHAPES: dict[str, InputShape] = {
    "digits": InputShape(channels=1, size=8, classes=10),
    "fashion-mnist": InputShape(channels=1, size=32, classes=10),
}


#: Classes of ImageNet (ILSVRC 2012).
IMAGENET_CLASSES = 1000


class ExtractorShape(NamedTuple):
    """What an extractor reads (channels, pixels per side; None: any) and how many features it gives."""

    channels: int
    size: int | None
    dims: int

    def reads(self, shape: InputShape) -> bool:
        """Whether images of this shape are what the extractor takes."""
        return self.channels == shape.channels and self.size in (None, shape.size)


#: The extractor behind FID.
INCEPTION = "inception-v3-compat"

#: Every feature extractor by name.
EXTRACTORS: dict[str, ExtractorShape] = {
    "digits-cnn": ExtractorShape(channels=1, size=8, dims=64),
    "fashion-cnn": ExtractorShape(channels=1, size=32, dims=64),
    INCEPTION: ExtractorShape(channels=3, size=None, dims=2048),  # resizes what it is given
}

#: The feature extractor that fits each data set, unless the evaluation names another.
DEFAULT_EXTRACTORS: dict[str, str] = {
    "digits": "digits-cnn",
    "fashion-mnist": "fashion-cnn",
    "imagenet": INCEPTION,
}


class Spec(BaseModel):
    """Base of all specs: frozen, unknown keys refused, scalars strict, floats finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def nearest_heads(width: int) -> int:
    """Number of attention heads when none is given: the divisor of `width` that brings a head nearest to 64 channels.

    All published sizes but XL have 64 channels a head. A tie goes to more heads.
    """
    divisors = [h for h in range(1, width + 1) if width % h == 0]
    return min(divisors, key=lambda h: (abs(width / h - 64), -h))


class Model(Spec):
    """Shape of a Diffusion Transformer (paper, section 3.2).

    Raises:
        ValidationError: `width` not divisible by `heads`, or by 4 (sin-cos positions need sine and cosine of two axes).
    """

    depth: int = Field(gt=0, description="number of transformer blocks")
    width: int = Field(gt=0, description="hidden size D")
    heads: int = Field(gt=0, description="attention heads; when left out, about 64 channels a head")
    patch_size: int = Field(gt=0, description="side p of a square patch; tokens T = (size / p)^2")
    block: Block = Field(default="adaln-zero", description="how timestep and label condition a block")
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden size of the MLP over width")

    @model_validator(mode="before")
    @classmethod
    def _fill_heads(cls, values: Any) -> Any:
        if isinstance(values, dict) and "heads" not in values:
            width = values.get("width")
            # of a wrong width, the width alone is to be complained about
            heads = nearest_heads(width) if isinstance(width, int) and width > 0 else 1
            return {**values, "heads": heads}
        return values

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not divisible by 4, as the sin-cos positions need")
        return self


class Diffusion(Spec):
    """The forward process and the objective (paper, section 3.1; Nichol & Dhariwal 2021 for the hybrid loss)."""

    objective: Literal["ddpm-hybrid"] = Field(
        default="ddpm-hybrid", description="noise MSE plus the variational term that trains the learned variance"
    )
    schedule: Literal["linear"] = "linear"
    timesteps: int = Field(default=1000, gt=1, description="T, steps of the forward process")
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=2e-2, gt=0, lt=1)


class PretrainedVae(Spec):
    """An autoencoder trained elsewhere: a diffusers `AutoencoderKL`, by its hub name or the name of a local folder.

    Where the folder lies is no part of the science; the hash of the weights stands in the records.
    """

    kind: Literal["pretrained"]
    name: str = Field(min_length=1, description='for example "stabilityai/sd-vae-ft-mse"')
    factor: int = Field(default=8, gt=1, description="pixels per latent position and side, a power of two")
    channels: int = Field(default=4, gt=0, description="channels of the latent")
    scaling: Literal["measured"] | Annotated[float, Field(gt=0)] = Field(
        default=0.18215, description="latents are multiplied by this; measured: 1 / std over the train split"
    )

    @model_validator(mode="after")
    def _halvings(self) -> Self:
        _check_factor(self.factor)
        return self


class TrainedVae(Spec):
    """An autoencoder that `dit-harness train-vae` makes of the data at hand. Its recipe is its identity.

    Its latents are scaled by the measured 1 / std over the train split.
    """

    kind: Literal["trained"]
    factor: int = Field(default=4, gt=1, description="pixels per latent position and side, a power of two")
    channels: int = Field(default=4, gt=0, description="channels of the latent")
    width: int = Field(default=32, gt=0, description="channels at full resolution, doubled at every halving")
    steps: int = Field(default=2000, gt=0)
    batch_size: int = Field(default=64, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    kl_weight: float = Field(default=1e-6, ge=0, description="weight of the KL term against the L1 error a pixel")
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _halvings(self) -> Self:
        _check_factor(self.factor)
        return self


Vae = PretrainedVae | TrainedVae


def _check_factor(factor: int) -> None:
    if factor & (factor - 1):
        raise ValueError(f"factor {factor} is no power of two; allowed: 2, 4, 8, 16, ...")


class Data(Spec):
    """What is learned. Where the files lie is a resource, not a part of the science."""

    name: Literal["digits", "fashion-mnist", "imagenet", "folder"] = "digits"
    labels: bool = Field(default=True, description="false trains without labels (no classes)")
    horizontal_flips: bool = Field(default=False, description="mirror half of the training images at random")
    resolution: int | None = Field(default=None, gt=0, description="imagenet, folder: crop to this many pixels a side")
    classes: int | None = Field(default=None, gt=0, description="folder: number of classes (subfolders)")
    fingerprint: str | None = Field(
        default=None, pattern="^[0-9a-f]{12}$", description="folder: as `python -m harness.data.images FOLDER` says"
    )
    vae: Annotated[Vae, Field(discriminator="kind")] | None = Field(
        default=None, description="learn the latents of this autoencoder instead of pixels"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        wanted = {"imagenet": ("resolution",), "folder": ("resolution", "classes", "fingerprint")}.get(self.name, ())
        for key in ("resolution", "classes", "fingerprint"):
            given = getattr(self, key) is not None
            if key in wanted and not given:
                hint = ", for example 256" if key == "resolution" else ""
                hint = "; `python -m harness.data.images FOLDER` says it" if key != "resolution" else hint
                raise ValueError(f"name {self.name} needs {key}{hint}")
            if given and key not in wanted:
                raise ValueError(f"{key} is fixed for name {self.name}; leave it out")
        size = self.image_shape.size
        if self.vae is not None and size % self.vae.factor:
            allowed = ", ".join(str(2**n) for n in range(1, 8) if size % 2**n == 0)
            raise ValueError(
                f"vae.factor {self.vae.factor} does not divide the {size}x{size} images; allowed: {allowed}"
            )
        return self

    @property
    def image_shape(self) -> InputShape:
        """Channels, size and classes of the images: what is stored, and what the latents are decoded to."""
        if self.name in INPUT_SHAPES:
            return INPUT_SHAPES[self.name]
        assert self.resolution is not None  # _complete refuses it missing
        return InputShape(3, self.resolution, self.classes or IMAGENET_CLASSES)

    @property
    def shape(self) -> InputShape:
        """Channels, size and classes of the model's input, a latent with a VAE; 0 classes when labels are not used."""
        shape = self.image_shape
        if self.vae is not None:
            shape = shape._replace(channels=self.vae.channels, size=shape.size // self.vae.factor)
        return shape if self.labels else shape._replace(classes=0)


class Training(Spec):
    """The recipe. The defaults are the paper's (section 4): AdamW, constant rate, no decay, no warm-up, EMA 0.9999."""

    steps: int = Field(default=400_000, gt=0)
    batch_size: int = Field(default=256, gt=0, description="global batch, whatever the number of ranks")
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    label_dropout: float = Field(default=0.1, ge=0, le=1, description="share of labels replaced by the null class")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast with fp32 weights")
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="constant decay of the averaged weights")
    ema_window: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="average over about this share of the run so far instead of a constant decay, "
        "so that a short run does not sample its initial weights",
    )

    @model_validator(mode="after")
    def _one_ema(self) -> Self:
        if self.ema_window is not None and self.ema_decay != type(self).model_fields["ema_decay"].default:
            raise ValueError("ema_decay and ema_window exclude each other; give one of them")
        return self


class Cell(Spec):
    """One point of a grid: everything that decides the trained weights, and nothing else."""

    model: Model
    diffusion: Diffusion = Diffusion()
    data: Data = Data()
    training: Training = Training()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _patches_tile_the_input(self) -> Self:
        size, patch = self.data.shape.size, self.model.patch_size
        if size % patch:
            allowed = ", ".join(str(p) for p in range(1, size + 1) if size % p == 0)
            raise ValueError(
                f"model.patch_size {patch} does not divide the {size}x{size} "
                f"{'latents' if self.data.vae else 'input'} of {self.data.name}; "
                f"allowed: {allowed}"
            )
        return self

    @property
    def id(self) -> str:
        """First 12 hex digits of sha256 over the canonical JSON of what differs from the defaults."""
        return spec_id(self)

    @property
    def tokens(self) -> int:
        """T, the length of the patch sequence."""
        return (self.data.shape.size // self.model.patch_size) ** 2


class Evaluation(Spec):
    """How a checkpoint is measured. Its id leaves `at` out: the record of one step is `<id>@<step>`."""

    samples: int = Field(default=50_000, ge=2, description="N; values at different N do not compare")
    sampler: Literal["ddpm", "ddim"] = Field(default="ddpm", description="ancestral DDPM, or deterministic DDIM")
    sampling_steps: int = Field(default=250, gt=0, description="respaced from the training timesteps")
    guidance: float = Field(default=1.0, ge=0, description="classifier-free guidance scale; 1 means none")
    guidance_channels: Literal["as-published", "all", "first-three"] = Field(
        default="as-published",
        description="which noise channels are guided; as-published: the first three of four, all of any other number",
    )
    extractor: str | None = Field(default=None, description="feature space; when left out, the data set's own")
    reference: Literal["train", "held-out", "adm"] = Field(
        default="train", description="the real images compared with; adm: the batch that resources.adm_reference names"
    )
    ema: bool = Field(default=True, description="sample with the averaged weights")
    labels: Literal["uniform", "balanced", "training"] = Field(
        default="uniform",
        description="classes of the samples: drawn evenly (as the paper), in turn, or as often as in the train split",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="decides noise and label of every sample index")
    at: tuple[int, ...] = Field(default=(), strict=False, description="training steps to measure at besides the last")

    def resolved(self, data: Data) -> Evaluation:
        """The same evaluation with the extractor filled in, where the data set has one of its own."""
        if self.extractor is not None:
            return self
        return self.model_copy(update={"extractor": DEFAULT_EXTRACTORS.get(data.name)})

    def guided_channels(self, channels: int) -> int:
        """How many leading noise channels of a model of so many channels are guided.

        Raises:
            ValueError: the first three of fewer.
        """
        if self.guidance_channels == "first-three" and channels < 3:
            raise ValueError(f"first-three needs at least 3 channels, the model has {channels}")
        three = self.guidance_channels == "first-three" or (self.guidance_channels == "as-published" and channels == 4)
        return 3 if three else channels

    @property
    def id(self) -> str:
        """As `Cell.id`, without `at`."""
        return spec_id(self.model_copy(update={"at": ()}))

    def steps(self, training_steps: int) -> list[int]:
        """The training steps to measure at, ascending, the last one included."""
        return sorted({step for step in self.at if step <= training_steps} | {training_steps})


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


class Resources(Spec):
    """What the cells run on. Outside every id: the same cell on other resources is the same cell."""

    executor: Literal["local", "slurm"] = "local"
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


def _differences(spec: BaseModel) -> dict[str, Any]:
    """What differs from the schema's defaults; required fields always count."""
    out: dict[str, Any] = {}
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            if nested := _differences(value):
                out[name] = nested
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            out[name] = _canonical(value)
    return out


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        return value + 0.0  # turns -0.0 into 0.0
    if isinstance(value, tuple):
        return [_canonical(v) for v in value]
    return value


def canonical_json(spec: BaseModel) -> str:
    """Canonical JSON of what differs from the defaults: sorted keys, no spaces, no NaN."""
    return json.dumps(_differences(spec), sort_keys=True, separators=(",", ":"), allow_nan=False)


@lru_cache(maxsize=100_000)  # a sweep asks many times for the ids of its cells, and for the same evaluation with each
def spec_id(spec: BaseModel) -> str:
    """First 12 hex digits of sha256 over `canonical_json`."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:ID_DIGITS]


def describe_validation_error(error: ValidationError, prefix: str = "") -> str:
    """One line of a pydantic error: the key, what is wrong, what is allowed."""
    parts = []
    for item in error.errors():
        key = ".".join(str(p) for p in (prefix, *item["loc"]) if p != "")
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"] in ("union_tag_not_found", "union_tag_invalid"):
            message = "needs a kind; allowed: 'pretrained', 'trained'"  # the one union there is: vae
        elif "ctx" not in item or "error" not in item["ctx"]:
            message = f"{message} (got {item['input']!r})"
        parts.append(f"{key}: {message}" if key else message)
    return "; ".join(parts)


def validated(spec: type[_SpecT], table: Mapping[str, Any], key: str) -> _SpecT:
    """A spec from a table of its fields.

    Raises:
        InputError: one line with every key, below `key`, what is wrong, and what is allowed.
    """
    try:
        return spec.model_validate(table)
    except ValidationError as error:
        message = describe_validation_error(error, key)
        if any(item["type"] == "extra_forbidden" for item in error.errors()):
            message += f"; allowed: {', '.join(spec.model_fields)}"
        raise InputError(message) from None
