"""Real images: where they come from, how they are split, and which numbers the model sees. Imports no torch.

digits: the 8x8 handwritten digits that ship with scikit-learn (Alpaydin & Kaynak 1998, UCI "Optical Recognition of
Handwritten Digits", its test part). fashion-mnist: Xiao, Rasul & Vollgraf 2017, IDX files, zero-padded to 32x32.
imagenet, folder: see `harness.data.images`.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import math
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from harness.cell import INPUT_SHAPES, Data
from harness.data import images as folders
from harness.errors import InputError

#: Where Debian's package dataset-fashion-mnist installs its files.
DEBIAN_FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")

#: What the data must hash to, wherever it came from: MNIST's files, for one, carry the same names as Fashion-MNIST's.
FINGERPRINTS: dict[str, str] = {"digits": "634488df5c7b", "fashion-mnist": "7fec39a87114"}

_Level = TypeVar("_Level", np.uint8, np.float32)

_DIGITS_TRAIN = 1500
_DIGITS_SPLIT_SEED = 0

_FASHION_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_FASHION_SIDE = 28

_IDX_UINT8 = 0x08
_IDX_LARGEST = 2**30  # bytes; a damaged header must not ask for more memory than there is


class ImageArray(Protocol):
    """What is used of a uint8 array (N, H, W, C): so files that are decoded when asked for can stand in for it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, index: Any, /) -> Any:
        """One image for a number, several for an array of numbers; for a slice, again an `ImageArray`."""


@dataclass(frozen=True)
class Images:
    """Images as stored.

    Attributes:
        images: uint8 (N, H, W, C), levels 0..255; an array, or files decoded when they are asked for.
        labels: int64 (N,), class of each image.
    """

    images: ImageArray
    labels: NDArray[np.int64]

    def array(self) -> NDArray[np.uint8]:
        """All images at once, in memory."""
        return np.asarray(self.images[np.arange(len(self.images))], dtype=np.uint8)


@dataclass(frozen=True)
class Dataset:
    """A data set with its fixed split.

    Attributes:
        name: as in `Data.name`.
        train: what the model may learn from.
        heldout: what it never sees.
        fingerprint: first 12 hex digits of sha256 over shapes and content of both splits.
    """

    name: str
    train: Images
    heldout: Images
    fingerprint: str


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
        train, heldout = _digits()
    else:
        source = _find_fashion(folder, download)
        if source is None:
            assert folder is not None  # _find_fashion raises without one
            source = _download_fashion(folder)
        train, heldout = _fashion(source)
    found, expected = _fingerprint(train, heldout), FINGERPRINTS[data.name]
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
        _require_package("sklearn", "scikit-learn", "data.name digits")
        return
    source = _find_fashion(folder, download)
    if source is None:
        _require_package("torchvision", "torchvision", "resources.data_download")
        return
    for name in _FASHION_FILES:
        with _open(_present(source, name)) as stream:
            _read_shape(stream)


