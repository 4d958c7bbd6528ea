"""FID's network, with made-up weights: the way through, the name it earns, and what is refused."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as network

from harness.data.dataset import Images, LoadedData
from harness.data.pixels import channels_first
from harness.errors import InputError
from harness.evaluation import adm, features, inception, metrics
from harness.evaluation.extractors import Features, extractor_label
from harness.evaluation.features import Extraction
from harness.evaluation.frechet import frechet_distance, statistics
from harness.evaluation.metrics import Setup, score
from harness.launch.launch import launch
from harness.runs.columns import metric_name
from harness.runs.study import Shared, Study
from harness.spec.data import Data
from harness.spec.evaluation import INCEPTION, Evaluation
from harness.spec.resources import Resources
from harness.training.hooks import StoppedError
from sweeps.grid import load_sweep
from tests.evaluation.published_files import write_random_inception
from tests.evaluation.samples import read_samples

DATA = Data(name="folder", resolution=16, classes=2, fingerprint="0" * 12)
SWEEP = """
[grid]
seed = [0]
[model]
depth = 1
width = 16
patch_size = 8
[data]
name = "imagenet"
resolution = 32
[training]
steps = 1
[[evaluation]]
samples = 10
[resources]
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file like the published one, with random numbers in it."""
    return write_random_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


def noise(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def dataset(real: np.ndarray) -> LoadedData:
    labels = np.zeros(len(real), dtype=np.int64)
    return LoadedData("folder", Images(real, labels), Images(noise(1, 1), labels[:1]), "0" * 12)


@pytest.fixture(scope="module")
def record(weights: Path) -> dict[str, Any]:
    """Of 8 images against 10."""
    evaluation = Evaluation(samples=8, extractor=INCEPTION)
    return score(
        noise(8, 2), evaluation, DATA, dataset(noise(10, 0)), Setup(resources=Resources(inception_weights=str(weights)))
    )


@pytest.fixture(scope="module")
def by_hand(weights: Path) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """pool_3 and spatial features, by torch-fidelity's own network."""
    extractor: Any = network.FeatureExtractorInceptionV3(
        INCEPTION, ["2048"], feature_extractor_weights_path=str(weights)
    )
    seen: list[torch.Tensor] = []
    extractor.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def features(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (pool,) = extractor(torch.from_numpy(channels_first(images)))
        branch = seen.pop().numpy()
        assert branch.shape[1:] == (192, 17, 17)
        rows = [branch[:, channel, row, column] for row in range(17) for column in range(17) for channel in range(7)]
        return pool.numpy(), np.stack(rows, axis=1)

    return features


def test_the_way_through_and_its_name(weights: Path, record: dict[str, Any]) -> None:
    label = str(record["extractor"])
    assert label == extractor_label(INCEPTION, str(weights))
    assert metric_name(label) == "FD-inception-v3-compat"  # by no means FID
    assert isinstance(record["frechet"], float)
    assert isinstance(record["inception_score"], float)
    assert any("2048 feature dimensions (10240)" in line for line in record["warnings"])


def test_distances_are_of_the_right_layers(record: dict[str, Any], by_hand: Any) -> None:
    generated, real = by_hand(noise(8, 2)), by_hand(noise(10, 0))
    for layer, key in enumerate(("frechet", "sfid")):
        expected = frechet_distance(*statistics(generated[layer]), *statistics(real[layer]))
        assert record[key] == pytest.approx(expected, rel=1e-5)
    assert generated[1].shape == (8, adm.SPATIAL_DIM)


def test_the_network_gives_all_layers(weights: Path) -> None:
    images = torch.from_numpy(channels_first(noise(2, 0)))
    found = inception.INCEPTION.build("cpu", str(weights))(images)
    assert isinstance(found, Features)
    assert found.spatial is not None
    assert (found.spatial.shape, found.pool.shape) == ((2, 2023), (2, 2048))


def test_an_adm_reference_and_exported_samples(
    weights: Path, record: dict[str, Any], by_hand: Any, tmp_path: Path
) -> None:
    """The same real images as a reference of the ADM suite, the same samples through a file: the same metrics."""
    real = noise(10, 0)
    pool, spatial = by_hand(real)
    path = tmp_path / "VIRTUAL.npz"
    (mu, sigma), (mu_s, sigma_s) = statistics(pool), statistics(spatial)
    np.savez(path, arr_0=real, mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    adm.write_samples(tmp_path / "samples.npz", noise(8, 2), np.arange(8))
    samples, _ = read_samples(tmp_path / "samples.npz")
    evaluation = Evaluation(samples=8, extractor=INCEPTION, reference="adm")
    setup = Setup(resources=Resources(inception_weights=str(weights), adm_reference=str(path)), shared=Shared(tmp_path))
    found = score(samples, evaluation, DATA, None, setup)
    assert found["reference"] == f"adm/VIRTUAL(10)@{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    for key in ("frechet", "sfid", "precision", "recall", "kid", "inception_score", "frechet_bias"):
        assert found[key] == pytest.approx(record[key], rel=1e-5, abs=1e-9)
    assert found["frechet_floor"] is None
    assert not any("real images" in line for line in found["warnings"])  # how many there were, the file does not say
    (kept,) = tmp_path.rglob("reference.safetensors")
    assert kept.parent.name.startswith("adm-inception-v3-compat-")


def test_a_file_with_the_published_hash_gives_an_fid(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metric_name(Extraction(INCEPTION, weights=str(weights)).label) == "FD-inception-v3-compat"
    monkeypatch.setattr(inception, "large_file_hash", lambda _: inception.PUBLISHED + "0" * 56)
    assert metric_name(Extraction(INCEPTION, weights=str(weights)).label) == "FID"


def test_interrupted_scoring_goes_on_after_its_last_part(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PART", 2)
    extractor, extracted = Extraction(INCEPTION, weights=str(weights)), list[int]()
    original = extractor.features_of

    def extract(images: np.ndarray) -> Features:
        extracted.append(len(images))
        return original(images)

    monkeypatch.setattr(extractor, "features_of", extract)

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise StoppedError

    def run(folder: str, progress: Any) -> Any:
        return metrics._extract(noise(5, 2), extractor, lambda first: tmp_path / folder / str(first), progress)

    with pytest.raises(StoppedError):
        run("stopped", stop)
    assert extracted == [2, 2]
    content = bytearray((tmp_path / "stopped" / "2").read_bytes())
    content[-1] ^= 1
    (tmp_path / "stopped" / "2").write_bytes(content)  # a damaged part is made again
    found = run("stopped", lambda done, total: None)
    assert extracted[2:] == [2, 1]
    whole = run("whole", lambda done, total: None)
    assert torch.equal(found.pool, whole.pool)
    assert torch.equal(found.logits, whole.logits)
    for one, other in ((found.blocks.whole, whole.blocks.whole), (found.spatial.whole, whole.spatial.whole)):
        assert np.array_equal(one.outer, other.outer)


def test_fid_is_earned_by_the_published_weights_only() -> None:
    assert metric_name(f"inception-v3-compat@{inception.PUBLISHED}") == "FID"
    assert metric_name("inception-v3-compat") == "FD-inception-v3-compat"


def test_weights_are_looked_for_where_torch_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    get = r"needs its weights, in resources\.inception_weights or in .*: curl .*6726825d\.pth https://.*6726825d\.pth$"
    with pytest.raises(InputError, match=get):
        inception.FILE.find(None)
    place = tmp_path / "hub" / "checkpoints" / inception.FILE.name
    place.parent.mkdir(parents=True)
    place.touch()
    assert inception.FILE.find(None) == place
    with pytest.raises(InputError, match="none: no such file"):
        inception.FILE.find(str(tmp_path / "none"))


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-executed",)


def test_other_files_are_refused_and_none_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Code()}, "evil.pth")
    torch.save(
        {"fc.weight": torch.zeros(1008, 2048), "Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, "other.pth"
    )
    Path("torn.pth").write_bytes(b"PK")
    for name, reason in (("evil", "no file of"), ("other", "other weights"), ("torn", "no file of")):
        with pytest.raises(InputError, match=rf"{name}\.pth: {reason}"):
            inception.check_weights(Path(f"{name}.pth"))
    assert not Path("was-executed").exists()


def test_weights_that_are_not_finite_are_refused(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    state["fc.weight"][0, :2] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(
        InputError, match=r"nan\.pth: weights that are not finite \(1 tensors, for example fc\.weight\)"
    ):
        inception.check_weights(tmp_path / "nan.pth")


def test_a_launch_without_the_weights_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("harness.data.sources.check_available", lambda *_: None)
    (tmp_path / "study.toml").write_text(SWEEP)
    with pytest.raises(InputError, match=r"study\.toml: evaluation\.extractor inception-v3-compat needs its weights"):
        launch(load_sweep(tmp_path / "study.toml"), Study(tmp_path / "results", "study"), Mock())
    assert not (tmp_path / "results").exists()
