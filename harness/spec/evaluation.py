"""How a checkpoint is measured: feature extractors, and the evaluation with its id."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

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


def fitting(shape: InputShape) -> list[str]:
    """The extractors that take images of this shape."""
    facts = ((name, EXTRACTORS.facts(name)) for name in EXTRACTORS.names)
    return [name for name, takes in facts if takes.channels == shape.channels and takes.size in (None, shape.size)]


class Evaluation(Spec):
    """How a checkpoint is measured. The id leaves out `at`; the record of one step is `<id>@<step>`."""

    samples: int = Field(
        default=50_000, ge=2, description="images to generate, N; values at different N do not compare"
    )
    sampler: str = Field(
        default="ddpm",
        description="how samples are drawn: ddpm (ancestral) or ddim (deterministic), as the objective allows",
    )
    sampling_steps: int = Field(
        default=250, gt=0, description="steps of the sampler, spread evenly over the training timesteps"
    )
    guidance: float = Field(default=1.0, ge=0, description="scale of classifier-free guidance; 1 means none")
    guidance_channels: Literal["as-published", "all", "first-three"] = Field(
        default="as-published",
        description="noise channels that are guided; as-published: the first three of four, all of any other number",
    )
    extractor: Annotated[str | None, EXTRACTORS] = Field(
        default=None, description="feature extractor; by default the one that fits the data set"
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
    name, reference = evaluation.extractor, evaluation.reference
    if name is None:
        raise InputError(f"{key}.extractor: {data.name} has none of its own; name one of {', '.join(EXTRACTORS.names)}")
    fits = fitting(data.image_shape)
    if name not in fits:
        raise InputError(f"{key}.extractor: {name} does not read {data.name}; allowed: {', '.join(fits)}")
    allowed = ("train", "held-out", *EXTRACTORS.facts(name).references)
    if reference not in allowed:
        holders = [other for other in EXTRACTORS.names if reference in EXTRACTORS.facts(other).references]
        raise InputError(
            f"{key}.reference: {reference} holds features of {', '.join(holders)}, the evaluation's extractor is "
            f"{name}; allowed: {', '.join(allowed)}"
        )
