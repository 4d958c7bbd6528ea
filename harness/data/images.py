"""Folders of images, one subfolder per class: ImageNet's train/val layout, or the user's own tree. Imports no torch.

Images are decoded on demand and cropped as Dhariwal & Nichol 2021 do for ImageNet (the ADM crop). A folder is read once
to hash every byte and to find files that are not images. The result is kept beside the studies until the size or time
of a file changes.

    python -m harness.data.images FOLDER     prints the number of classes and the fingerprint for a sweep file
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import DataSet, Images, LoadedData, Progress, Source
from harness.errors import InputError
from harness.files import at_home, read_json, write_json
from harness.spec.data import Data
from harness.spec.identity import ID_DIGITS

_LOG = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")

#: A folder with more unreadable files than this, or than this share of all, is refused.
UNREADABLE_FILES, UNREADABLE_SHARE = 10, 0.001

#: How many unreadable files a message names.
_NAMED = 5

#: In a tree without train/ and val/, one of this many images in every class is held out.
_HELDOUT_OF = 10

#: Files checked between two reports.
_CHUNK = 200


@dataclass(frozen=True)
class Tree:
    """The files of a folder of images, before any of them is opened.

    Attributes:
        root: the folder.
        classes: names of the classes, sorted; a label is the index of a name.
        train: (path below root, label) of every training file, sorted by class and name.
        heldout: the same for the held-out files.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    heldout: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Scan:
    """The result of reading every file.

    Attributes:
        fingerprint: first 12 hex digits of sha256 over splits, names, classes and content.
        unreadable: paths, below the root, of the files that are not images; loading leaves them out.
    """

    fingerprint: str
    unreadable: tuple[str, ...]


