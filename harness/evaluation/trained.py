"""Extractors that are trained on a sweep's own images, once for all studies, and kept with a card.

    results/_extractors/<data>-<id>/
      extractor.safetensors   the weights, and the card as metadata: one file, whole or absent
      card.json               the card again, for people

The id is that of the recipe and the images. What is trained is a classifier as those that ship with this package (see
`harness.evaluation.train_extractor`): of the images' classes, or, where they have none, of quarter turns (Gidaris et
al. 2018, "Unsupervised representation learning by predicting image rotations"). The same machine gives the same bits.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from harness.data.dataset import Images, LoadedData
from harness.data.draws import stream
from harness.errors import InputError
from harness.evaluation.classifier import Architecture, Classifier, Weights, extract, infer, read_weights, with_weights
from harness.evaluation.extractors import Extractor, Features, Network
from harness.evaluation.references import once
from harness.evaluation.soundness import checks
from harness.evaluation.train_extractor import Recipe, make_card, train
from harness.evaluation.watch import UNWATCHED, Watch
from harness.files import write_atomic, write_json
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.spec.evaluation import TrainedExtractor

_LOG = logging.getLogger(__name__)

#: Most bytes of images that are held in memory; more are decoded when they are needed.
_HELD = 2**30

#: Most images of a split that the card is measured on.
_MEASURED = 20_000

#: Quarter turns of an image.
_TURNS = 4


class TrainedClassifier(Extractor):
    """Reads the file that `train_once` writes, which `extractors.weights_of` names."""

    def weights_hash(self, weights: str | None) -> str:
        """See `Extractor`: the hash of its tensors."""
        return _read(weights).content_hash

    def build(self, device: str, weights: str | None) -> Network:
        """See `Extractor`. Logits of quarter turns are none of classes, so there are none."""
        found = _read(weights)
        architecture = Architecture.read(found.card["network"])
        network = with_weights(architecture, found.tensors).to(device)

        def features(images: torch.Tensor) -> Features:
            pool, logits = infer(network, images)
            return Features(pool, None if architecture.turns else logits)

        return features

    def doubts(self, weights: str | None) -> list[str]:
        """See `Extractor`: the checks that it fails."""
        card = _read(weights).card
        return [f"FD-{card['name']} does not rise under {what}" for what in failed(card)]

    def check(self, weights: str | None) -> None:
        """See `Extractor`."""
        _read(weights)


TRAINED = TrainedClassifier()


def _read(weights: str | None) -> Weights:
    if weights is None or not Path(weights).is_file():
        raise InputError("evaluation.extractor: not trained yet; first: dit-harness train-extractor SWEEP")
    return read_weights(Path(weights))


def failed(card: dict[str, Any]) -> list[str]:
    """What a card's extractor does not notice."""
    return [check["what"] for check in card["checks"] if not check["rises"]]


@dataclass(frozen=True)
class Wanted:
    """An extractor, and the images that it is trained on."""

    choice: TrainedExtractor
    data: Data

    def folder(self, shared: Shared) -> Path:
        """Where it is kept."""
        return shared.extractor_folder(self.choice.folder_name(self.data))

    def is_trained(self, shared: Shared) -> bool:
        """Whether it is there."""
        return shared.extractor_weights(self.choice.folder_name(self.data)).is_file()


def train_once(
    wanted: Wanted,
    load: Callable[[], LoadedData],
    shared: Shared,
    device: str = "cpu",
    watch: Watch = UNWATCHED,
) -> dict[str, Any]:
    """The card of an extractor that is there or is trained now; other processes wait. Killed, it leaves nothing.

    Args:
        wanted: the extractor.
        load: gives its images; called only if it is trained.
        shared: where it is kept.
        device: "cpu" or "cuda".
        watch: takes the progress.

    Raises:
        InputError: the images are missing, or too few.
        NonFiniteError: the weights became non-finite.
    """

    def read(folder: Path) -> Weights | None:
        if not (path := shared.extractor_weights(folder.name)).exists():
            return None
        try:
            return read_weights(path)
        except InputError as error:
            _LOG.warning("training an extractor anew: %s", error)
            return None

    def write(folder: Path, made: Weights) -> None:
        document = {"card": json.dumps(made.card, sort_keys=True, allow_nan=False)}
        write_json(shared.extractor_card(folder.name), made.card)
        write_atomic(
            shared.extractor_weights(folder.name), lambda temporary: save_file(made.tensors, temporary, document)
        )

    def make() -> Weights:
        return _trained(wanted, load(), device, watch)

    return once(wanted.folder(shared), "training an extractor", read, make, write, watch).card


def _trained(wanted: Wanted, dataset: LoadedData, device: str, watch: Watch) -> Weights:
    choice, shape = wanted.choice, wanted.data.image_shape
    for split, images in (("to learn from", dataset.train), ("held out", dataset.heldout)):
        if (count := len(images.images)) < 4:
            raise InputError(f"evaluation.extractor {choice.name}: needs 4 images {split}, there are {count}")
    turns = shape.classes < 2
    architecture = Architecture(
        shape._replace(classes=_TURNS) if turns else shape,
        choice.widths(shape.size),
        choice.stride(shape.size),
        turns,
    )
    recipe = Recipe(choice.steps, choice.batch_size, choice.learning_rate, seed=choice.seed)
    held = LoadedData(dataset.name, _held(dataset.train), dataset.heldout, dataset.fingerprint)
    network = train(architecture, held, recipe, device=device, progress=watch.progress("extractor"))
    card = _card(wanted, architecture, network, held, recipe)
    return Weights({name: value.cpu() for name, value in network.state_dict().items()}, card, card["content_hash"])


def _card(
    wanted: Wanted, architecture: Architecture, network: Classifier, dataset: LoadedData, recipe: Recipe
) -> dict[str, Any]:
    """See `make_card`, on a random part of both splits; and the checks."""
    some = LoadedData(dataset.name, _some(dataset.train), _some(dataset.heldout), dataset.fingerprint)

    def features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        return extract(network, images)[0]

    labels = some.heldout.labels
    return {
        **make_card(wanted.choice.name, architecture, network, some, recipe),
        "id": wanted.choice.id_on(wanted.data),
        "learns": "quarter turns" if architecture.turns else "classes",
        "chance": 1 / _TURNS if architecture.turns else float(np.mean(labels == np.bincount(labels).argmax())),
        "network": asdict(architecture),
        "checks": [asdict(check) for check in checks(features, some.train, wanted.data.image_shape.classes)],
        "command": "dit-harness train-extractor",
    }


def _held(split: Images) -> Images:
    """The images in memory, if they are few."""
    return Images(split.array(), split.labels) if np.prod(split.images.shape) <= _HELD else split


def _some(split: Images) -> Images:
    """Images in random order, in memory: a folder's are sorted by class."""
    order = stream("extractor-card").permutation(len(split.labels))[:_MEASURED]
    return Images(np.asarray(split.images[order]), split.labels[order])
