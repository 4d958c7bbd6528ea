"""Folders of images: ImageNet's train/val layout, the user's own tree, or a flat folder. Imports no torch.

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
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import DataSet, Images, LoadedData, Progress, Source
from harness.data.decode import WHITE, PixelModeError, is_rotated, is_transparent, to_rgb
from harness.data.trees import Tree, find_tree, listed, named, shown
from harness.errors import InputError
from harness.files import at_home, read_json, write_json
from harness.spec.data import Data
from harness.spec.identity import ID_DIGITS
from harness.threads import helpers

_LOG = logging.getLogger(__name__)

#: More unreadable files than this, or than this share of all, and the folder is refused.
UNREADABLE_FILES, UNREADABLE_SHARE = 10, 0.001

#: Of the checks on a file: a result of an older one does not count.
_FORMAT = 3

#: Stands for the content of a file that the system does not read.
_UNREAD = "unreadable"

#: Files checked between two reports.
_CHUNK = 200


@dataclass(frozen=True)
class Scan:
    """The result of reading every file.

    Attributes:
        fingerprint: first 12 hex digits of sha256 over splits, names, classes and content; and over which files are
            transparent or rotated by EXIF, whose pixels older versions read otherwise.
        unreadable: paths below the root of the files that are no images; loading leaves them out. With the reason,
            which is empty where Pillow finds no whole image.
    """

    fingerprint: str
    unreadable: dict[str, str]


class ImageFiles:
    """Image files, decoded when they are indexed; an `ImageArray` (N, S, S, 3)."""

    several_threads = True  # may index it at once

    def __init__(self, root: Path, paths: Sequence[str], size: int, background: str | None = WHITE) -> None:
        self.root, self.paths, self.size, self._background = root, paths, size, background

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, S, S, 3)."""
        return len(self.paths), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any, /) -> Any:
        """Images (n, S, S, 3) for an array of n indices."""
        chosen = [read_image(self.root / self.paths[i], self.size, self._background) for i in index]
        return np.stack(chosen) if chosen else np.zeros((0, *self.shape[1:]), np.uint8)


def read_image(path: Path, size: int, background: str | None = WHITE) -> NDArray[np.uint8]:
    """Decode a file to RGB (see `to_rgb` for the background) and crop it: uint8 (size, size, 3).

    Raises:
        InputError: Pillow cannot read the file as an image.
    """
    try:
        with Image.open(path) as image:
            return centre_crop(to_rgb(image, background), size)
    except MemoryError:  # says nothing of the file
        raise
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

    def __init__(self, *, own_split: bool, as_published: bool = False) -> None:
        """Say which folders it takes, and how it reads them.

        Args:
            own_split: also take a folder without train/ and val/, and hold out a tenth of every class.
            as_published: transparency and EXIF do not count, as in the published code for ImageNet.
        """
        self._own_split, self._as_published = own_split, as_published

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
                f"{shown(tree.root)}: this is other data (fingerprint {found.fingerprint}, "
                f"data.fingerprint is {data.fingerprint})"
            )
        if line := warning(tree, found):
            _LOG.warning(line)
        kept = tree.without(found.unreadable)

        background = None if self._as_published else data.background or WHITE

        def split(files: tuple[tuple[str, int], ...]) -> Images:
            images = ImageFiles(tree.root, [path for path, _ in files], data.image_shape.size, background)
            return Images(images, np.array([label for _, label in files], dtype=np.int64))

        return LoadedData(data.name, split(kept.train), split(kept.heldout), found.fingerprint)

    def _tree(self, data: Data, source: Source) -> Tree:
        key = f"data.name {data.name}"
        tree = find_tree(source.folder, key, own_split=self._own_split)
        if len(tree.classes) != (expected := data.image_shape.classes):
            raise InputError(f"{shown(tree.root)}: {len(tree.classes)} classes (subfolders), but {key} says {expected}")
        return tree


