"""Real images: where they come from, how they are split, and which numbers the model sees. Imports no torch.

digits: the 8x8 handwritten digits that ship with scikit-learn (Alpaydin & Kaynak 1998, UCI "Optical Recognition of
Handwritten Digits", its test part). fashion-mnist: Xiao, Rasul & Vollgraf 2017, IDX files, zero-padded to 32x32.
imagenet, folder: see `harness.data.images`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from harness.data import images as folders
from harness.data.dataset import Dataset, Images, fingerprint_of, require_package
from harness.data.digits import digits
from harness.data.fashion_mnist import (
    _FASHION_FILES,
    _open,
    _present,
    _read_shape,
    download_fashion,
    find_fashion,
    load_fashion,
)
from harness.errors import InputError
from harness.spec.data import Data

#: What the data must hash to, wherever it came from: MNIST's files, for one, carry the same names as Fashion-MNIST's.
FINGERPRINTS: dict[str, str] = {"digits": "634488df5c7b", "fashion-mnist": "7fec39a87114"}


def load(
    data: Data,
    folder: Path | None = None,
    download: bool = False,
    cache: Path | None = None,
    progress: folders.Progress | None = None,
) -> Dataset:
    """Read a data set. The split and the order of the images are the same whatever the source.

    Args:
        data: names the data set.
        folder: folder with the files, the only place searched when given (digits ship with scikit-learn).
        download: let torchvision download what is missing into `folder` (fashion-mnist only).
        cache: folder in which the check of an image folder is kept (imagenet, folder), so that it is done once.
        progress: told how many files of an image folder are checked.

    Raises:
        InputError: the data is missing, a file is damaged, or the content is not that of the named data set.
    """
    if data.name in ("imagenet", "folder"):
        return _image_folder(data, folder, cache, progress)
    if data.name == "digits":
        train, heldout = digits()
    else:
        source = find_fashion(folder, download)
        if source is None:
            assert folder is not None  # find_fashion raises without one
            source = download_fashion(folder)
        train, heldout = load_fashion(source)
    found, expected = fingerprint_of(train, heldout), FINGERPRINTS[data.name]
    if found != expected:
        hint = "; MNIST's files carry the same names" if data.name == "fashion-mnist" else ""
        raise InputError(f"data.name {data.name}: this is other data (fingerprint {found}, expected {expected}){hint}")
    return Dataset(data.name, train, heldout, found)


def check_available(data: Data, folder: Path | None = None, download: bool = False) -> None:
    """Check that `load` will find the data, from names and file headers alone.

    Raises:
        InputError: with one line that says how to get the data.
    """
    if data.name in ("imagenet", "folder"):
        folders.find_tree(folder, data)
        return
    if data.name == "digits":
        require_package("sklearn", "scikit-learn", "data.name digits")
        return
    source = find_fashion(folder, download)
    if source is None:
        require_package("torchvision", "torchvision", "resources.data_download")
        return
    for name in _FASHION_FILES:
        with _open(_present(source, name)) as stream:
            _read_shape(stream)


def _image_folder(data: Data, folder: Path | None, cache: Path | None, progress: folders.Progress | None) -> Dataset:
    tree = folders.find_tree(folder, data)
    found = folders.scan(tree, cache, progress)
    if data.fingerprint is not None and found.fingerprint != data.fingerprint:
        raise InputError(
            f"{tree.root}: this is other data (fingerprint {found.fingerprint}, data.fingerprint is {data.fingerprint})"
        )
    if line := folders.warning(tree, found):
        print(f"warning: {line}", file=sys.stderr, flush=True)
    out = set(found.unreadable)
    size = data.image_shape.size

    def split(files: tuple[tuple[str, int], ...]) -> Images:
        kept = [(path, label) for path, label in files if path not in out]
        images = folders.ImageFiles(tree.root, [path for path, _ in kept], size)
        return Images(images, np.array([label for _, label in kept], dtype=np.int64))

    return Dataset(data.name, split(tree.train), split(tree.heldout), found.fingerprint)
