"""Copies are told from images that are merely good, and the memoriser's loss is what its closed form says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.batches import batches
from harness.data.dataset import LoadedData
from harness.data.sources import load
from harness.diffusion.ddpm import DdpmHybrid
from harness.errors import NonFiniteError
from harness.evaluation import memorisation
from harness.evaluation.memorisation import OptimalDenoiser, nearest, optimal_losses
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.diffusion import Diffusion
from harness.training.losses import measure_losses

OBJECTIVE = DdpmHybrid(Diffusion())
SCHEDULE = OBJECTIVE.schedule


def cell(**data: object) -> Cell:
    return Cell.model_validate({"model": {"depth": 1, "width": 16, "patch_size": 4}, "data": data})


@pytest.fixture(scope="module")
def digits() -> LoadedData:
    return load(cell().data)


def test_copies_are_counted() -> None:
    rng = np.random.default_rng(0)
    train, fresh = (torch.from_numpy(rng.standard_normal((300, 16))) for _ in range(2))
    assert nearest(train, train).copies == 1.0
    assert nearest(train, train).ratio == 0.0
    unseen = nearest(fresh, train)
    assert unseen.copies == 0.0  # in 16 dimensions the two nearest of 300 are about as far
    assert 0.8 < unseen.ratio < 1
    half = torch.cat([fresh[:50], train[:50] + 0.05 * fresh[:50]])
    assert nearest(half, train).copies == 0.5


def test_nearest_by_hand_and_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    train = torch.tensor([[0.0], [1.0], [5.0]])
    samples = torch.tensor([[0.25], [0.4], [5.0], [3.0]])  # ratios 1/3, 2/3, 0, 1
    monkeypatch.setattr(memorisation, "_CHUNK_VALUES", 3)
    assert nearest(samples, train).copies == 0.25
    assert nearest(samples[:3], train).ratio == pytest.approx(1 / 3)


def test_the_most_alike_and_some_others_are_shown_with_their_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(40, 8, generator=generator)
    samples = torch.cat([torch.randn(90, 8, generator=generator), train[:10] + 1e-3])
    pairs = nearest(samples, train).pairs
    assert {sample for sample, _ in pairs[:10]} == set(range(90, 100))
    assert all(image == sample - 90 for sample, image in pairs[:10])
    assert [sample for sample, _ in pairs[10:]] == [*range(0, 100, 10)]
    assert all(image == int(torch.cdist(samples[None, sample], train).argmin()) for sample, image in pairs)
    assert len(nearest(samples[:3], train).pairs) == 6


def test_a_copy_of_a_double_is_a_copy() -> None:
    train = torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]]).repeat(1, 40)
    assert nearest(train[:1], train).copies == 1.0


def softmax_denoiser(images: torch.Tensor, xt: torch.Tensor, t: int) -> torch.Tensor:
    """By the definition, one input at a time."""
    share = float(SCHEDULE.alphas_bar[t])
    distances = (xt - math.sqrt(share) * images).flatten(1).square().sum(1)
    weights = torch.softmax(-distances / (2 * (1 - share)), dim=0)
    x0 = (weights[:, None, None, None] * images).sum(0)
    return (xt - math.sqrt(share) * x0) / math.sqrt(1 - share)


@pytest.mark.parametrize("points", [1, 3, 4096])
def test_closed_form(points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "_POINTS", points)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(10, 2, 3, 3, generator=generator)
    labels = torch.arange(10) % 2
    xt, t = torch.randn(5, 2, 3, 3, generator=generator), torch.tensor([0, 10, 200, 600, 999])
    found = OptimalDenoiser(images, None, OBJECTIVE)(xt, t, None)
    of_a_class = OptimalDenoiser(images, labels, OBJECTIVE)(xt, t, torch.ones(5, dtype=torch.int64))
    for i in range(5):
        expected = softmax_denoiser(images.double(), xt[i].double(), int(t[i]))
        assert torch.allclose(found[i].double(), expected, rtol=1e-5, atol=1e-5)
        expected = softmax_denoiser(images[labels == 1].double(), xt[i].double(), int(t[i]))
        assert torch.allclose(of_a_class[i].double(), expected, rtol=1e-5, atol=1e-5)


def test_one_image_has_no_secret() -> None:
    image, noise = torch.full((1, 1, 2, 2), 0.5), torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0, 1, 500, 999])
    xt = SCHEDULE.q_sample(image.expand(4, -1, -1, -1), t, noise)
    assert torch.allclose(OptimalDenoiser(image, None, OBJECTIVE)(xt, t, None), noise, atol=2e-3)


def test_a_class_without_images_is_no_nan() -> None:
    denoiser = OptimalDenoiser(torch.ones(2, 1, 2, 2), torch.tensor([0, 0]), OBJECTIVE)
    assert torch.isfinite(denoiser(torch.ones(1, 1, 2, 2), torch.tensor([3]), torch.tensor([7]))).all()


def test_a_memoriser_is_good_on_what_it_saw_only(digits: LoadedData) -> None:
    """The mean of the facts, 0.021 on its own data, over these draws of timesteps and noise."""
    free = optimal_losses(cell(labels=False), digits, 256)
    assert free["loss_optimal_train"] == pytest.approx(0.021, abs=0.004)
    assert free["loss_optimal_heldout"] > 1  # type: ignore[operator]
    told = optimal_losses(cell(), digits, 256)
    assert told["loss_optimal_train"] < free["loss_optimal_train"]  # type: ignore[operator]


def test_no_denoiser_has_less_loss_on_the_training_images(digits: LoadedData) -> None:
    """Blends with the images' mean and with the identity lose, in the mean over bins."""
    c = cell(labels=False)
    data = batches(digits, "cpu")
    best = OptimalDenoiser(*memorisation._points(c, data.train), OBJECTIVE)
    for blend in (0.9, 1.1):
        other = measure_losses(lambda x, t, y, blend=blend: blend * best(x, t, y), c, data, 64)  # type: ignore[misc]
        assert other["loss_train"] > measure_losses(best, c, data, 64)["loss_train"]


