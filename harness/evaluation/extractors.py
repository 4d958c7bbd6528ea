"""Feature extractors: one small classifier per data set, whose penultimate layer spans the feature space.

Inception's features do not fit grey 8x8 or 32x32 images. The practice for such data is a classifier of the data set
itself ("Frechet LeNet distance"); a distance in its space is never called FID. `train_extractor.py` made the weights;
the card inside each file says how, and what the extractor is worth.
"""

from __future__ import annotations

from torch_fidelity import register_feature_extractor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from harness.errors import InputError
from harness.evaluation import inception
from harness.evaluation.classifier import ARCHITECTURES, ClassifierExtractor, architecture, load_weights
from harness.spec.data import Data
from harness.spec.evaluation import EXTRACTORS, fitting


def available() -> tuple[str, ...]:
    """Names of all extractors."""
    return EXTRACTORS.names


def feature_dim(name: str) -> int:
    """Dimension of the extractor's feature space.

    Raises:
        InputError: unknown name.
    """
    if name not in EXTRACTORS.names:
        architecture(name)  # says what is allowed
    return EXTRACTORS.facts(name).dims


def extractor_label(name: str, inception_weights: str | None = None) -> str:
    """`<name>@<first 8 hex digits of the content hash>`: identifies the feature space in records.

    For Inception the hash is the file's, see `harness.evaluation.inception.find_weights`.

    Raises:
        InputError: unknown name, or a missing or damaged weights file.
    """
    if name == inception.NAME:
        return inception.weights_label(inception.find_weights(inception_weights))
    return f"{name}@{load_weights(name).content_hash[:8]}"


def check_fits(name: str, data: Data) -> None:
    """Check that the extractor exists and takes the data set's images.

    Raises:
        InputError: otherwise; the message lists the extractors that fit.
    """
    shape = data.image_shape
    fits = fitting(shape)
    if name not in EXTRACTORS.names:
        raise InputError(f"evaluation.extractor: unknown {name!r}; allowed for {data.name}: {', '.join(fits)}")
    takes = EXTRACTORS.facts(name)
    if name not in fits:
        size = f"{takes.size}x{takes.size}x{takes.channels}" if takes.size else f"{takes.channels}-channel"
        raise InputError(
            f"evaluation.extractor: {name} takes {size} images, {data.name} has "
            f"{shape.size}x{shape.size}x{shape.channels}; allowed: {', '.join(fits)}"
        )


for _name in ARCHITECTURES:
    if _name not in FEATURE_EXTRACTORS_REGISTRY:  # torch-fidelity refuses a second registration, as after a reload
        register_feature_extractor(_name, ClassifierExtractor)
