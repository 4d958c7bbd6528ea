import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.utils.data import Dataset as TorchDataset
from torch_fidelity import KEY_METRIC_ISC_MEAN, KEY_METRIC_KID_MEAN, calculate_metrics
from torch_fidelity.metric_isc import isc_features_to_metric

from harness.data.dataset import LoadedData
from harness.data.draws import stream
from harness.data.pixels import channels_first
from harness.data.sources import load
from harness.errors import CellFailedError, InputError, NonFiniteError
from harness.evaluation import features, metrics, references
from harness.evaluation.classifier import build, extract
from harness.evaluation.extractors import extractor_label
from harness.evaluation.frechet import frechet_distance, statistics
from harness.evaluation.metrics import Setup, score
from harness.runs.columns import RESULT_COLUMNS, metric_name
from harness.spec.data import Data
from harness.spec.evaluation import Evaluation
from tests.evaluation import fidelity  # noqa: F401  # registers digits-cnn with torch-fidelity

DIGITS = Data()
VALUES = ("frechet", "kid", "precision", "recall", "inception_score")


#: Scores images, by an evaluation with these fields.
Measure = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def digits() -> LoadedData:
    return load(DIGITS)


@pytest.fixture(scope="module")
def noisy(digits: LoadedData) -> np.ndarray:
    """400 training digits under some noise."""
    noise = np.random.default_rng(0).normal(0, 15, (400, 8, 8, 1))
    return np.clip(np.rint(digits.train.array()[:400] + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def measure(digits: LoadedData) -> Measure:
    def call(images: np.ndarray, **fields: object) -> dict[str, Any]:
        return score(images, Evaluation.model_validate({"samples": len(images), **fields}), DIGITS, digits)

    return call


@pytest.fixture(scope="module")
def record(measure: Measure, noisy: np.ndarray) -> dict[str, Any]:
    return measure(noisy)


def test_record_says_what_was_compared(record: dict[str, Any]) -> None:
    assert record["samples"] == 400
    assert record["extractor"] == extractor_label("digits-cnn")
    assert record["reference"] == "digits/train(1500)@634488df"
    assert record["warnings"] == []
    assert set(record) - {"warnings", "nested", "nearest_pairs"} <= set(RESULT_COLUMNS)
    assert all(type(record[key]) is float for key in VALUES)
    json.dumps(record, allow_nan=False)  # as it is written


class AsTorchFidelity(TorchDataset[torch.Tensor]):
    """Images as torch-fidelity takes them: bare uint8 tensors (3, H, W)."""

    def __init__(self, images: np.ndarray) -> None:
        self.images = channels_first(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.images[index]).expand(3, -1, -1)


def pytorch_fid(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """The formula of pytorch-fid's calculate_frechet_distance, which itself needs an older scipy."""
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    return float((mu1 - mu2) @ (mu1 - mu2) + np.trace(sigma1) + np.trace(sigma2) - 2 * np.trace(root))


def test_three_ways_agree_on_the_same_features(record: dict[str, Any], noisy: np.ndarray, digits: LoadedData) -> None:
    network = build("digits-cnn")
    generated, real = extract(network, noisy)[0], extract(network, digits.train.array())[0]
    assert record["frechet"] == pytest.approx(frechet_distance(*statistics(generated), *statistics(real)), rel=1e-6)
    by_formula = pytorch_fid(generated.mean(0), np.cov(generated.T), real.mean(0), np.cov(real.T))
    assert record["frechet"] == pytest.approx(by_formula, rel=1e-6)
    values = calculate_metrics(
        input1=AsTorchFidelity(noisy),
        input2=AsTorchFidelity(digits.train.array()),
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        feature_extractor="digits-cnn",
        kid_subset_size=400,
        kid_subsets=10,
        isc_splits=1,
        prc_neighborhood=3,
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    theirs = ("frechet_inception_distance", "kernel_inception_distance_mean", *VALUES[2:4], "inception_score_mean")
    for ours, key in zip(VALUES, theirs, strict=True):
        assert record[ours] == pytest.approx(values[key], rel=1e-6)


def test_parts_change_nothing(
    measure: Measure, noisy: np.ndarray, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PART", 33)
    found = measure(noisy)
    for key in VALUES:
        assert found[key] == pytest.approx(record[key], rel=1e-5)


def test_terms_nested_counts_and_folds(record: dict[str, Any], noisy: np.ndarray, digits: LoadedData) -> None:
    network = build("digits-cnn")
    generated, real = extract(network, noisy)[0], statistics(extract(network, digits.train.array())[0])
    assert record["frechet_mean_term"] + record["frechet_cov_term"] == pytest.approx(record["frechet"], rel=1e-12)
    assert [point["samples"] for point in record["nested"]] == list(range(40, 401, 40))
    for point in record["nested"]:
        distance = frechet_distance(*statistics(generated[: point["samples"]]), *real)
        assert point["frechet"] == pytest.approx(distance, rel=1e-6)
    folds = [frechet_distance(*statistics(fold), *real) for fold in np.split(generated, 5)]
    assert record["frechet_folds_mean"] == pytest.approx(np.mean(folds), rel=1e-6)
    assert record["frechet_folds_sd"] == pytest.approx(np.std(folds, ddof=1), rel=1e-6)
    assert record["frechet_fold_samples"] == 80
    assert record["frechet_infinity"] < record["frechet"]  # of prefixes from 320 = 5 * 64 on: 320, 360, 400
    assert 0 < record["frechet_bias"] < record["frechet_folds_mean"]


def test_distance_to_both_splits(record: dict[str, Any], measure: Measure, noisy: np.ndarray) -> None:
    other = measure(noisy, reference="held-out")
    assert record["frechet_train"] == record["frechet"] == pytest.approx(other["frechet_train"], rel=1e-12)
    assert other["frechet_heldout"] == other["frechet"] == pytest.approx(record["frechet_heldout"], rel=1e-12)


def test_copies_of_training_images_are_counted(record: dict[str, Any], measure: Measure, digits: LoadedData) -> None:
    assert measure(digits.train.array()[:200])["copies"] == 1.0
    unseen = measure(digits.heldout.array())
    assert unseen["copies"] == 0.0
    assert 0.8 < unseen["nearest_ratio"] < 1
    assert 0 < record["copies"] < 0.5  # training images under noise


def test_floor_is_what_as_many_real_images_score(record: dict[str, Any], digits: LoadedData, measure: Measure) -> None:
    real = extract(build("digits-cnn"), digits.train.array())[0]
    floors = []
    for number in range(5):
        chosen = np.isin(np.arange(1500), stream("floor", number).permutation(1500)[:400])
        floors.append(frechet_distance(*statistics(real[chosen]), *statistics(real[~chosen])))
    assert record["frechet_floor"] == pytest.approx(np.mean(floors), rel=1e-6)
    assert record["frechet_floor"] < record["frechet"]
    unseen = measure(digits.heldout.array())  # what a perfect model does: floor and measurement agree
    assert unseen["frechet"] == pytest.approx(unseen["frechet_floor"], rel=0.5)
    too_many = measure(digits.train.array()[:751])
    assert too_many["frechet_floor"] is None
    assert any("no real-vs-real floor at N = 751: it takes twice as many" in line for line in too_many["warnings"])


def test_precision_and_recall_are_not_exchanged(measure: Measure, digits: LoadedData, noisy: np.ndarray) -> None:
    """Few modes, well drawn: precise, but most of the data is out of reach. Checked against the definition as well."""
    one_class = digits.train.array()[digits.train.labels == 3]
    found = measure(one_class)
    assert found["precision"] == 1.0
    assert found["recall"] < 0.5

    network = build("digits-cnn")
    generated, real = extract(network, noisy)[0], extract(network, digits.heldout.array())[0]
    between = np.linalg.norm(generated[:, None] - real[None], axis=2)  # (generated, real)

    def radius(x: np.ndarray) -> np.ndarray:
        return np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, 3]  # column 0 is the point itself

    found = measure(noisy, reference="held-out")
    assert found["precision"] == pytest.approx((between <= radius(real)).any(axis=1).mean(), abs=0.005)
    assert found["recall"] == pytest.approx((between <= radius(generated)[:, None]).any(axis=0).mean(), abs=0.005)


def test_kid_is_the_unbiased_estimate(measure: Measure, digits: LoadedData) -> None:
    """With as many generated as real images there is one subset only: all of them."""
    images = digits.train.array()[:297]
    found = measure(images, reference="held-out")
    network = build("digits-cnn")
    x, y = extract(network, images)[0], extract(network, digits.heldout.array())[0]
    m = len(x)
    xx, yy, xy = ((a @ b.T / 64 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (m * (m - 1))
    assert found["kid"] == pytest.approx(within - 2 * xy.mean(), abs=1e-6)


def test_inception_score_by_its_formula(record: dict[str, Any], noisy: np.ndarray) -> None:
    logits = extract(build("digits-cnn"), noisy)[1]
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean())
    assert record["inception_score"] == pytest.approx(expected, rel=1e-5)
    assert 1 < expected < 10


def test_reference_held_out(measure: Measure, noisy: np.ndarray, record: dict[str, Any]) -> None:
    found = measure(noisy, reference="held-out")
    assert found["reference"] == "digits/held-out(297)@634488df"
    assert found["frechet"] != record["frechet"]
    assert [line for line in found["warnings"] if "297 real images" in line]


def test_real_images_score_best(measure: Measure, digits: LoadedData, record: dict[str, Any]) -> None:
    itself = measure(digits.train.array())
    assert itself["frechet"] == pytest.approx(0, abs=1e-6)
    assert itself["precision"] == itself["recall"] == 1.0
    random_images = np.random.default_rng(1).integers(0, 256, (400, 8, 8, 1), dtype=np.uint8)
    garbage = measure(random_images)
    assert itself["frechet"] < record["frechet"] < garbage["frechet"]
    assert itself["kid"] < record["kid"] < garbage["kid"]
    assert garbage["precision"] == 0.0  # measured, and therefore not None


def test_same_images_same_numbers_and_no_trace(measure: Measure, noisy: np.ndarray, record: dict[str, Any]) -> None:
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002 - the global state is the point
    random.seed(7)
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()  # noqa: NPY002
    assert measure(noisy) == record
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]


def test_order_of_the_images_does_not_matter_to_the_distance(
    measure: Measure, noisy: np.ndarray, record: dict[str, Any]
) -> None:
    assert measure(noisy[::-1])["frechet"] == pytest.approx(record["frechet"], rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_images_give_warnings_and_none_never_zero(n: int, measure: Measure, noisy: np.ndarray) -> None:
    found = measure(noisy[:n])
    assert found["frechet"] > 0
    if n <= metrics.NEIGHBOURS:
        assert found["precision"] is None
        assert found["recall"] is None
        assert any("not computable" in line and "precision, recall" in line for line in found["warnings"])
    else:
        assert isinstance(found["precision"], float)
    (bias,) = (line for line in found["warnings"] if "biased upward" in line)
    assert f"FD-digits-cnn from {n} generated images" in bias
    assert "1/N" in bias
    assert "320" in bias


def test_what_is_not_finite_is_none(measure: Measure, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "torch_fidelity.metric_kid.kid_features_to_metric", lambda *_, **__: {KEY_METRIC_KID_MEAN: float("nan")}
    )
    found = measure(noisy)
    assert found["kid"] is None
    assert any("not computable" in line and line.endswith("kid") for line in found["warnings"])


def test_features_that_are_not_finite_are_refused(
    measure: Measure, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = build("digits-cnn")
    broken.features.bias[0] = float("nan")
    monkeypatch.setattr("harness.evaluation.classifier.build", lambda _: broken)
    with pytest.raises(NonFiniteError, match=r"digits-cnn@\w{8}: the weights give features that are not finite"):
        measure(noisy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.astype(np.float32) / 255, "uint8 levels 0..255, got float32"),
        (lambda x: np.full(x.shape, np.nan), "uint8 levels 0..255, got float64"),
        (lambda x: x.astype(np.int64), "got int64"),
        (lambda x: x[..., 0], r"shape \(N, 8, 8, 1\), got \(400, 8, 8\)"),
        (lambda x: x.transpose(0, 3, 1, 2), r"got \(400, 1, 8, 8\)"),
        (lambda x: x[:399], "samples is 400, but there are 399"),
    ],
)
def test_other_images_are_refused(
    change: Callable[[np.ndarray], np.ndarray], message: str, noisy: np.ndarray, digits: LoadedData
) -> None:
    with pytest.raises(InputError, match=message):
        score(change(noisy), Evaluation(samples=400), DIGITS, digits)


def test_constant_images_are_refused(measure: Measure, noisy: np.ndarray) -> None:
    for images in (np.zeros_like(noisy), np.repeat(noisy[:1], 10, axis=0)):
        with pytest.raises(CellFailedError, match="are the same image"):
            measure(images)


def test_extractor_must_fit(noisy: np.ndarray, digits: LoadedData) -> None:
    for name in ("fashion-cnn", "inception-v3-compat"):
        with pytest.raises(InputError, match=r"allowed.*: digits-cnn"):
            score(noisy, Evaluation(samples=400, extractor=name), DIGITS, digits)


def test_device_must_exist(noisy: np.ndarray, digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", "mps"):
        with pytest.raises(InputError, match="allowed: cpu, cuda"):
            score(noisy, Evaluation(samples=400), DIGITS, digits, Setup(device))


def test_neighbours_are_of_so_many_real_images(
    measure: Measure, noisy: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def record_sizes(one: torch.Tensor, other: torch.Tensor, **options: Any) -> dict[str, float]:
        asked.append((len(one), len(other)))
        assert options["save_cpu_ram"]  # distances in pieces: N x N of 50,000 would be 10 GB
        return {}

    monkeypatch.setattr("torch_fidelity.metric_prc.prc_features_to_metric", record_sizes)
    monkeypatch.setattr(references, "NEIGHBOUR_IMAGES", 100)
    measure(noisy)
    assert asked == [(400, 100)]


def test_inception_score_is_torch_fidelitys_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(107, 10, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(metrics, "_IS_CHUNK", 20)
    theirs = isc_features_to_metric(logits, splits=5)[KEY_METRIC_ISC_MEAN]
    assert metrics._inception_score(logits) == pytest.approx(theirs, rel=1e-12)


def test_only_the_published_weights_give_an_fid() -> None:
    assert metric_name("digits-cnn") == metric_name("digits-cnn@12345678") == "FD-digits-cnn"
    assert metric_name("inception-v3-compat@6726825d") == "FID"
    assert metric_name("inception-v3-compat@00000000") == "FD-inception-v3-compat"
    assert metric_name("inception-v3-compat") == "FD-inception-v3-compat"  # which weights, nobody knows
