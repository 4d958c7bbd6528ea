"""How a checkpoint is measured: feature extractors, and the evaluation with its id."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Discriminator, Field, Tag

from harness.errors import InputError
from harness.spec.data import DATA_SETS, Data, InputShape
from harness.spec.identity import Spec, spec_id
from harness.spec.kinds import Kind


class ExtractorFacts(NamedTuple):
    """Where the code of an extractor is, and what must be known about it before anything is measured.

    Attributes:
        at: the extractor.
        channels: of the images it reads.
        size: pixels a side that it reads; None: any.
        dims: how many features it gives per image.
        references: published statistics of its features, besides the data set's own splits.
        external: whether its weights come from outside this package; a launch then checks that they are there.
        weights: field of `Resources` that names the file of its weights; empty: it has none.
        gmacs: 1e9 multiply-adds for one image, about; 0 where it does not matter.
    """

    at: str
    channels: int
    size: int | None
    dims: int
    references: tuple[str, ...] = ()
    external: bool = False
    weights: str = ""
    gmacs: float = 0.0


#: The extractor behind FID.
INCEPTION = "inception-v3-compat"

EXTRACTORS = Kind(
    "EXTRACTORS",
    {
        "digits-cnn": ExtractorFacts("harness.evaluation.classifier:DIGITS_CNN", 1, 8, 64, gmacs=0.0004),
        "fashion-cnn": ExtractorFacts("harness.evaluation.classifier:FASHION_CNN", 1, 32, 64, gmacs=0.003),
        INCEPTION: ExtractorFacts(
            "harness.evaluation.inception:INCEPTION",
            *(3, None, 2048, ("adm",)),
            external=True,
            weights="inception_weights",
            gmacs=5.7,
        ),
        "dinov2-vit-l14": ExtractorFacts(
            "harness.evaluation.dinov2:DINOV2", 3, None, 1024, external=True, weights="dinov2_weights", gmacs=78
        ),
    },
    noun="extractor",
)


#: Where the code of all trained extractors is.
TRAINED_AT = "harness.evaluation.trained:TRAINED"

#: What a trained extractor is: features of an image, most channels of a convolution, widest input of the second one.
TRAINED_DIMS, _MOST_CHANNELS, _FULL_SIZE = 64, 64, 32


class TrainedExtractor(Spec):
    """An extractor that `launch` trains on the sweep's own images, once. Its recipe and the images are its identity.

    It is a small classifier of their classes; of images without classes one of quarter turns. See
    `harness.evaluation.trained`.
    """

    kind: Literal["trained"] = Field(description="where the extractor is from")
    name: str = Field(
        default="trained", pattern="^[a-z][a-z0-9-]*$", description="of its features: distances are FD-<name>"
    )
    width: int = Field(
        default=16, gt=0, description="channels of the first convolution, doubled at every halving, up to 64"
    )
    steps: int = Field(default=500, gt=0, description="optimizer steps")
    batch_size: int = Field(default=128, gt=1, description="images of a step")
    learning_rate: float = Field(default=2e-3, gt=0, description="highest learning rate of AdamW")
    seed: int = Field(default=0, ge=0, lt=2**31, description="decides initialisation, order and corruption")

    def id_on(self, data: Data) -> str:
        """The id of this recipe on these images, whatever share of them a cell learns, as pixels or as latents."""
        plain = {"labels": True, "horizontal_flips": False, "subset": None, "vae": None}
        return spec_id(_TrainedOn(data=data.model_copy(update=plain), extractor=self))

    def folder_name(self, data: Data) -> str:
        """Name of its folder (see `harness.runs.study.Shared`)."""
        return f"{data.name}-{self.id_on(data)}"

    def stride(self, size: int) -> int:
        """Of the first convolution: what it gives has 32 pixels a side at most."""
        stride = 1
        while size // stride > _FULL_SIZE:
            stride *= 2
        return stride

    def widths(self, size: int) -> tuple[int, ...]:
        """Channels of the convolutions, each at half the resolution of the one before, down to 4 to 7 pixels a side."""
        widths, size = [self.width], size // self.stride(size)
        while size >= 8:
            widths.append(min(2 * widths[-1], max(self.width, _MOST_CHANNELS)))
            size //= 2
        return tuple(widths)

    def gmacs(self, shape: InputShape) -> float:
        """1e9 multiply-adds for one image."""
        stride, inner, total = self.stride(shape.size), shape.channels, 0
        size, kernel = shape.size // stride, 3 if stride == 1 else 2 * stride
        for outer in self.widths(shape.size):
            total += size**2 * inner * outer * kernel**2
            side, size, kernel, inner = size, size // 2, 3, outer
        return (total + TRAINED_DIMS * (inner * side**2 + max(shape.classes, 4))) / 1e9

    def facts(self, shape: InputShape) -> ExtractorFacts:
        """What must be known about it before it is trained on images of this shape."""
        return ExtractorFacts(TRAINED_AT, shape.channels, shape.size, TRAINED_DIMS, gmacs=self.gmacs(shape))


class _TrainedOn(Spec):
    """An extractor and its images."""

    data: Data
    extractor: TrainedExtractor


#: As a sweep names an extractor.
ExtractorChoice = str | TrainedExtractor


def facts_of(extractor: ExtractorChoice, shape: InputShape) -> ExtractorFacts:
    """What must be known about an extractor of images of this shape."""
    return extractor.facts(shape) if isinstance(extractor, TrainedExtractor) else EXTRACTORS.facts(extractor)


def extractor_name(extractor: ExtractorChoice | None) -> str:
    """The name in its label."""
    return extractor.name if isinstance(extractor, TrainedExtractor) else str(extractor)


def fitting(shape: InputShape) -> list[str]:
    """The extractors that take images of this shape."""
    facts = ((name, EXTRACTORS.facts(name)) for name in EXTRACTORS.names)
    return [name for name, takes in facts if takes.channels == shape.channels and takes.size in (None, shape.size)]


#: A name, or a table: two types that no field of theirs tells apart.
_Choice = Annotated[
    Annotated[str, Tag("name")] | Annotated[TrainedExtractor, Tag("trained")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "trained"),
]


class Evaluation(Spec):
    """How a checkpoint is measured. The id leaves out `at`; the record of one step is `<id>@<step>`."""

    samples: int = Field(
        default=50_000, ge=2, description="images to generate, N; values at different N do not compare"
    )
    sampler: str = Field(
        default="ddpm",
        description="how samples are drawn: ddpm (ancestral), ddim, ddim-clip (for pixels), as the objective allows",
    )
    sampling_steps: int = Field(
        default=250, gt=0, description="steps of the sampler, spread evenly over the training timesteps"
    )
    guidance: float = Field(default=1.0, ge=0, description="scale of classifier-free guidance; 1 means none")
    guidance_channels: Literal["as-published", "all", "first-three"] = Field(
        default="as-published",
        description="noise channels that are guided; as-published: the first three of four, all of any other number",
    )
    extractor: Annotated[_Choice | None, EXTRACTORS] = Field(
        default=None,
        description='feature extractor; by default the one that fits the data set; {kind = "trained"}: one of its own',
    )
    reference: Literal["train", "held-out", "adm"] = Field(
        default="train",
        description="real images to compare with; adm: those of the file that resources.adm_reference names",
    )
    ema: bool = Field(default=True, description="sample with the averaged weights (EMA), else with the plain ones")
    labels: Literal["uniform", "balanced", "training"] = Field(
        default="uniform",
        description="classes of the samples: drawn evenly as in the paper, in turn, or as often as in the train split",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="sampling seed: decides noise and label of every sample")
    at: tuple[int, ...] = Field(default=(), strict=False, description="training steps to measure at, besides the last")

    def resolved(self, data: Data) -> Evaluation:
        """The same evaluation; an extractor that is left out becomes the data set's own, if it has one."""
        if self.extractor is not None:
            return self
        return self.model_copy(update={"extractor": DATA_SETS.facts(data.name).extractor})

    def guided_channels(self, channels: int) -> int:
        """How many of a model's noise channels are guided, counted from the first.

        Raises:
            ValueError: the first three are asked for, and the model has fewer.
        """
        if self.guidance_channels == "first-three" and channels < 3:
            raise ValueError(f"first-three needs at least 3 channels, the model has {channels}")
        three = self.guidance_channels == "first-three" or (self.guidance_channels == "as-published" and channels == 4)
        return 3 if three else channels

    @property
    def id(self) -> str:
        """As `Cell.id`, without `at`."""
        return spec_id(self.model_copy(update={"at": ()}) if self.at else self)

    @property
    def sampling_id(self) -> str:
        """Hash of what decides a sample: the same for evaluations that only score otherwise, or take more samples."""
        return spec_id(Evaluation(**self.model_dump(exclude={"at", "samples", "extractor", "reference"})))

    def steps(self, training_steps: int) -> list[int]:
        """The training steps to measure at, ascending, the last one included."""
        return sorted({step for step in self.at if step <= training_steps} | {training_steps})


