"""The metrics of extracted features against torch-fidelity's functions: the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_fidelity import KEY_METRIC_ISC_MEAN, KEY_METRIC_KID_MEAN, KEY_METRIC_PRECISION, KEY_METRIC_RECALL
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from harness.evaluation import scores
from harness.evaluation.scores import inception_score, kernel_distance, precision_recall


@pytest.fixture(params=[torch.float32, torch.float64])
def features(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """Of 60 generated and 70 real images, the ones a little away from the others."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(130, 8, generator=generator, dtype=request.param)
    return both[:60] * 1.1, both[60:]


def test_kernel_distance(features: tuple[Tensor, Tensor]) -> None:
    theirs = kid_features_to_metric(*features, kid_subset_size=50, kid_subsets=3, rng_seed=2020, verbose=False)
    assert kernel_distance(*features, size=50, subsets=3) == theirs[KEY_METRIC_KID_MEAN] != 0


def test_precision_and_recall(features: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_BATCH", 25)
    told: list[tuple[int, int]] = []
    ours = precision_recall(*features, neighbours=3, progress=lambda done, total: told.append((done, total)))
    options = {"prc_neighborhood": 3, "prc_batch_size": 25, "save_cpu_ram": True, "verbose": False}
    theirs = prc_features_to_metric(*features, **options)
    assert ours == (theirs[KEY_METRIC_PRECISION], theirs[KEY_METRIC_RECALL])
    assert 0 < ours[1] < ours[0] + 1 < 2
    assert told == [(i, 36) for i in range(1, 37)]


def test_inception_score_of_chunks(features: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "_IS_CHUNK", 20)
    theirs = isc_features_to_metric(features[0], splits=3)[KEY_METRIC_ISC_MEAN]
    assert inception_score(features[0]) == pytest.approx(theirs, rel=1e-12)