class ImageFiles:
    """Image files, decoded when they are indexed; an `ImageArray` (N, S, S, 3)."""

    def __init__(self, root: Path, paths: Sequence[str], size: int) -> None:
        self.root, self.paths, self.size = root, paths, size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, S, S, 3)."""
        return len(self.paths), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any, /) -> Any:
        """Images (n, S, S, 3) for an array of n indices."""
        chosen = [read_image(self.root / self.paths[i], self.size) for i in index]
        return np.stack(chosen) if chosen else np.zeros((0, *self.shape[1:]), np.uint8)


def read_image(path: Path, size: int) -> NDArray[np.uint8]:
    """Decode a file to RGB and crop it: uint8 (size, size, 3).

    Raises:
        InputError: Pillow cannot read the file as an image.
    """
    try:
        with Image.open(path) as image:
            return centre_crop(image.convert("RGB"), size)
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged files
        raise InputError(f"{path}: no readable image ({error})") from None


def centre_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The ADM crop of an RGB image: uint8 (size, size, 3).

    A box filter halves the image while its short side is at least twice `size`. A bicubic filter then brings the short
    side to `size` (a smaller image is enlarged). Last, the middle square is cut out; of an odd border, the extra pixel
    is at the far end.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.uint8)


class ImageFolder(DataSet):
    """Base of the data sets that are folders of images."""

    def __init__(self, *, own_split: bool) -> None:
        """`own_split`: also take a folder without train/ and val/, and hold out a tenth of every class."""
        self._own_split = own_split

    def check(self, data: Data, source: Source) -> None:
        """See `DataSet`."""
        self._tree(data, source)

    def check_content(self, data: Data, source: Source) -> None:
        """See `DataSet`: every file is read."""
        self.load(data, source)

    def load(self, data: Data, source: Source) -> LoadedData:
        """See `DataSet`; the fingerprint is that of the files, not of their pixels."""
        tree = self._tree(data, source)
        found = scan(tree, source.cache, source.progress)
        if data.fingerprint is not None and found.fingerprint != data.fingerprint:
            raise InputError(
                f"{tree.root}: this is other data (fingerprint {found.fingerprint}, "
                f"data.fingerprint is {data.fingerprint})"
            )
        if line := warning(tree, found):
            _LOG.warning(line)
        out = set(found.unreadable)

        def split(files: tuple[tuple[str, int], ...]) -> Images:
            kept = [(path, label) for path, label in files if path not in out]
            images = ImageFiles(tree.root, [path for path, _ in kept], data.image_shape.size)
            return Images(images, np.array([label for _, label in kept], dtype=np.int64))

        return LoadedData(data.name, split(tree.train), split(tree.heldout), found.fingerprint)

    def _tree(self, data: Data, source: Source) -> Tree:
        key = f"data.name {data.name}"
        tree = find_tree(source.folder, key, own_split=self._own_split)
        if len(tree.classes) != (expected := data.image_shape.classes):
            raise InputError(f"{tree.root}: {len(tree.classes)} classes (subfolders), but {key} says {expected}")
        return tree


def find_tree(folder: Path | None, key: str = "FOLDER", *, own_split: bool = True) -> Tree:
    """List a folder of images: train/ and val/ (ImageNet's layout), or one subfolder a class.

    Without train/ and val/ a tenth of every class is held out, chosen by the hash of the path.

    Args:
        folder: where the images are (`resources.data_folder`).
        key: what needs the folder, for messages.
        own_split: False: train/ and val/ must be there.

    Raises:
        InputError: no such folder, no classes, no images, or classes that differ between train and val.
    """
    if folder is None:
        raise InputError(f"{key}: set resources.data_folder (or --data-folder) to the folder with the images")
    if not folder.is_dir():
        raise InputError(f"resources.data_folder: {folder} is not a folder")
    if (folder / "train").is_dir():
        if not (folder / "val").is_dir():
            raise InputError(f"{folder}: has train/ and no val/; the held-out images belong there, sorted as in train/")
        classes = _classes(folder / "train")
        if odd := sorted({*classes} ^ {*_classes(folder / "val")}):
            raise InputError(
                f"{folder}: train/ and val/ have different classes ({len(odd)} differ, for example {odd[0]}); sort the "
                "images of val/ into one subfolder a class, named as in train/"
            )
        train = _files(folder, "train/", classes)
        heldout = _files(folder, "val/", classes)
    elif not own_split:
        raise InputError(f"{folder}: has no train/ and val/, as ImageNet's layout has, one subfolder a class in each")
    else:
        classes = _classes(folder)
        train, heldout = _hold_out(_files(folder, "", classes), len(classes))
    for split, files in (("training", train), ("held-out", heldout)):
        if not files:
            raise InputError(f"{folder}: no {split} images; allowed: {', '.join(SUFFIXES)}")
    return Tree(folder, classes, tuple(train), tuple(heldout))


def _classes(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise InputError(f"{folder}: no classes; it should hold one subfolder a class, with the images inside")
    return tuple(classes)


def _files(root: Path, prefix: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        with os.scandir(root / prefix / name) as entries:
            images = sorted(e.name for e in entries if e.is_file() and e.name.lower().endswith(SUFFIXES))
        found += [(f"{prefix}{name}/{image}", label) for image in images if not image.startswith(".")]
    return found


def _hold_out(files: list[tuple[str, int]], classes: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    chosen: set[str] = set()
    for label in range(classes):
        paths = sorted((p for p, c in files if c == label), key=lambda p: hashlib.sha256(p.encode()).digest())
        chosen.update(paths[: max(len(paths) // _HELDOUT_OF, 1)] if len(paths) > 1 else [])
    return [f for f in files if f[0] not in chosen], [f for f in files if f[0] in chosen]


def scan(tree: Tree, cache: Path | None = None, progress: Progress | None = None) -> Scan:
    """Read and decode every file, or take the result from the folder `cache`, where an earlier scan kept it.

    Raises:
        InputError: too many files are no images; the first few are named.
    """
    files = [*tree.train, *tree.heldout]
    record = None if cache is None else cache / f"{_listing(tree, files)}.json"
    known = None if record is None else read_json(record)
    if known is None:
        known = _scan(tree, files, progress)
        if record is not None:
            write_json(record, {"folder": str(tree.root.resolve()), **known})
    unreadable = tuple(known["unreadable"])
    if len(unreadable) > max(UNREADABLE_FILES, UNREADABLE_SHARE * len(files)) or len(unreadable) == len(files):
        raise InputError(f"{tree.root}: {_unreadable(unreadable, len(files))}; replace or remove them")
    return Scan(known["fingerprint"], unreadable)


def warning(tree: Tree, found: Scan) -> str | None:
    """One line that names the files left out; None if every file can be read."""
    total = len(tree.train) + len(tree.heldout)
    return f"{tree.root}: {_unreadable(found.unreadable, total)}; left out" if found.unreadable else None


def _unreadable(paths: tuple[str, ...], total: int) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return f"{len(paths)} of {total} files are no readable images: {', '.join(paths[:_NAMED])}{more}"


def _listing(tree: Tree, files: list[tuple[str, int]]) -> str:
    """A hash that changes with any file's name, size or time; reads no file."""
    digest = hashlib.sha256(str(tree.root.resolve()).encode())
    for path, label in files:
        stat = (tree.root / path).stat()
        digest.update(f"{path}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _scan(tree: Tree, files: list[tuple[str, int]], progress: Progress | None) -> dict[str, Any]:
    digest = hashlib.sha256("\0".join(tree.classes).encode())
    unreadable = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing and decoding release the interpreter lock
        for first in range(0, len(files), _CHUNK):
            chunk = files[first : first + _CHUNK]
            results = pool.map(_check, [tree.root / path for path, _ in chunk])
            for (path, label), (content, whole) in zip(chunk, results, strict=True):
                digest.update(f"\n{path}\0{label}\0{content}".encode())
                unreadable += [] if whole else [path]
            if progress is not None:
                progress(first + len(chunk), len(files))
    return {"fingerprint": digest.hexdigest()[:ID_DIGITS], "unreadable": unreadable}


def _check(path: Path) -> tuple[str, bool]:
    """Hash of a file's bytes, and whether Pillow can read them."""
    digest = "unreadable"
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        with Image.open(io.BytesIO(content)) as image:
            image.convert("RGB")
    except Exception:  # from the system, or one of the many kinds that Pillow raises on damaged files
        return digest, False
    return digest, True


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Say what a folder of images holds, as the [data] of a sweep file.")
    parser.add_argument("folder", type=lambda text: Path(at_home(text)))
    options = parser.parse_args(arguments)
    try:
        tree = find_tree(options.folder)
        found = scan(tree)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if line := warning(tree, found):
        print(f"warning: {line}", file=sys.stderr)
    print(f'name = "folder"\nclasses = {len(tree.classes)}\nfingerprint = "{found.fingerprint}"')
    print(f"# {len(tree.train)} images to learn from, {len(tree.heldout)} held out")


if __name__ == "__main__":
    main()
