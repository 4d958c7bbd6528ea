"""A share of the images: the same share of every class, always the same ones, and cells of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from harness.data import sources
from harness.data.dataset import Source
from harness.data.images import scan
from harness.data.subset import take
from harness.data.trees import find_tree
from harness.errors import InputError
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.model import DiTSpec


def test_every_class_keeps_its_share_and_a_larger_subset_holds_the_smaller() -> None:
    whole = sources.load(Data())
    small, large = (sources.load(Data(subset=share)) for share in (0.1, 0.5))
    counts = np.bincount(whole.train.labels)
    assert np.bincount(small.train.labels).tolist() == np.floor(0.1 * counts + 0.5).astype(int).tolist()
    assert len(small.train.images) == len(small.train.labels) == 151
    rows = {image.tobytes() for image in large.train.array()}
    assert all(image.tobytes() in rows for image in small.train.array())
    again = sources.load(Data(subset=0.1))
    assert again.train.array().tobytes() == small.train.array().tobytes()
    assert small.heldout.array().tobytes() == whole.heldout.array().tobytes()


def test_only_what_differs_has_another_fingerprint() -> None:
    whole, small, large = (sources.load(Data(subset=share)) for share in (None, 0.1, 0.5))
    assert len({data.split_fingerprint("train") for data in (whole, small, large)}) == 3
    assert {data.split_fingerprint("held-out") for data in (whole, small, large)} == {whole.fingerprint}


def test_files_stay_files(tmp_path: Path) -> None:
    for name, grey in (("a", 40), ("b", 200)):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("RGB", (8, 8), (grey, i, 0)).save(tmp_path / name / f"{i:02d}.png")
    found = scan(find_tree(tmp_path)).fingerprint
    data = Data(name="folder", resolution=8, classes=2, fingerprint=found, subset=0.25)
    loaded = sources.load(data, Source(tmp_path))
    assert loaded.train.images.shape == (10, 8, 8, 3)  # of 18 a class, a quarter, rounded
    assert np.bincount(loaded.train.labels).tolist() == [5, 5]
    assert not isinstance(loaded.train.images, np.ndarray)
    assert sorted({*loaded.train.images[np.arange(3, 7)][:, 0, 0, 0].tolist()}) == [40, 200]


def test_a_class_without_an_image_and_too_few_for_a_batch() -> None:
    with pytest.raises(InputError, match=r"data.subset: 0.003 of digits leaves 10 of its classes without an image"):
        sources.load(Data(subset=0.003))
    least = np.bincount(sources.load(Data()).train.labels).min()
    assert len(take(sources.load(Data()), 0.5 / least + 1e-6).train.labels) == 10
    sources.check_subset(Data(subset=0.1), sources.ANYWHERE, 151)
    with pytest.raises(InputError, match=r"0.1 of digits is 151 images, fewer than training.batch_size 152"):
        sources.check_subset(Data(subset=0.1), sources.ANYWHERE, 152)
    for share in (0, 1, 1.5):
        with pytest.raises(ValidationError, match="subset"):
            Data(subset=share)


def test_it_is_in_the_id_and_its_absence_is_not() -> None:
    model = DiTSpec(depth=2, width=32, patch_size=4)
    assert Cell(model=model, data=Data(subset=None)).id == Cell(model=model).id
    assert len({Cell(model=model, data=Data(subset=share)).id for share in (None, 0.1, 0.2)}) == 3
    assert Data(name="imagenet", resolution=256, subset=0.1).images == 128_117 + 50_000
