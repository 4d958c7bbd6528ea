"""An extractor from a user's own file, used like a built-in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.sources import load
from harness.errors import InputError, NonFiniteError
from harness.evaluation.extractors import extractor_label
from harness.evaluation.features import Extraction
from harness.evaluation.frechet import frechet_distance, statistics
from harness.evaluation.metrics import Setup, score
from harness.runs.columns import metric_name
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.spec.evaluation import EXTRACTORS, Evaluation
from harness.spec.extension import Extension

QUARTERS = """
from torch import Tensor
from torch.nn.functional import avg_pool2d
from harness.evaluation.extractors import Extractor, Network

class Quarters(Extractor):
    channels, size, dims = 1, 8, 4
    slow = True

    def build(self, device: str, weights: str | None) -> Network:
        return lambda images: avg_pool2d(images.double(), 4).flatten(1)

EXTRACTORS = {"quarters": Quarters()}
"""


@pytest.fixture(autouse=True)
def quarters(users_files: None) -> Extension:
    extension = Extension("quarters.py", QUARTERS)
    extension.load()
    return extension


def test_it_is_named_by_its_file(quarters: Extension) -> None:
    label = extractor_label("quarters")
    assert label == f"quarters@{quarters.content_hash[:8]}"
    assert metric_name(label) == "FD-quarters"
    with pytest.raises(
        InputError,
        match="unknown 'thirds'; allowed: digits-cnn, fashion-cnn, inception-v3-compat, dinov2-vit-l14, quar",
    ):
        extractor_label("thirds")


def test_it_scores_and_knows_no_inception_score(tmp_path: Path) -> None:
    digits = load(Data())
    images = digits.train.array()[:100]
    parts: list[int] = []

    def cache(first: int) -> Path:
        parts.append(first)
        return tmp_path / str(first)

    evaluation = Evaluation(samples=100, extractor="quarters", reference="held-out")
    setup = Setup(shared=Shared(tmp_path), cache=cache)
    record: dict[str, Any] = score(images, evaluation, Data(), digits, setup)

    def by_hand(some: np.ndarray) -> Any:
        return statistics(some.reshape(-1, 2, 4, 2, 4).mean(axis=(2, 4)).reshape(-1, 4))

    expected = frechet_distance(*by_hand(images), *by_hand(digits.heldout.array()))
    assert record["frechet"] == record["frechet_heldout"] == pytest.approx(expected, rel=1e-9)
    assert record["inception_score"] is record["sfid"] is None
    assert record["copies"] == 1.0
    assert record["warnings"] == []
    assert parts == [0]
    assert score(images, evaluation, Data(), digits, setup) == record  # features and references are found again


def test_what_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = type(EXTRACTORS.load("quarters"))
    monkeypatch.setattr(broken, "build", lambda *_: lambda images: torch.full((len(images), 4), torch.nan))
    with pytest.raises(NonFiniteError, match=r"quarters@\w{8}: the weights give features that are not finite"):
        Extraction("quarters").features_of(np.zeros((2, 8, 8, 1), dtype=np.uint8))
