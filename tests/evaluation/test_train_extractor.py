import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.dataset import LoadedData
from harness.data.sources import load
from harness.errors import NonFiniteError
from harness.evaluation import train_extractor
from harness.evaluation.classifier import ARCHITECTURES, content_hash, read_weights
from harness.evaluation.train_extractor import RECIPES, blur, corrupt, main, train
from harness.spec.data import Data

SHORT = dataclasses.replace(RECIPES["digits-cnn"], steps=15)


@pytest.fixture(scope="module")
def digits() -> LoadedData:
    return load(Data())


def test_training_twice_gives_the_same_bits_whatever_the_caller_did(digits: LoadedData) -> None:
    """The committed weights come out again only under their own torch version; this holds under every version."""
    torch.manual_seed(1)
    first = content_hash(train(ARCHITECTURES["digits-cnn"], digits, SHORT).state_dict())
    torch.manual_seed(2)
    assert content_hash(train(ARCHITECTURES["digits-cnn"], digits, SHORT).state_dict()) == first
    other = dataclasses.replace(SHORT, seed=1)
    assert content_hash(train(ARCHITECTURES["digits-cnn"], digits, other).state_dict()) != first


def test_training_leaves_no_trace(digits: LoadedData) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    network = train(ARCHITECTURES["digits-cnn"], digits, dataclasses.replace(SHORT, steps=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert not network.training


def test_command_writes_weights_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(RECIPES, "digits-cnn", SHORT)
    main(["digits-cnn", "--output", str(tmp_path / "new")])
    file = tmp_path / "new" / "digits-cnn.safetensors"
    weights = read_weights(file)
    assert json.loads(capsys.readouterr().out) == weights.card
    assert weights.card["recipe"]["steps"] == 15
    assert weights.card["torch"] == torch.__version__
    assert file.stat().st_mode & 0o777 == 0o644
    with pytest.raises(SystemExit):
        main(["inception"])


def test_corruption_levels_tell_what_was_done() -> None:
    torch.manual_seed(0)
    images = torch.rand(4000, 1, 8, 8) - 0.5
    corrupted, levels = corrupt(images, noise=0.4)
    changed = (corrupted - images).flatten(1).abs().amax(1) > 0
    assert torch.equal(changed, (levels > 0).any(dim=1))
    np.testing.assert_allclose((levels > 0).float().mean(0), 0.5, atol=0.03)
    only_noise = (levels[:, 1] == 0) & (levels[:, 0] > 0)
    spread = (corrupted - images)[only_noise].flatten(1).std(1)
    np.testing.assert_allclose(spread / (0.4 * levels[only_noise, 0]), 1, atol=0.5)
    assert corrupted.abs().max() <= 1


def test_blur_keeps_flat_images_and_spreads_a_point() -> None:
    assert torch.allclose(blur(torch.full((1, 2, 5, 5), 0.3)), torch.full((1, 2, 5, 5), 0.3))
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 16
    expected = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])
    assert torch.equal(blur(point)[0, 0, 1:4, 1:4], expected)


def test_standard_features_cost_nothing() -> None:
    x = torch.linalg.qr(torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    x = x - x.mean(0)
    whitener = torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    cost = train_extractor._distance_from_standard
    assert float(cost(x @ whitener)) == pytest.approx(0, abs=1e-12)
    assert float(cost(x @ whitener + 2)) == pytest.approx(4)
    assert float(cost(2 * x @ whitener)) == pytest.approx(9)


def test_an_extractor_that_diverges_is_not_written(digits: LoadedData) -> None:
    with pytest.raises(NonFiniteError, match=r"the classifier after step 4: \d+ of \d+ values are not finite"):
        train(ARCHITECTURES["digits-cnn"], digits, dataclasses.replace(SHORT, steps=4, learning_rate=1e36))
