"""A data set from a user's own file, used like a built-in one."""

import pytest

from harness.data.sources import check_available, load
from harness.errors import InputError
from harness.spec.data import DATA_SETS, Data, InputShape
from harness.spec.extension import Extension
from tests.conftest import forget_users_files

STRIPES = """
import numpy as np
from harness.data.dataset import DataSet, Images, LoadedData, Source
from harness.spec.data import Data, InputShape

class Stripes(DataSet):
    shape = InputShape(channels=1, size=8, classes=2)
    extractor = "digits-cnn"

    def load(self, data: Data, source: Source) -> LoadedData:
        labels = np.arange(40) % 2
        images = np.random.default_rng(0).integers(0, 99, (40, 8, 8, 1), dtype=np.uint8)
        images[labels == 0, ::2] += 100
        images[labels == 1, :, ::2] += 100
        return self.loaded(data, Images(images[:30], labels[:30]), Images(images[30:], labels[30:]))

DATA_SETS = {"stripes": Stripes()}
"""


@pytest.fixture(autouse=True)
def stripes(users_files: None) -> None:
    Extension("stripes.py", STRIPES).load()


def test_it_is_loaded_as_a_built_in_one() -> None:
    data = Data(name="stripes")
    check_available(data)
    dataset = load(data)
    assert data.shape == InputShape(1, 8, 2)
    assert (dataset.name, len(dataset.train.labels), len(dataset.heldout.labels)) == ("stripes", 30, 10)
    assert dataset.fingerprint == load(data).fingerprint
    with pytest.raises(ValueError, match="resolution is fixed for name stripes; leave it out"):
        Data(name="stripes", resolution=16)


def test_other_content_or_shape_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(DATA_SETS.load("stripes")), "fingerprint", "0" * 12)
    with pytest.raises(InputError, match=r"stripes: this is other data \(fingerprint \w{12}, expected 0{12}\)$"):
        load(Data(name="stripes"))
    monkeypatch.setattr(type(DATA_SETS.load("stripes")), "shape", InputShape(1, 16, 2))
    with pytest.raises(InputError, match=r"stripes: images of shape \(8, 8, 1\), expected \(16, 16, 1\)$"):
        load(Data(name="stripes"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "images[labels == 0",
            "images = images / 255; images[labels == 0",
            "images must be uint8 levels 0..255, got float64",
        ),
        (
            "images[labels == 0",
            "labels[3] = 2; images[labels == 0",
            "labels must be whole numbers from 0 to 1, one an image",
        ),
        ("images[labels == 0", "labels = labels * 1.0; images[labels == 0", "labels must be whole numbers"),
        ("labels[:30]", "labels[:29]", "labels must be whole numbers from 0 to 1, one an image"),
        (
            "images[labels == 0",
            "labels[:30] = 0; images[labels == 0",
            "1 of 2 classes have no image to learn from, .* 1",
        ),
    ],
)
def test_what_no_model_could_learn_is_refused(users_files: None, old: str, new: str, message: str) -> None:
    forget_users_files()
    Extension("stripes.py", STRIPES.replace(old, new, 1)).load()
    with pytest.raises(InputError, match=message):
        load(Data(name="stripes"))