def to_model_range(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map levels 0..255 to float32 in [-1, 1] (x / 127.5 - 1), any shape.

    Raises:
        TypeError: `images` is not uint8, so its range is unknown.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images must be uint8, got {images.dtype}")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def channels_first(images: NDArray[_Level]) -> NDArray[_Level]:
    """(N, H, W, C) -> (N, C, H, W), contiguous."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _fingerprint(*splits: Images) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(split.images.shape).encode())
        digest.update(split.array().tobytes())
        digest.update(split.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:12]


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


def _require_package(module: str, package: str, key: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{key} needs the package {package}: pip install {package}")


def _digits() -> tuple[Images, Images]:
    _require_package("sklearn", "scikit-learn", "data.name digits")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 17 levels, 0..16; np.rint so that no level depends on truncation.
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    # The legacy generator: its stream is guaranteed never to change between numpy releases.
    order = np.random.RandomState(_DIGITS_SPLIT_SEED).permutation(len(images))
    train, heldout = order[:_DIGITS_TRAIN], order[_DIGITS_TRAIN:]
    return Images(images[train], labels[train]), Images(images[heldout], labels[heldout])


def _find_fashion(folder: Path | None, download: bool) -> Path | None:
    """Folder that holds all four files; None when they are to be downloaded into `folder`."""
    if folder is not None and folder.exists() and not folder.is_dir():
        raise InputError(f"resources.data_folder: {folder} is not a folder")
    # torchvision keeps its downloads in FashionMNIST/raw below the folder it is given.
    # A folder the user names is the only place to look: other data must not slip in when its name is misspelt.
    candidates = [DEBIAN_FASHION_FOLDER] if folder is None else [folder, folder / "FashionMNIST" / "raw"]
    for candidate in candidates:
        missing = [name for name in _FASHION_FILES if _idx_file(candidate, name) is None]
        if not missing:
            return candidate
        if len(missing) < len(_FASHION_FILES) and not download:
            raise InputError(f"data.name fashion-mnist: {candidate / missing[0]}[.gz] is missing")
    if download and folder is not None:
        return None
    raise InputError(
        f"data.name fashion-mnist: no files in {candidates[0]}; set resources.data_folder to a folder with "
        f"{', '.join(_FASHION_FILES)} (.gz or not), or run `apt-get install dataset-fashion-mnist`, or set "
        "resources.data_folder and resources.data_download = true to download them with torchvision"
    )


def _download_fashion(folder: Path) -> Path:
    _require_package("torchvision", "torchvision", "resources.data_download")
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"data.name fashion-mnist: the download into {folder} failed: {reason}") from error
    return folder / "FashionMNIST" / "raw"


def _fashion(folder: Path) -> tuple[Images, Images]:
    train_images, train_labels, test_images, test_labels = (_present(folder, name) for name in _FASHION_FILES)
    return _fashion_split(train_images, train_labels), _fashion_split(test_images, test_labels)


def _fashion_split(images_file: Path, labels_file: Path) -> Images:
    images, labels = _read_idx(images_file), _read_idx(labels_file)
    if images.shape[1:] != (_FASHION_SIDE, _FASHION_SIDE):
        raise InputError(f"{images_file}: images of shape {images.shape[1:]}, expected (28, 28)")
    if len(labels) != len(images):
        raise InputError(f"{labels_file}: {len(labels)} labels for {len(images)} images")
    shape = INPUT_SHAPES["fashion-mnist"]
    if labels.size and labels.max() >= shape.classes:
        raise InputError(f"{labels_file}: label {labels.max()}, allowed: 0 to {shape.classes - 1}")
    border = (shape.size - _FASHION_SIDE) // 2
    padded = np.pad(images, ((0, 0), (border, border), (border, border)))
    return Images(padded[..., None], labels.astype(np.int64))


def _idx_file(folder: Path, name: str) -> Path | None:
    """Return the file, raw or gzipped, or None."""
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _present(folder: Path, name: str) -> Path:
    file = _idx_file(folder, name)
    if file is None:
        raise InputError(f"data.name fashion-mnist: {folder / name}[.gz] is missing")
    return file


@contextmanager
def _open(file: Path) -> Iterator[BinaryIO]:
    """Open an IDX file, gzipped or not; what goes wrong while reading it becomes one line that names the file."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except (OSError, EOFError, zlib.error, _DamagedError) as error:  # OSError includes gzip.BadGzipFile
        raise InputError(f"{file}: {error}; get the file again") from error


class _DamagedError(Exception):
    """What is wrong with an IDX file, without its name."""


def _read_shape(stream: BinaryIO) -> tuple[int, ...]:
    """Shape of an array of bytes in the IDX format: two zero bytes, the type, the number of axes, big-endian sizes."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:3] != bytes([0, 0, _IDX_UINT8]) or magic[3] not in (1, 3):
        raise _DamagedError(f"no IDX file of bytes (it starts with {magic.hex() or 'nothing'})")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise _DamagedError("cut off in its header")
    return tuple(int(size) for size in np.frombuffer(sizes, ">u4"))


def _read_idx(file: Path) -> NDArray[np.uint8]:
    with _open(file) as stream:
        shape = _read_shape(stream)
        expected = math.prod(shape)
        if expected > _IDX_LARGEST:
            raise _DamagedError(f"its header says {expected} bytes of content")
        content = stream.read(expected + 1)  # one more than it should hold, to notice what is too long
        if len(content) != expected:
            found = "more" if len(content) > expected else str(len(content))
            raise _DamagedError(f"its header says {expected} bytes of content, it holds {found}")
    return np.frombuffer(content, np.uint8).reshape(shape)
