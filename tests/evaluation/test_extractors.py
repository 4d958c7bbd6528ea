import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from harness.data.dataset import LoadedData
from harness.data.fashion_mnist import DEBIAN_FOLDER
from harness.data.pixels import channels_first, to_model_range
from harness.data.sources import data_set, load
from harness.errors import InputError
from harness.evaluation import train_extractor
from harness.evaluation.classifier import (
    ARCHITECTURES,
    FEATURE_DIM,
    SHIPPED,
    WEIGHTS_FOLDER,
    build,
    content_hash,
    extract,
    load_weights,
    read_weights,
)
from harness.evaluation.extractors import extractor_label
from harness.evaluation.frechet import frechet_distance, statistics
from harness.spec.data import DATA_SETS, Data
from harness.spec.evaluation import EXTRACTORS, INCEPTION, Evaluation, check_fits
from tests.evaluation.fidelity import FEATURES, ForTorchFidelity

DIGITS, FASHION = Data(), Data(name="fashion-mnist")


#: Of images to the train split; and the train split under noise of a standard deviation in levels.
Distance = Callable[[np.ndarray], float]
Noisy = Callable[[float], np.ndarray]


@pytest.fixture(scope="module")
def digits() -> LoadedData:
    return load(DIGITS)


def to_levels(x: torch.Tensor) -> np.ndarray:
    """Images (N, C, H, W) in [-1, 1] -> uint8 (N, H, W, C)."""
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def test_every_data_set_has_its_extractor() -> None:
    assert {*ARCHITECTURES, INCEPTION, "dinov2-vit-l14"} == set(EXTRACTORS.names)
    own = {data: facts.extractor for data, facts in DATA_SETS.built_in.items()}
    assert own == {"digits": "digits-cnn", "fashion-mnist": "fashion-cnn", "imagenet": INCEPTION, "folder": None}
    for name, trained_on in SHIPPED.items():
        data, takes = DATA_SETS.facts(trained_on), EXTRACTORS.facts(name)
        assert data.extractor == name
        assert (takes.channels, takes.size) == data.shape[:2]
        assert takes.dims == FEATURE_DIM == int(FEATURES)


def test_inception_reads_colour_images_of_any_size() -> None:
    assert EXTRACTORS.facts(INCEPTION).dims == 2048
    reads = Evaluation(extractor=INCEPTION)
    check_fits(reads, Data(name="imagenet", resolution=512))
    with pytest.raises(InputError, match="inception-v3-compat does not read digits; allowed: digits-cnn"):
        check_fits(reads, Data())


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_weights_file(name: str) -> None:
    path = WEIGHTS_FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < 1_000_000
    with safe_open(path, "pt") as file:
        assert list(file.metadata()) == ["card"]
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    digest = hashlib.sha256(b"".join(tensors[key].numpy().tobytes() for key in sorted(tensors))).hexdigest()
    card = load_weights(name).card
    assert digest == load_weights(name).content_hash == card["content_hash"]
    assert extractor_label(name) == f"{name}@{digest[:8]}"
    assert card["name"] == name
    assert card["data_fingerprint"] == data_set(Data(name=card["data"])).fingerprint
    assert card["recipe"] == vars(train_extractor.RECIPES[name])
    assert card["parameters"] == sum(p.numel() for p in build(name).parameters())
    assert card["covariance_rank"] == card["feature_dim"] == FEATURE_DIM


def check_card(name: str, dataset: LoadedData) -> None:
    """What the card claims is what the weights do."""
    claimed = load_weights(name).card
    measured = train_extractor.make_card(name, ARCHITECTURES[name], build(name), dataset, train_extractor.RECIPES[name])
    # a processor with other vector instructions may round an image over the border of two classes
    assert measured["heldout_accuracy"] == pytest.approx(claimed["heldout_accuracy"], abs=0.002)
    assert measured["covariance_rank"] == claimed["covariance_rank"]
    for floor, expected in zip(measured["floors"], claimed["floors"], strict=True):
        assert floor["samples"] == expected["samples"]
        assert floor["frechet"] == pytest.approx(expected["frechet"], rel=1e-3)
    same = {"content_hash", "data", "data_fingerprint", "architecture", "parameters", "command", "version"}
    assert {key: measured[key] for key in same} == {key: claimed[key] for key in same}


