"""What a folder of images lists: classes, splits, and what is left out. Opens no file; imports no torch."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from harness.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")

#: A tree without train/ and val/: one image of so many in every class is held out.
_HELDOUT_OF = 10

#: Name of the only class of a flat folder, whose images are in no subfolder.
FLAT = ""

#: How many files or classes are named.
NAMED = 5


class LeftOut(NamedTuple):
    """A file that is not read: its path below the root, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Tree:
    """The files of a folder of images, before any of them is opened.

    Attributes:
        root: the folder.
        classes: names of the classes, sorted; their positions are the labels. `FLAT` alone: the images have no classes.
        train: (path below root, label) of every training file, sorted by class and name.
        heldout: the same of the files that the model never sees.
        left_out: files in and beside the class folders that are in neither.
        own_split: whether the held-out files were chosen here, for want of train/ and val/.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    heldout: tuple[tuple[str, int], ...]
    left_out: tuple[LeftOut, ...] = ()
    own_split: bool = False

    @property
    def is_flat(self) -> bool:
        """Whether the images are in no class folders."""
        return self.classes == (FLAT,)

    def without(self, paths: Collection[str]) -> Tree:
        """The tree without these files.

        Raises:
            InputError: then a class has no image to learn from, or none that is held out.
        """
        out = frozenset(paths)
        splits = ([file for file in files if file[0] not in out] for files in (self.train, self.heldout))
        kept = replace(self, train=tuple(next(splits)), heldout=tuple(next(splits)))
        kept.require_classes([*self.left_out, *(LeftOut(path, "unreadable") for path in paths)])
        return kept

    def require_classes(self, left_out: Collection[LeftOut]) -> None:
        """Check that every class has images in both splits; `left_out` is for the message."""
        why = f"; left out: {listed(left_out)}" if left_out else ""
        root = shown(self.root)
        if self.is_flat and not (self.train and self.heldout):
            raise InputError(
                f"{root}: one image; needed: two at least, one to learn from and one that is held out{why}"
            )
        if not self.train:
            deep = [Path(path).parent.parent for path, reason in left_out if reason == _NESTED]
            below = (
                f"; give the folder whose subfolders hold the images, such as {shown(self.root / deep[0])}"
                if deep
                else ""
            )
            raise InputError(f"{root}: no training images; allowed: {', '.join(SUFFIXES)}{why}{below}")
        if not self.heldout and not self.own_split:
            raise InputError(f"{root}: no held-out images; allowed: {', '.join(SUFFIXES)}{why}")
        for split, files in (("training", self.train), ("held-out", self.heldout)):
            found = {label for _, label in files}
            if empty := [name for label, name in enumerate(self.classes) if label not in found]:
                need = "; without train/ and val/ a class needs two images at least" if self.own_split else ""
                of = f"{len(empty)} of {len(self.classes)}"
                raise InputError(f"{root}: {of} classes have no {split} image: {named(empty)}{need}{why}")


def find_tree(folder: Path | None, key: str = "FOLDER", *, own_split: bool = True) -> Tree:
    """List a folder of images: train/ and val/ (ImageNet's layout), one subfolder a class, or a flat folder of images.

    Without train/ and val/ a tenth of every class is held out, chosen by the hash of the path.

    Args:
        folder: where the images are (`resources.data_folder`).
        key: what needs the folder, for messages.
        own_split: False: train/ and val/ must be there.

    Raises:
        InputError: no such folder, no permission, no images, a class without images, names that are not UTF-8, or
            classes that differ between train and val.
    """
    if folder is None:
        how = (
            ""
            if own_split
            else (
                ", which hold one folder a class in train/ and in val/ (sort the flat validation images of the "
                "ILSVRC 2012 archive by its ground truth); they come from https://image-net.org, after registration"
            )
        )
        raise InputError(f"{key}: set resources.data_folder (or --data-folder) to the folder with the images{how}")
    try:
        tree = _find(folder, key, own_split)
    except OSError as error:
        raise InputError(f"{shown(error.filename or folder)}: cannot be read ({error.strerror})") from None
    tree.require_classes(tree.left_out)
    return tree


def _find(folder: Path, key: str, own_split: bool) -> Tree:
    root = shown(folder)
    if not folder.is_dir():
        raise InputError(f"resources.data_folder: {root} is not a folder")
    out: list[LeftOut] = []
    if (folder / "train").is_dir():
        if not (folder / "val").is_dir():
            raise InputError(f"{root}: has train/ and no val/; the held-out images belong there, sorted as in train/")
        classes = _classes(folder, "train/", out)
        if odd := sorted({*classes} ^ {*_classes(folder, "val/", out)}):
            raise InputError(
                f"{root}: train/ and val/ have different classes ({len(odd)} differ, for example {shown(odd[-1])}); "
                "sort the images of val/ into one subfolder a class, named as in train/"
            )
        out += [LeftOut(entry.name, _OUTSIDE) for entry in _entries(folder) if _reason(entry) is None]
        train = _files(folder, "train/", classes, out)
        heldout = _files(folder, "val/", classes, out)
        return Tree(folder, classes, tuple(train), tuple(heldout), tuple(out))
    if not own_split:
        raise InputError(f"{root}: has no train/ and val/, as ImageNet's layout has, one subfolder a class in each")
    classes = _classes(folder, "", out)
    train, heldout = _hold_out(_files(folder, "", classes, out), len(classes))
    return Tree(folder, classes, tuple(train), tuple(heldout), tuple(out), own_split=True)


def _classes(root: Path, prefix: str, out: list[LeftOut]) -> tuple[str, ...]:
    classes, beside = [], []
    for entry in _entries(root / prefix):
        reason = _reason(entry)
        if reason == _NESTED and not entry.name.startswith("."):
            classes.append(entry.name)
        elif reason in (None, _DANGLING):  # anything else beside the class folders is no image
            beside.append(LeftOut(prefix + entry.name, reason or _OUTSIDE))
    if not classes and any(entry.reason == _OUTSIDE for entry in beside):
        return (FLAT,)
    out += beside
    if not classes:
        why = f"; left out: {listed(out)}" if out else ""
        flat = ", or images without classes" if not prefix else ""
        raise InputError(
            f"{shown(root / prefix)}: no images; it should hold one subfolder a class, with the images inside"
            f"{flat}{why}"
        )
    return tuple(classes)


def _files(root: Path, prefix: str, classes: tuple[str, ...], out: list[LeftOut]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for label, name in enumerate(classes):
        folder = f"{prefix}{name}/" if name != FLAT else prefix
        for entry in _entries(root / folder):
            path = folder + entry.name
            reason = _reason(entry)
            if reason is None:
                found.append((path, label))
            elif reason == _NESTED and not entry.is_symlink():
                for nested, _, files in os.walk(entry.path):
                    below = Path(nested).relative_to(root)
                    out += [LeftOut(str(below / file), _NESTED) for file in files]
            else:
                out.append(LeftOut(path, reason))
    return found


_NESTED, _DANGLING, _OUTSIDE = "in a folder below its class", "dangling link", "outside the class folders"


def _reason(entry: os.DirEntry[str]) -> str | None:
    """Why an entry is not taken as an image; None: it is."""
    try:
        is_file, is_folder = entry.is_file(), entry.is_dir()
    except OSError:  # a loop of links, or one to where nobody may look
        is_file = is_folder = False
    if is_folder:
        return _NESTED
    if not is_file:
        return _DANGLING if entry.is_symlink() else "no file"
    if entry.name.startswith("."):
        return "hidden"
    return None if entry.name.lower().endswith(SUFFIXES) else "other suffix"


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What a folder holds, sorted by name.

    Raises:
        InputError: a name is not UTF-8; the fingerprint is one of names, too.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            try:
                entry.name.encode()
            except UnicodeEncodeError:
                raise InputError(f"{shown(folder / entry.name)}: the name is not UTF-8; rename it") from None
            yield entry


def _hold_out(files: list[tuple[str, int]], classes: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    chosen: set[str] = set()
    for label in range(classes):
        paths = sorted((p for p, c in files if c == label), key=lambda p: hashlib.sha256(p.encode()).digest())
        chosen.update(paths[: max(len(paths) // _HELDOUT_OF, 1)] if len(paths) > 1 else [])
    return [f for f in files if f[0] not in chosen], [f for f in files if f[0] in chosen]


def shown(path: object) -> str:
    """A path on one line, whatever characters it has."""
    text = str(path)
    return text if text.isprintable() else ascii(text)


def named(paths: Collection[str]) -> str:
    """The first paths by name, and how many more there are."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(shown(path) for path in list(paths)[:NAMED]) + more


def listed(left_out: Collection[LeftOut]) -> str:
    """What is left out, counted by reason, each with an example."""
    examples = {entry.reason: entry.path for entry in reversed(list(left_out))}
    counts = Counter(entry.reason for entry in left_out)
    return ", ".join(f"{count} {reason} ({shown(examples[reason])})" for reason, count in counts.items())