def test_mirror_images_are_images_too(digits: LoadedData) -> None:
    data = batches(digits, "cpu")
    images, labels = memorisation._points(cell(horizontal_flips=True), data.train)
    assert (len(images), len(labels)) == (3000, 3000)  # type: ignore[arg-type]
    assert torch.equal(images[1500:], images[:1500].flip(-1))


def test_measured_once(digits: LoadedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = optimal_losses(cell(), digits, 16, shared=Shared(tmp_path))
    monkeypatch.setattr(memorisation, "measure_losses", lambda *_: pytest.fail("measured again"))
    wider = cell().model_copy(update={"seed": 5})
    assert optimal_losses(wider, digits, 16, shared=Shared(tmp_path)) == first
    with pytest.raises(BaseException, match="measured again"):
        optimal_losses(cell(), digits, 17, shared=Shared(tmp_path))


def test_not_of_latents_nor_of_too_many_images(digits: LoadedData, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"loss_optimal_train": None, "loss_optimal_heldout": None}
    assert optimal_losses(cell(vae={"kind": "trained", "factor": 2}), digits, 16) == nothing
    with monkeypatch.context() as patch:
        patch.setattr(memorisation, "_MOST_VALUES", 1500 * 64 - 1)
        assert optimal_losses(cell(), digits, 16) == nothing
    monkeypatch.setattr(memorisation, "MOST_IMAGES", 2999)
    assert optimal_losses(cell(horizontal_flips=True), digits, 16) == nothing


def test_an_optimal_loss_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell.model_validate({"model": {"depth": 1, "width": 8, "patch_size": 4}})
    monkeypatch.setattr(OptimalDenoiser, "__call__", lambda _, xt, *__: torch.full_like(xt, torch.nan))
    with pytest.raises(NonFiniteError, match=r"the optimal denoiser: the loss measured on 4 train images is not"):
        optimal_losses(cell, load(cell.data), 4)
