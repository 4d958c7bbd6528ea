"""Extractors trained on the data at hand: the same bits again, whole or absent, and what they do not notice."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from harness.data.dataset import Images, LoadedData
from harness.data.sources import load
from harness.errors import InputError, NonFiniteError
from harness.evaluation.classifier import Architecture, Classifier
from harness.evaluation.extractors import extractor_label, weights_of
from harness.evaluation.features import Extraction
from harness.evaluation.soundness import blurred, checks, with_noise
from harness.evaluation.train_extractor import turned
from harness.evaluation.trained import Wanted, train_once
from harness.evaluation.watch import Watch
from harness.launch.extractors import quality
from harness.runs.columns import metric_name
from harness.runs.study import Shared
from harness.spec.data import Data, InputShape
from harness.spec.evaluation import Evaluation, TrainedExtractor
from harness.spec.resources import Resources
from harness.training.hooks import Report

FLAT = Data(name="folder", resolution=8, classes=1, fingerprint="0" * 12, labels=False)


def wanted(data: Data | None = None, **fields: Any) -> Wanted:
    return Wanted(TrainedExtractor(kind="trained", **{"steps": 12, "batch_size": 16, **fields}), data or Data())


@pytest.fixture(scope="module")
def digits() -> LoadedData:
    return load(Data())


@pytest.fixture(scope="module")
def flat(digits: LoadedData) -> LoadedData:
    """Images without classes, in colour."""
    train, heldout = (
        Images(np.repeat(split.array(), 3, axis=-1), np.zeros_like(split.labels))
        for split in (digits.train, digits.heldout)
    )
    return LoadedData("folder", train, heldout, FLAT.fingerprint or "")


def test_the_same_bits_twice_and_others_of_another_seed(tmp_path: Path, digits: LoadedData) -> None:
    files, hashes = list[bytes](), list[str]()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(files))  # whatever the caller did
        one, shared = wanted(seed=seed), Shared(tmp_path / name)
        card = train_once(one, lambda: digits, shared)
        files.append(shared.extractor_weights(one.folder(shared).name).read_bytes())
        hashes.append(card["content_hash"])
    assert files[0] == files[1]
    assert len({*hashes}) == 2


def test_it_is_trained_once_and_named_by_its_weights(tmp_path: Path, digits: LoadedData) -> None:
    one, shared = wanted(name="mine", steps=60), Shared(tmp_path)
    card = train_once(one, lambda: digits, shared)
    assert train_once(one, lambda: pytest.fail("trained again"), shared)["content_hash"] == card["content_hash"]
    file = weights_of(one.choice, Data(), Resources(), shared)
    assert extractor_label(one.choice, file) == f"mine@{card['content_hash'][:8]}"
    assert metric_name(extractor_label(one.choice, file)) == "FD-mine"
    features = Extraction(one.choice, weights=file).features_of(digits.heldout.array()[:7])
    assert features.pool.shape == (7, 64)
    assert features.logits is not None
    assert features.logits.shape == (7, 10)
    assert card["learns"] == "classes"
    assert card["heldout_accuracy"] > card["chance"]
    assert [check["what"] for check in card["checks"]] == ["noise", "blur", "a dropped class"]
    assert f"mine@{card['content_hash'][:8]} of classes: held-out accuracy" in quality(card)


def test_without_classes_it_learns_quarter_turns(tmp_path: Path, flat: LoadedData) -> None:
    one, shared = wanted(FLAT, steps=150, batch_size=32), Shared(tmp_path)
    card = train_once(one, lambda: flat, shared)
    assert card["learns"] == "quarter turns"
    assert card["chance"] == 0.25
    assert card["heldout_accuracy"] > 0.5
    assert [check["what"] for check in card["checks"]] == ["noise", "blur"]
    file = weights_of(one.choice, FLAT, Resources(), shared)
    assert Extraction(one.choice, weights=file).features_of(flat.heldout.array()[:3]).logits is None


def test_turns_are_those_of_numpy() -> None:
    images = torch.arange(4 * 2 * 9.0).reshape(4, 2, 3, 3)
    found = turned(images, torch.tensor([0, 3, 2, 1]))
    for image, whole, quarters in zip(found, images, (0, 3, 2, 1), strict=True):
        assert np.array_equal(image.numpy(), np.rot90(whole.numpy(), quarters, (1, 2)))


def test_stopped_while_it_trains_it_leaves_nothing(tmp_path: Path, digits: LoadedData) -> None:
    one, shared = wanted(), Shared(tmp_path)

    def stop(value: Report) -> None:
        if value["done"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_once(one, lambda: digits, shared, watch=Watch(stop))
    assert not one.is_trained(shared)
    assert not [*one.folder(shared).iterdir()]
    with pytest.raises(InputError, match="not trained yet; first: dit-harness train-extractor"):
        Extraction(one.choice, weights=weights_of(one.choice, Data(), Resources(), shared))
    assert train_once(one, lambda: digits, shared)["id"] == one.choice.id_on(Data())


def test_a_damaged_one_is_trained_anew(tmp_path: Path, digits: LoadedData, caplog: pytest.LogCaptureFixture) -> None:
    one, shared = wanted(), Shared(tmp_path)
    train_once(one, lambda: digits, shared)
    file = shared.extractor_weights(one.folder(shared).name)
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(InputError, match="no readable extractor weights"):
        Extraction(one.choice, weights=str(file))
    with caplog.at_level(logging.WARNING):
        train_once(one, lambda: digits, shared)
    assert "training an extractor anew" in caplog.text
    assert file.read_bytes() == whole


def test_it_diverges_or_has_too_few_images(tmp_path: Path, digits: LoadedData) -> None:
    one, shared = wanted(learning_rate=1e36), Shared(tmp_path)
    with pytest.raises(NonFiniteError, match="the classifier after step 12"):
        train_once(one, lambda: digits, shared)
    few = LoadedData("digits", digits.train, Images(digits.heldout.array()[:2], digits.heldout.labels[:2]), "")
    with pytest.raises(InputError, match="needs 4 images held out, there are 2"):
        train_once(one, lambda: few, shared)
    assert not one.is_trained(shared)


def test_one_extractor_for_every_cell_that_shows_these_images() -> None:
    choice = TrainedExtractor(kind="trained")
    vae = {"kind": "trained", "factor": 2, "channels": 2}
    alike = [{}, {"labels": False}, {"subset": 0.5}, {"horizontal_flips": True}, {"vae": vae}]
    assert len({choice.folder_name(Data.model_validate(fields)) for fields in alike}) == 1
    assert choice.id_on(Data()) != choice.id_on(Data(name="fashion-mnist"))
    assert choice.id_on(Data()) != TrainedExtractor(kind="trained", width=8).id_on(Data())


def test_ids_of_other_evaluations_stay() -> None:
    assert Evaluation(extractor="digits-cnn", samples=1500).id == "64ac8157d447"
    own = Evaluation.model_validate({"extractor": {"kind": "trained", "name": "own"}})
    assert own == Evaluation.model_validate(own.model_dump(mode="json"))
    assert own.id != Evaluation.model_validate({"extractor": {"kind": "trained"}}).id
    assert own.sampling_id == Evaluation().sampling_id


@pytest.mark.parametrize(
    ("shape", "width"),
    [(InputShape(1, 8, 10), 16), (InputShape(3, 32, 2), 16), (InputShape(3, 100, 7), 8), (InputShape(3, 256, 5), 16)],
)
def test_cost_and_architecture(shape: InputShape, width: int) -> None:
    choice = TrainedExtractor(kind="trained", width=width)
    network = Classifier(Architecture(shape, choice.widths(shape.size), choice.stride(shape.size)))
    with torch.no_grad():
        counted = FlopCountAnalysis(network, torch.zeros(1, shape.channels, shape.size, shape.size)).total() / 1e9
    assert choice.facts(shape).gmacs == pytest.approx(counted, rel=0.02)


class TestChecks:
    """They can fail."""

    @staticmethod
    def of(features: Any, digits: LoadedData, classes: int = 10) -> dict[str, bool]:
        return {check.what: check.rises for check in checks(features, digits.train, classes)}

    def test_noise_alone_notices_nothing(self, digits: LoadedData) -> None:
        generator = np.random.default_rng(0)
        found = self.of(lambda images: generator.standard_normal((len(images), 4)), digits)
        assert not all(found.values())
        assert self.of(lambda images: generator.standard_normal((len(images), 4)), digits, 1).keys() == {
            "noise",
            "blur",
        }

    def test_pixels_notice_all(self, digits: LoadedData) -> None:
        assert all(self.of(lambda images: images.reshape(len(images), -1).astype(float), digits).values())

    def test_harm(self, digits: LoadedData) -> None:
        images = digits.train.array()[:200]
        assert np.array_equal(with_noise(images, 20), with_noise(images, 20))
        change = with_noise(images, 20).astype(int) - images
        assert change[(images > 80) & (images < 170)].std() == pytest.approx(20, rel=0.1)
        assert blurred(images, 2).astype(float).mean() == pytest.approx(images.mean(), rel=0.05)
        assert np.abs(np.diff(blurred(images, 2).astype(int), axis=1)).mean() < np.abs(np.diff(images, axis=1)).mean()
