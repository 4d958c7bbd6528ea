"""What is learned: data sets, their shapes, autoencoders."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from harness.spec.identity import Spec, spec_id
from harness.spec.kinds import Kind


class InputShape(NamedTuple):
    """What a data set feeds the model: channels, pixels (or latent positions) per side, number of classes."""

    channels: int
    size: int
    classes: int


#: Classes of ImageNet (ILSVRC 2012).
IMAGENET_CLASSES = 1000

#: In a shape: a value that the sweep sets, by `data.resolution` or `data.classes`.
ASKED = 0


class DataSetFacts(NamedTuple):
    """Where the code of a data set is, and what it feeds the model.

    Attributes:
        at: the data set, an object of `harness.data`.
        shape: of its images; `ASKED` where the sweep sets it.
        extractor: the feature extractor that fits it, unless the evaluation names another.
        needs: fields of `Data` that it cannot do without.
        allows: fields of `Data` that it also takes; those named neither here nor in `needs` are fixed.
        images: how many it has, both splits together; None where that depends on the files.
        heldout: how many of them are held out.
    """

    at: str
    shape: InputShape
    extractor: str | None = None
    needs: tuple[str, ...] = ()
    images: int | None = None
    heldout: int = 0
    allows: tuple[str, ...] = ()


DATA_SETS = Kind(
    "DATA_SETS",
    {
        "digits": DataSetFacts(
            "harness.data.digits:DIGITS", InputShape(1, 8, 10), "digits-cnn", images=1_797, heldout=297
        ),
        "fashion-mnist": DataSetFacts(
            "harness.data.fashion_mnist:FASHION_MNIST",
            InputShape(1, 32, 10),
            "fashion-cnn",
            images=70_000,
            heldout=10_000,
        ),
        "imagenet": DataSetFacts(
            "harness.data.imagenet:IMAGENET",
            InputShape(3, ASKED, IMAGENET_CLASSES),
            "inception-v3-compat",
            ("resolution",),
            images=1_281_167 + 50_000,
            heldout=50_000,
        ),
        "folder": DataSetFacts(
            "harness.data.folder:FOLDER",
            InputShape(3, ASKED, ASKED),
            needs=("resolution", "classes", "fingerprint"),
            allows=("background",),
        ),
    },
)


def _power_of_two(factor: int) -> int:
    if factor & (factor - 1):
        raise ValueError(f"factor {factor} is no power of two; allowed: 2, 4, 8, 16, ...")
    return factor


Factor = Annotated[int, Field(gt=1), AfterValidator(_power_of_two)]


class PretrainedVae(Spec):
    """An autoencoder trained elsewhere: a diffusers `AutoencoderKL`, by its hub name or the name of a local folder.

    Its id does not depend on where the folder is; the records hold the hash of the weights.
    """

    kind: Literal["pretrained"] = Field(description="where the autoencoder is from")
    name: str = Field(
        min_length=1, description='name on the Hugging Face hub, such as "stabilityai/sd-vae-ft-mse", or of a folder'
    )
    factor: Factor = Field(default=8, description="pixels per latent position and side, a power of two")
    channels: int = Field(default=4, gt=0, description="channels of the latent")
    scaling: Literal["measured"] | Annotated[float, Field(gt=0)] = Field(
        default=0.18215, description="latents are multiplied by this; measured: 1 / std over the train split"
    )


class TrainedVae(Spec):
    """An autoencoder that `dit-harness train-vae` trains on the sweep's own images. Its recipe is its identity.

    Its latents are scaled by the measured 1 / std over the train split.
    """

    kind: Literal["trained"] = Field(description="where the autoencoder is from")
    factor: Factor = Field(default=4, description="pixels per latent position and side, a power of two")
    channels: int = Field(default=4, gt=0, description="channels of the latent")
    width: int = Field(default=32, gt=0, description="channels at full resolution, doubled at every halving")
    steps: int = Field(default=2000, gt=0, description="optimizer steps")
    batch_size: int = Field(default=64, gt=0, description="images of a step")
    learning_rate: float = Field(
        default=1e-3, gt=0, description="learning rate of AdamW at the start; falls to 0 along a cosine"
    )
    kl_weight: float = Field(default=1e-6, ge=0, description="weight of the KL term beside the L1 error of a pixel")
    seed: int = Field(default=0, ge=0, lt=2**31, description="decides initialisation, order and noise")


Vae = PretrainedVae | TrainedVae


class Data(Spec):
    """What is learned. The location of the files is a resource, not a part of the id."""

    name: Annotated[str, DATA_SETS] = Field(default="digits", description="data set")
    labels: bool = Field(default=True, description="train with class labels; false: without")
    horizontal_flips: bool = Field(default=False, description="mirror half of the training images at random")
    resolution: int | None = Field(
        default=None, gt=0, description="imagenet, folder: pixels a side that images are cropped to"
    )
    classes: int | None = Field(default=None, gt=0, description="folder: number of its subfolders, each a class")
    fingerprint: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{12}$",
        description="folder: hash of its images, as `python -m harness.data.images FOLDER` prints it",
    )
    background: str | None = Field(
        default=None,
        pattern="^#[0-9a-f]{6}$",
        description='folder: colour behind transparent images, such as "#000000"; by default white',
    )
    subset: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="learn from this share of the images of every class only; what is held out stays whole",
    )
    vae: Annotated[Vae, Field(discriminator="kind")] | None = Field(
        default=None, description="learn the latents of this autoencoder instead of pixels"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        wanted, allowed_too = DATA_SETS.facts(self.name).needs, DATA_SETS.facts(self.name).allows
        for key in ("resolution", "classes", "fingerprint", "background"):
            given = getattr(self, key) is not None
            if key in wanted and not given:
                says = "; `python -m harness.data.images FOLDER` says it"
                hint = ", for example 256" if key == "resolution" else says
                raise ValueError(f"name {self.name} needs {key}{hint}")
            if given and key not in (*wanted, *allowed_too):
                raise ValueError(f"{key} is fixed for name {self.name}; leave it out")
        size = self.image_shape.size
        if self.vae is not None and size % self.vae.factor:
            allowed = ", ".join(str(2**n) for n in range(1, 8) if size % 2**n == 0)
            raise ValueError(
                f"vae.factor {self.vae.factor} does not divide the {size}x{size} images; allowed: {allowed}"
            )
        return self

    @property
    def images(self) -> int | None:
        """Images of both splits, those to learn from cut to the subset; None where only the files tell."""
        facts = DATA_SETS.facts(self.name)
        if facts.images is None:
            return None
        return facts.heldout + round((self.subset or 1) * (facts.images - facts.heldout))

    @property
    def training_images(self) -> int | None:
        """Images to learn from; None where only the files tell."""
        images = self.images
        return None if images is None else images - DATA_SETS.facts(self.name).heldout

    @property
    def image_shape(self) -> InputShape:
        """Channels, size and classes of the images: what is stored, and what the latents are decoded to."""
        shape = DATA_SETS.facts(self.name).shape
        return shape._replace(size=self.resolution or shape.size, classes=self.classes or shape.classes)

    @property
    def encoded(self) -> Data:
        """The part that decides the latents' moments, of data with an autoencoder.

        Labels, flips and scaling are not: they are applied when the moments are read. So an autoencoder and its latents
        have the same id.
        """
        assert self.vae is not None
        vae = self.vae
        if isinstance(vae, PretrainedVae):
            vae = vae.model_copy(update={"scaling": PretrainedVae.model_fields["scaling"].default})
        return self.model_copy(update={"labels": True, "horizontal_flips": False, "vae": vae})

    @property
    def encoding_id(self) -> str:
        """The id of an autoencoder trained on these images, and of its latents."""
        return spec_id(self.encoded)

    @property
    def encoding_name(self) -> str:
        """Name of the folder of an autoencoder trained on these images, and of its latents: `<data>-<id>`."""
        return f"{self.name}-{self.encoding_id}"

    @property
    def shape(self) -> InputShape:
        """Channels, size and classes of the model's input, a latent with a VAE; 0 classes when labels are not used."""
        shape = self.image_shape
        if self.vae is not None:
            shape = shape._replace(channels=self.vae.channels, size=shape.size // self.vae.factor)
        return shape if self.labels else shape._replace(classes=0)
