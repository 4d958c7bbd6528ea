"""References: made once, kept under what they are, made anew when damaged or other."""

from __future__ import annotations

import multiprocessing
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.dataset import Images, LoadedData
from harness.data.sources import load
from harness.errors import InputError, NonFiniteError
from harness.evaluation import features, references
from harness.evaluation.classifier import build, extract
from harness.evaluation.features import Extraction
from harness.evaluation.frechet import statistics
from harness.evaluation.references import once, reference_of
from harness.evaluation.watch import Watch
from harness.processes import exclusive
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.training import checkpoint
from harness.training.hooks import Report

DATA = Data()


@pytest.fixture(scope="module")
def digits() -> LoadedData:
    return load(DATA)


@pytest.fixture
def extractor() -> Extraction:
    return Extraction("digits-cnn")


@pytest.fixture
def extractions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were extracted, call by call."""
    calls: list[int] = []
    original = Extraction.features_of

    def counted(self: Extraction, images: np.ndarray) -> Any:
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Extraction, "features_of", counted)
    return calls


def test_is_what_numpy_says_and_made_once(
    digits: LoadedData, extractor: Extraction, extractions: list[int], tmp_path: Path
) -> None:
    shared = Shared(tmp_path)
    first = reference_of(digits, "train", DATA, extractor, shared)
    assert sum(extractions) == 1500
    again = reference_of(digits, "train", DATA, Extraction("digits-cnn"), shared)
    assert sum(extractions) == 1500
    real = extract(build("digits-cnn"), digits.train.array())[0]
    mu, sigma = statistics(real)
    for found in (first, again):
        np.testing.assert_allclose(found.mu, mu, rtol=1e-12)
        np.testing.assert_allclose(found.sigma, sigma, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.features.numpy(), real, rtol=1e-12)
        assert found.complete
        assert found.label == "digits/train(1500)@634488df"
    (folder,) = (tmp_path / "_references").glob("[!.]*")
    assert folder.name.startswith("digits-train-digits-cnn-")


def test_whatever_is_other_has_another_key(digits: LoadedData, extractor: Extraction, tmp_path: Path) -> None:
    shared = Shared(tmp_path)
    other_weights = Extraction("digits-cnn")
    other_weights.label = "digits-cnn@00000000"
    for dataset, split, with_ in (
        (digits, "train", extractor),
        (digits, "held-out", extractor),
        (replace(digits, fingerprint="0" * 12), "train", extractor),
        (digits, "train", other_weights),
    ):
        reference_of(dataset, split, DATA, with_, shared)
    assert len(list((tmp_path / "_references").glob("[!.]*"))) == 4


def test_transform_is_part_of_the_key() -> None:
    folder = {"name": "folder", "classes": 2, "fingerprint": "0" * 12}
    one, other = (Data.model_validate({**folder, "resolution": size}) for size in (16, 32))
    assert references._transform(one) != references._transform(other)


@pytest.mark.parametrize("damage", ["cut", "flipped", "replaced"])
def test_a_damaged_one_is_made_anew(
    damage: str, digits: LoadedData, extractor: Extraction, extractions: list[int], tmp_path: Path
) -> None:
    shared = Shared(tmp_path)
    before = reference_of(digits, "held-out", DATA, extractor, shared)
    (file,) = tmp_path.rglob("reference.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "cut":
        content = content[:-100]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        reference_of(digits, "train", DATA, extractor, shared)
        (other,) = {*tmp_path.rglob("reference.safetensors")} - {file}
        content = bytearray(other.read_bytes())
    file.write_bytes(content)
    count = sum(extractions)
    after = reference_of(digits, "held-out", DATA, extractor, shared)
    assert sum(extractions) == count + 297
    assert np.array_equal(after.sigma, before.sigma)


def test_floors_are_kept(
    digits: LoadedData, extractor: Extraction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_of(digits, "train", DATA, extractor, Shared(tmp_path))
    floor = reference.floor(300)
    assert floor is not None
    assert reference.floor(600) < floor  # type: ignore[operator]
    assert reference.floor(751) is None
    assert reference.floor(1) is None
    monkeypatch.setattr(references, "_moments", lambda _: pytest.fail("it was measured again"))
    assert reference_of(digits, "train", DATA, extractor, Shared(tmp_path)).floor(300) == floor


def test_of_many_images_some_features_are_kept(
    digits: LoadedData, extractor: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statistics are of all, the floor is the same, and what is held does not grow with the data."""
    whole = reference_of(digits, "train", DATA, extractor)
    monkeypatch.setattr(references, "_KEPT_VALUES", 1000 * 64)
    monkeypatch.setattr(references, "NEIGHBOUR_IMAGES", 200)
    monkeypatch.setattr(features, "PART", 97)
    some = reference_of(digits, "train", DATA, extractor)
    assert not some.complete
    np.testing.assert_allclose(some.sigma, whole.sigma, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(some.features.numpy(), whole.features[::7][:200].numpy(), atol=1e-4)
    assert len(some.neighbours) == 200
    monkeypatch.setattr(references, "_FLOOR_DRAWS", 1)
    assert some.floor(100) == pytest.approx(whole.floor(100), rel=1e-4)


def test_at_least_two_real_images(digits: LoadedData, extractor: Extraction) -> None:
    one = Images(digits.train.array()[:1], digits.train.labels[:1])
    with pytest.raises(InputError, match="digits/train: a reference needs at least two images, there are 1"):
        reference_of(replace(digits, train=one), "train", DATA, extractor)


def _hold(folder: Path, ready: Any, go: Any) -> None:
    with exclusive(folder, "a test"):
        ready.set()
        go.wait(30)
        (folder / "made").write_text("by the other")


def test_others_wait_for_the_one_that_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, go))
    process.start()
    assert ready.wait(30)
    file = tmp_path / "made"
    waits: list[str] = []

    def report(value: Report) -> None:
        waits.append(value["waits"])
        go.set()

    found = once(
        tmp_path,
        "a test",
        lambda _: file.read_text() if file.exists() else None,
        lambda: pytest.fail("twice"),
        lambda *_: None,
        Watch(report),
    )
    process.join()
    assert found == "by the other"
    assert re.fullmatch(r"waits for another cell: a test, process \d+ on \S+", waits[0])


def test_an_unwritable_place_is_one_line(digits: LoadedData, extractor: Extraction, tmp_path: Path) -> None:
    (tmp_path / "_references").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        reference_of(digits, "train", DATA, extractor, Shared(tmp_path))


def test_one_of_an_older_version_that_is_not_finite_is_made_anew(
    digits: LoadedData, extractor: Extraction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Shared(tmp_path)
    first = reference_of(digits, "held-out", DATA, extractor, shared)
    assert first.folder is not None
    file = first.folder / "reference.safetensors"
    tensors, meta = checkpoint.load(file)
    tensors["pool_total"][3] = np.nan
    with monkeypatch.context() as older:
        older.setattr(checkpoint, "require_finite", lambda _: None)
        checkpoint.save(file, tensors, meta)
    again = reference_of(digits, "held-out", DATA, extractor, shared)
    assert np.array_equal(again.mu, first.mu)


def test_a_reference_says_which_images_have_odd_features(
    digits: LoadedData, extractor: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(extractor.__dict__, "_network", lambda x: torch.full((len(x), 2), torch.inf))
    with pytest.raises(NonFiniteError, match=r"digits, held-out images: images 0 to 296: digits-cnn@.*297 of 297 im"):
        reference_of(digits, "held-out", DATA, extractor)