def scan(tree: Tree, cache: Path | None = None, progress: Progress | None = None) -> Scan:
    """Read and decode every file, or take the result from the folder `cache`, where an earlier scan kept it.

    Raises:
        InputError: too many files are no images, and the first few are named; or a class has none left.
    """
    files = [*tree.train, *tree.heldout]
    record = None if cache is None else cache / f"{_listing(tree, files)}.json"
    known = None if record is None else read_json(record, ("fingerprint", "unreadable"))
    if known is None:
        known = _scan(tree, files, progress)
        # what the system could not read today, by permission or a fault of the disk, it may read tomorrow
        if not known.pop("unread") and record is not None:
            write_json(record, {"folder": str(tree.root.resolve()), **known})
    found = Scan(known["fingerprint"], known["unreadable"])
    if (count := len(found.unreadable)) > max(UNREADABLE_FILES, UNREADABLE_SHARE * len(files)) or count == len(files):
        raise InputError(f"{shown(tree.root)}: {_unreadable(found, len(files))}; replace or remove them")
    tree.without(found.unreadable)
    return found


def warning(tree: Tree, found: Scan) -> str | None:
    """One line that counts and names what is left out; None when nothing is."""
    parts = []
    if found.unreadable:
        parts.append(f"{_unreadable(found, len(tree.train) + len(tree.heldout))}; left out")
    if tree.left_out:
        parts.append(f"left out: {listed(tree.left_out)}")
    return f"{shown(tree.root)}: {'; '.join(parts)}" if parts else None


def _unreadable(found: Scan, total: int) -> str:
    names = [f"{path} ({reason})" if reason else path for path, reason in found.unreadable.items()]
    return f"{len(names)} of {total} files are no readable images: {named(names)}"


def _listing(tree: Tree, files: list[tuple[str, int]]) -> str:
    """A hash that changes with any file's name, size or time; reads no file."""
    digest = hashlib.sha256(f"{_FORMAT} {tree.root.resolve()}".encode(errors="surrogateescape"))
    for path, label in files:
        try:
            stat = (tree.root / path).stat()
        except OSError as error:
            raise InputError(f"{shown(tree.root / path)}: cannot be read ({error.strerror})") from None
        digest.update(f"{path}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _scan(tree: Tree, files: list[tuple[str, int]], progress: Progress | None) -> dict[str, Any]:
    digest = hashlib.sha256("\0".join(tree.classes).encode())
    unreadable: dict[str, str] = {}
    unread = 0
    with helpers("scan", os.cpu_count() or 1) as pool:  # hashing and decoding release the interpreter lock
        for first in range(0, len(files), _CHUNK):
            chunk = files[first : first + _CHUNK]
            results = pool.map(_check, [tree.root / path for path, _ in chunk])
            for (path, label), (content, trouble) in zip(chunk, results, strict=True):
                digest.update(f"\n{path}\0{label}\0{content}".encode())
                unreadable |= {} if trouble is None else {path: trouble}
                unread += content == _UNREAD
            if progress is not None:
                progress(first + len(chunk), len(files))
    return {"fingerprint": digest.hexdigest()[:ID_DIGITS], "unreadable": unreadable, "unread": unread}


def _check(path: Path) -> tuple[str, str | None]:
    """What is hashed of a file, and why it is no image; None where it is one, empty where Pillow cannot say more."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return _UNREAD, error.strerror or ""
    digest = hashlib.sha256(content).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            rotated = is_rotated(image)
            to_rgb(image)
            digest += " rotated" * rotated + " transparent" * is_transparent(image)
    except MemoryError:  # says nothing of the file
        raise
    except PixelModeError as error:
        return digest, str(error)
    except Exception:  # Pillow's decoders raise errors of many kinds on damaged files
        return digest, ""
    return digest, None


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Say what a folder of images holds, as the [data] of a sweep file.")
    parser.add_argument("folder", type=lambda text: Path(at_home(text)))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # Pillow's, of odd metadata in files that it reads all the same
    try:
        tree = find_tree(options.folder)
        found = scan(tree)
        kept = tree.without(found.unreadable)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if line := warning(tree, found):
        print(f"warning: {line}", file=sys.stderr)
    print(f'name = "folder"\nclasses = {len(tree.classes)}\nfingerprint = "{found.fingerprint}"')
    if tree.is_flat:
        print("labels = false")
    print(f"# {len(kept.train)} images to learn from, {len(kept.heldout)} held out")


if __name__ == "__main__":
    main()
