"""FID's network, with made-up weights: the way through, the name it earns, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as network

from harness.cell import Data, Evaluation
from harness.data.sources import Dataset, Images
from harness.errors import InputError
from harness.evaluation import inception
from harness.evaluation.metrics import metric_name, score
from harness.launch import launch
from harness.runs import Study
from sweeps.grid import load_sweep

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
    state: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(network, "load_state_dict_from_url", lambda *_, **__: {})
        extractor: Any = network.FeatureExtractorInceptionV3
        patch.setattr(extractor, "load_state_dict", lambda self, _: state.update(self.state_dict()))
        extractor("any", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return path


def noise(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_the_way_through_and_its_name(weights: Path) -> None:
    labels = np.zeros(10, dtype=np.int64)
    dataset = Dataset("folder", Images(noise(10, 0), labels), Images(noise(4, 1), labels[:4]), "0" * 12)
    evaluation = Evaluation(samples=8, extractor=inception.NAME)
    record = score(noise(8, 2), evaluation, DATA, dataset, inception_weights=str(weights))
    label = str(record["extractor"])
    assert label == inception.weights_label(weights)
    assert metric_name(label) == "FD-inception-v3-compat"  # by no means FID
    assert isinstance(record["frechet"], float)
    assert isinstance(record["inception_score"], float)
    assert any("2048 feature dimensions (10240)" in line for line in record["warnings"])  # type: ignore[attr-defined]


def test_fid_is_earned_by_the_published_weights_only() -> None:
    assert metric_name(f"inception-v3-compat@{inception.PUBLISHED}") == "FID"
    assert metric_name("inception-v3-compat") == "FD-inception-v3-compat"


def test_weights_are_looked_for_where_torch_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"needs its weights: download https://.*6726825d\.pth and set resources"):
        inception.find_weights(None)
    place = tmp_path / "hub" / "checkpoints" / inception.FILE
    place.parent.mkdir(parents=True)
    place.touch()
    assert inception.find_weights(None) == place
    with pytest.raises(InputError, match="none: no such file"):
        inception.find_weights(str(tmp_path / "none"))


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-executed",)


def test_other_files_are_refused_and_none_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Code()}, "evil.pth")
    torch.save({"fc.weight": torch.zeros(1), "Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, "other.pth")
    Path("torn.pth").write_bytes(b"PK")
    for name, reason in (("evil", "no readable"), ("other", "other weights"), ("torn", "no readable")):
        with pytest.raises(InputError, match=rf"{name}\.pth: {reason}"):
            inception.check_weights(Path(f"{name}.pth"))
    assert not Path("was-executed").exists()


def test_a_launch_without_the_weights_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("harness.data.sources.check_available", lambda *_: None)
    (tmp_path / "study.toml").write_text(SWEEP)
    with pytest.raises(InputError, match=r"study\.toml: evaluation\.extractor inception-v3-compat needs its weights"):
        launch(load_sweep(tmp_path / "study.toml"), Study(tmp_path / "results", "study"), None)  # type: ignore[arg-type]
    assert not (tmp_path / "results").exists()
