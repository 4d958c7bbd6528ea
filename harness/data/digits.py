"""The 8x8 handwritten digits that ship with scikit-learn.

Alpaydin & Kaynak 1998, UCI "Optical Recognition of Handwritten Digits", its test part. Imports no torch.
"""

from __future__ import annotations

import numpy as np

from harness.data.dataset import Images, require_package

_DIGITS_TRAIN = 1500

_DIGITS_SPLIT_SEED = 0


def digits() -> tuple[Images, Images]:
    """Both splits: 1,500 images to learn from, 297 held out."""
    require_package("sklearn", "scikit-learn", "data.name digits")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 17 levels, 0..16; np.rint so that no level depends on truncation.
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    # The legacy generator: its stream is guaranteed never to change between numpy releases.
    order = np.random.RandomState(_DIGITS_SPLIT_SEED).permutation(len(images))
    train, heldout = order[:_DIGITS_TRAIN], order[_DIGITS_TRAIN:]
    return Images(images[train], labels[train]), Images(images[heldout], labels[heldout])