def test_digits_card_is_true(digits: LoadedData) -> None:
    check_card("digits-cnn", digits)
    assert load_weights("digits-cnn").card["heldout_accuracy"] >= 0.97


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="package dataset-fashion-mnist not installed")
def test_fashion_extractor_on_the_real_data() -> None:
    heldout, card = load(FASHION).heldout, load_weights("fashion-cnn").card
    network, images = build("fashion-cnn"), heldout.images[:4000]
    features, logits = extract(network, images)
    assert card["heldout_accuracy"] >= 0.88
    assert train_extractor.accuracy(logits, heldout.labels[:4000]) == pytest.approx(card["heldout_accuracy"], abs=0.015)

    real, few = statistics(features), images[:1000]
    assert np.linalg.matrix_rank(real[1], hermitian=True) == FEATURE_DIM

    def distance(some: np.ndarray) -> float:
        return frechet_distance(*statistics(extract(network, some)[0]), *real)

    noise = np.random.default_rng(0).standard_normal(few.shape)
    noisy = [np.clip(np.rint(few + sigma * noise), 0, 255).astype(np.uint8) for sigma in (0, 10, 20, 40)]
    x = to_model_range(torch.from_numpy(channels_first(few)))
    blurred = [few, *(to_levels(x + mix * (train_extractor.blur(x) - x)) for mix in (0.3, 1.0))]
    dropped = [few, *(few[heldout.labels[:1000] >= first] for first in (2, 5))]
    for worse in (noisy, blurred, dropped):
        assert all(np.diff([distance(some) for some in worse]) > 0.1)


def test_features_are_no_better_on_what_the_classifier_saw(digits: LoadedData) -> None:
    network = build("digits-cnn")
    train, heldout = extract(network, digits.train.array())[0], extract(network, digits.heldout.array())[0]
    n = len(heldout)
    unseen = frechet_distance(*statistics(heldout), *statistics(train))
    seen = frechet_distance(*statistics(train[:n]), *statistics(train[n:]))
    assert unseen < 1.25 * seen


@pytest.fixture(scope="module")
def distance(digits: LoadedData) -> Distance:
    """Frechet distance of digits to the train split."""
    network = build("digits-cnn")
    real = statistics(extract(network, digits.train.array())[0])
    return lambda images: frechet_distance(*statistics(extract(network, images)[0]), *real)


@pytest.fixture(scope="module")
def noisy(digits: LoadedData) -> Noisy:
    """The train split under noise of a standard deviation in levels."""
    images = digits.train.array()
    noise = np.random.default_rng(0).standard_normal(images.shape)
    return lambda sigma: np.clip(np.rint(images + sigma * noise), 0, 255).astype(np.uint8)


def rise(distances: list[float]) -> bool:
    return distances[0] < 1e-6 and all(np.diff(distances) > 0.04)


def test_distance_rises_with_noise(distance: Distance, noisy: Noisy) -> None:
    assert rise([distance(noisy(sigma)) for sigma in (0, 5, 10, 20, 40, 80, 160)])


def test_distance_rises_with_blur(digits: LoadedData, distance: Distance) -> None:
    x = to_model_range(torch.from_numpy(channels_first(digits.train.array())))
    mixed = [to_levels(x + mix * (train_extractor.blur(x) - x)) for mix in (0.0, 0.1, 0.25, 0.5, 1.0)]
    twice = to_levels(train_extractor.blur(train_extractor.blur(x)))
    assert rise([distance(images) for images in [*mixed, twice]])


def test_distance_rises_with_dropped_classes(digits: LoadedData, distance: Distance) -> None:
    assert rise([distance(digits.train.array()[digits.train.labels >= first]) for first in range(9)])


