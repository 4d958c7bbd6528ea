"""The 8x8 handwritten digits that ship with scikit-learn. Imports no torch.

Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", its test part.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from harness.data.dataset import DataSet, Images, LoadedData, Source, require_package
from harness.spec.data import Data

_TRAIN = 1500

_SPLIT_SEED = 0


def _file() -> Path:
    """What scikit-learn's `load_digits` reads. To import scikit-learn takes longer than a small cell's training."""
    found = find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"


class Digits(DataSet):
    """1,500 images to learn from, 297 held out."""

    fingerprint = "634488df5c7b"

    def check(self, data: Data, source: Source) -> None:
        """See `DataSet`."""
        require_package("sklearn", "scikit-learn", f"data.name {data.name}")

    def load(self, data: Data, source: Source) -> LoadedData:
        """See `DataSet`."""
        self.check(data, source)
        table = np.loadtxt(_file(), delimiter=",")  # (1797, 65): 64 values of 17 levels, 0..16, and the digit
        # np.rint, so that truncation changes no level
        images = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = table[:, -1].astype(np.int64)
        # The legacy generator: its stream is guaranteed never to change between numpy releases.
        order = np.random.RandomState(_SPLIT_SEED).permutation(len(images))
        train, heldout = order[:_TRAIN], order[_TRAIN:]
        return self.loaded(data, Images(images[train], labels[train]), Images(images[heldout], labels[heldout]))


DIGITS = Digits()
