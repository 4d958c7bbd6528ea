"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017): IDX files, zero-padded to 32x32. Imports no torch."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import DataSet, Images, LoadedData, Source, require_package
from harness.errors import InputError, first_line
from harness.spec.data import DATA_SETS, Data

#: Where Debian's package dataset-fashion-mnist installs its files.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

_SIDE = 28

_IDX_UINT8 = 0x08

_IDX_LARGEST = 2**30  # bytes; a damaged header must not allocate more memory than there is


class FashionMnist(DataSet):
    """60,000 images to learn from, 10,000 held out."""

    fingerprint = "7fec39a87114"

    def check(self, data: Data, source: Source) -> None:
        """See `DataSet`."""
        found = _find(source)
        if found is None:
            require_package("torchvision", "torchvision", "resources.data_download")
            return
        for name in _FILES:
            with _open(_present(found, name)) as stream:
                _read_shape(stream)

    def load(self, data: Data, source: Source) -> LoadedData:
        """See `DataSet`."""
        return self.loaded(
            data, *read_files(_find(source) or _download(source)), "; MNIST's files carry the same names"
        )


FASHION_MNIST = FashionMnist()


def _find(source: Source) -> Path | None:
    """Folder that holds all four files; None when they must first be downloaded into `source.folder`.

    Raises:
        InputError: files are missing, and no download is allowed.
    """
    folder = source.folder
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"resources.data_folder: {folder} is not a folder")
    # torchvision keeps its downloads in FashionMNIST/raw below the folder it is given.
    # If the user names a folder, only that one is searched: a misspelt name must not load other data.
    candidates = [DEBIAN_FOLDER] if folder is None else [folder, folder / "FashionMNIST" / "raw"]
    for candidate in candidates:
        missing = [name for name in _FILES if _idx_file(candidate, name) is None]
        if not missing:
            return candidate
        if len(missing) < len(_FILES) and not source.download:
            raise InputError(f"data.name fashion-mnist: {candidate / missing[0]}[.gz] is missing")
    if source.download and folder is not None:
        return None
    raise InputError(
        f"data.name fashion-mnist: no files in {candidates[0]}; set resources.data_folder to a folder with "
        f"{', '.join(_FILES)} (.gz or not), or run `apt-get install dataset-fashion-mnist`, or set "
        "resources.data_folder and resources.data_download = true to download them with torchvision"
    )


def _download(source: Source) -> Path:
    """Let torchvision download the files; returns the folder that then holds them."""
    require_package("torchvision", "torchvision", "resources.data_download")
    from torchvision.datasets import FashionMNIST

    assert source.folder is not None  # _find raises without one
    try:
        FashionMNIST(str(source.folder), download=True)
    except (OSError, RuntimeError) as error:
        failed = f"data.name fashion-mnist: the download into {source.folder} failed: {first_line(error)}"
        raise InputError(failed) from error
    return source.folder / "FashionMNIST" / "raw"


def read_files(folder: Path) -> tuple[Images, Images]:
    """Both splits from the files in this folder."""
    train_images, train_labels, test_images, test_labels = (_present(folder, name) for name in _FILES)
    return _split(train_images, train_labels), _split(test_images, test_labels)


def _split(images_file: Path, labels_file: Path) -> Images:
    images, labels = _read_idx(images_file), _read_idx(labels_file)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise InputError(f"{images_file}: images of shape {images.shape[1:]}, expected (28, 28)")
    if len(labels) != len(images):
        raise InputError(f"{labels_file}: {len(labels)} labels for {len(images)} images")
    shape = DATA_SETS.facts("fashion-mnist").shape
    if labels.size and labels.max() >= shape.classes:
        raise InputError(f"{labels_file}: label {labels.max()}, allowed: 0 to {shape.classes - 1}")
    border = (shape.size - _SIDE) // 2
    padded = np.pad(images, ((0, 0), (border, border), (border, border)))
    return Images(padded[..., None], labels.astype(np.int64))


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file, raw or gzipped; None when it is not there."""
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _present(folder: Path, name: str) -> Path:
    file = _idx_file(folder, name)
    if file is None:
        raise InputError(f"data.name fashion-mnist: {folder / name}[.gz] is missing")
    return file


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    """Open an IDX file, gzipped or not.

    Raises:
        InputError: the file cannot be read, or the block under `with` raises a ValueError; one line names the file.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # OSError includes gzip.BadGzipFile
        raise InputError(f"{file}: {error}; get the file again") from error


def _read_shape(stream: BinaryIO) -> tuple[int, ...]:
    """Shape of an array of bytes in the IDX format: two zero bytes, the type, the number of axes, big-endian sizes."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:3] != bytes([0, 0, _IDX_UINT8]) or magic[3] not in (1, 3):
        raise ValueError(f"no IDX file of bytes (it starts with {magic.hex() or 'nothing'})")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError("cut off in its header")
    return tuple(int(size) for size in np.frombuffer(sizes, ">u4"))


def _read_idx(file: Path) -> NDArray[np.uint8]:
    with _open(file) as stream:
        shape = _read_shape(stream)
        expected = math.prod(shape)
        if expected > _IDX_LARGEST:
            raise ValueError(f"its header says {expected} bytes of content")
        content = stream.read(expected + 1)  # one byte more, to notice a file that is too long
        if len(content) != expected:
            found = "more" if len(content) > expected else str(len(content))
            raise ValueError(f"its header says {expected} bytes of content, it holds {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)