def test_distance_rises_with_fewer_different_images(digits: LoadedData, distance: Distance) -> None:
    repeated = [np.tile(digits.train.array()[:n], (1500 // n, 1, 1, 1)) for n in (1500, 300, 100, 30, 10, 3)]
    assert rise([distance(images) for images in repeated])


def test_a_little_harm_shows_above_the_floor(digits: LoadedData, distance: Distance, noisy: Noisy) -> None:
    floor = max(f["frechet"] for f in load_weights("digits-cnn").card["floors"])
    assert distance(noisy(20)) > floor
    assert distance(digits.train.array()[digits.train.labels != 0]) > floor


def test_batch_size_does_not_matter(digits: LoadedData) -> None:
    network, images = build("digits-cnn"), digits.heldout.array()
    whole, pieces = extract(network, images, 1000), extract(network, images, 7)
    assert whole[0].dtype == whole[1].dtype == np.float64
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    again = extract(network, images, 1000)
    assert np.array_equal(whole[0], again[0])
    assert np.array_equal(whole[1], again[1])


def test_callers_autocast_is_ignored(digits: LoadedData) -> None:
    network, images = build("digits-cnn"), digits.heldout.array()[:50]
    with torch.autocast("cpu", torch.bfloat16):
        under = extract(network, images)[0]
    assert np.array_equal(under, extract(network, images)[0])


class TestTorchFidelity:
    """The contract with torch-fidelity."""

    @staticmethod
    def make(*layers: str) -> ForTorchFidelity:
        extractor = FEATURE_EXTRACTORS_REGISTRY["digits-cnn"]("digits-cnn", list(layers))
        assert isinstance(extractor, ForTorchFidelity)
        return extractor

    @pytest.fixture
    def images(self, digits: LoadedData) -> torch.Tensor:
        return torch.from_numpy(channels_first(digits.heldout.array()[:9])).expand(-1, 3, -1, -1)

    @pytest.mark.parametrize("layers", [("64",), ("logits",), ("64", "logits"), ("logits", "64")])
    def test_layers_come_in_the_order_asked_for(
        self, layers: tuple[str, ...], images: torch.Tensor, digits: LoadedData
    ) -> None:
        out = self.make(*layers)(images)
        direct = dict(zip(("64", "logits"), extract(build("digits-cnn"), digits.heldout.array()[:9]), strict=True))
        assert isinstance(out, tuple)
        for layer, tensor in zip(layers, out, strict=True):
            assert np.array_equal(tensor.numpy(), direct[layer])

    def test_layer_of_each_metric(self) -> None:
        layer = self.make("64").get_default_feature_layer_for_metric
        assert [layer(m) for m in ("isc", "fid", "kid", "prc")] == ["logits", "64", "64", "64"]
        assert not self.make("64").can_be_compiled()

    def test_refuses_other_images(self, images: torch.Tensor) -> None:
        extractor = self.make("64")
        with pytest.raises(ValueError, match=r"uint8 images, got torch\.float32"):
            extractor(images.float())
        with pytest.raises(ValueError, match=r"\(N, 3, 8, 8\), got \(9, 1, 8, 8\)"):
            extractor(images[:, :1])
        with pytest.raises(ValueError, match=r"got \(9, 3, 7, 8\)"):
            extractor(images[:, :, 1:])
        coloured = images.clone()
        coloured[0, 2, 4, 4] ^= 1
        with pytest.raises(ValueError, match="three equal channels"):
            extractor(coloured)

    def test_refuses_other_layers(self) -> None:
        with pytest.raises(ValueError, match="2048"):
            self.make("2048")


def test_unknown_or_unfit_extractor_lists_what_is_allowed() -> None:
    for name, data in (("digits-cnn", DIGITS), ("fashion-cnn", FASHION)):
        check_fits(Evaluation(extractor=name), data)
    with pytest.raises(ValueError, match=r"unknown extractor 'inception'; allowed: digits-cnn"):
        Evaluation(extractor="inception")
    with pytest.raises(InputError, match=r"extractor: fashion-cnn does not read digits; allowed: digits-cnn$"):
        check_fits(Evaluation(extractor="fashion-cnn"), DIGITS)
    for ask in (extractor_label, load_weights, build):
        with pytest.raises(InputError, match="allowed: digits-cnn, fashion-cnn"):
            ask("inception")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "digits-cnn.safetensors"
    weights = load_weights("digits-cnn")
    with pytest.raises(InputError, match="no readable"):
        read_weights(path)
    path.write_bytes((WEIGHTS_FOLDER / path.name).read_bytes()[:-100])
    with pytest.raises(InputError, match="no readable"):
        read_weights(path)
    save_file(weights.tensors, path)
    with pytest.raises(InputError, match="no readable"):
        read_weights(path)
    changed = {key: tensor.clone() for key, tensor in weights.tensors.items()}
    changed["features.bias"][3] += 1e-3
    save_file(changed, path, {"card": json.dumps(weights.card)})
    with pytest.raises(InputError, match="content hash"):
        read_weights(path)


def test_content_hash_is_of_the_values() -> None:
    one = {"b": torch.ones(2), "a": torch.zeros(3)}
    assert content_hash(one) == content_hash(dict(reversed(one.items())))
    assert content_hash(one) != content_hash({"b": torch.zeros(3), "a": torch.ones(2)})
