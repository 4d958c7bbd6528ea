"""What a folder of images holds: classes, sizes, equal files, and what is left out. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from PIL import Image

from harness.data.dataset import Progress
from harness.data.images import scan
from harness.data.trees import LeftOut, Tree, find_tree, shown
from harness.errors import InputError
from harness.threads import helpers

#: Files looked at between two reports.
_CHUNK = 200


@dataclass(frozen=True)
class Survey:
    """What a folder holds.

    Attributes:
        tree: its files, without those that are no images.
        fingerprint: of its content.
        left_out: files that are not read, with the reason.
        sides: short sides of the images in pixels, ascending.
        equal: files that equal an earlier one, byte for byte.
        leaked: held-out files that equal one to learn from.
    """

    tree: Tree
    fingerprint: str
    left_out: tuple[LeftOut, ...]
    sides: tuple[int, ...]
    equal: int
    leaked: int

    @property
    def train(self) -> tuple[int, ...]:
        """Images to learn from, by class."""
        return _by_class(self.tree, self.tree.train)

    @property
    def counts(self) -> dict[str, int]:
        """All images by the name of their class, the largest class first."""
        found = _by_class(self.tree, [*self.tree.train, *self.tree.heldout])
        named = dict(zip(self.tree.classes, found, strict=True))
        return dict(sorted(named.items(), key=lambda pair: -pair[1]))

    @property
    def imbalance(self) -> float:
        """Images of the largest class for one of the smallest."""
        found = [*self.counts.values()]
        return found[0] / found[-1]

    @property
    def side(self) -> int:
        """Median of the short sides."""
        return median_low(self.sides)

    @property
    def reasons(self) -> dict[str, list[str]]:
        """The files that are left out, by reason; the most frequent one first."""
        found: dict[str, list[str]] = {}
        for path, reason in self.left_out:
            found.setdefault(reason, []).append(path)
        return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


def survey(folder: Path, cache: Path | None = None, progress: Progress | None = None) -> Survey:
    """Read a folder: every file is decoded once, unless an earlier reading is kept in the folder `cache`.

    Raises:
        InputError: no such folder, or it is no data set (see `find_tree` and `scan`).
    """
    if not folder.is_dir():
        raise InputError(f"{shown(folder)}: no such folder; allowed: a folder with images, or with one folder a class")
    tree = find_tree(folder)
    found = scan(tree, cache, progress)
    kept = tree.without(found.unreadable)
    broken = [LeftOut(path, reason or "no readable image") for path, reason in found.unreadable.items()]
    looks = [*_look(kept.root, [path for path, _ in (*kept.train, *kept.heldout)])]
    hashes = [look for look, _ in looks]
    learned = {*hashes[: len(kept.train)]}
    return Survey(
        tree=kept,
        fingerprint=found.fingerprint,
        left_out=(*tree.left_out, *broken),
        sides=tuple(sorted(side for _, side in looks)),
        equal=len(hashes) - len({*hashes}),
        leaked=sum(look in learned for look in hashes[len(kept.train) :]),
    )


def _look(root: Path, paths: Sequence[str]) -> Iterator[tuple[bytes, int]]:
    """Hash of the content, and short side, of every file."""

    def look(path: str) -> tuple[bytes, int]:
        with Image.open(root / path) as image, (root / path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest(), min(image.size)

    with helpers("survey", os.cpu_count() or 1) as pool:
        for first in range(0, len(paths), _CHUNK):
            yield from pool.map(look, paths[first : first + _CHUNK])


def _by_class(tree: Tree, files: Sequence[tuple[str, int]]) -> tuple[int, ...]:
    counts = Counter(label for _, label in files)
    return tuple(counts[label] for label in range(len(tree.classes)))