def check_fits(evaluation: Evaluation, data: Data, key: str = "evaluation") -> None:
    """Check that an evaluation's extractor reads the images of `data`, and that its reference fits the extractor.

    Args:
        evaluation: with the extractor filled in, see `Evaluation.resolved`.
        data: what the model learns.
        key: the key of the evaluation, for messages.

    Raises:
        InputError: it does not; the message lists what is allowed.
    """
    extractor, reference = evaluation.extractor, evaluation.reference
    name, own = extractor_name(extractor), isinstance(extractor, TrainedExtractor)
    if extractor is None:
        raise InputError(
            f'{key}.extractor: {data.name} has none of its own; allowed: {{kind = "trained"}}, '
            f"{', '.join(EXTRACTORS.names)}"
        )
    if own and name in EXTRACTORS.names:
        raise InputError(f"{key}.extractor.name: {name} is that of another extractor; choose another")
    fits = fitting(data.image_shape)
    if not own and name not in fits:
        raise InputError(f"{key}.extractor: {name} does not read {data.name}; allowed: {', '.join(fits)}")
    allowed = ("train", "held-out", *facts_of(extractor, data.image_shape).references)
    if reference not in allowed:
        holders = [other for other in EXTRACTORS.names if reference in EXTRACTORS.facts(other).references]
        raise InputError(
            f"{key}.reference: {reference} holds features of {', '.join(holders)}, the evaluation's extractor is "
            f"{name}; allowed: {', '.join(allowed)}"
        )
