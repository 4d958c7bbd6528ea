"""A folder of small colour pictures: the emoji of two npm packages, on white at 32x32, one folder a category.

    python -m harness.data.emoji data/emoji     fetches them by `npm pack`, and lays them out

The packages are emoji-datasource-google (Noto, Apache-2.0) and emoji-datasource-twitter (Twemoji, CC-BY-4.0), both with
64x64 pictures of the same 3,786 emoji. Skin tones, genders and hair of one emoji, both vendors' drawings, and equal
pictures are nearly copies, so all of them are in `train/` or all in `val/`, a tenth of them. Imports no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from harness.data.decode import to_rgb
from harness.errors import InputError
from harness.files import at_home

VENDORS = ("google", "twitter")

VERSION = "16.0.0"

SIZE = 32

#: The category that is no category: five skin tones on their own.
_LEFT_OUT = "Component"

#: One of so many emoji of a category is held out.
_HELDOUT_OF = 10

#: Parts of a code that make variants of one emoji: emoji style, skin tones, signs of gender, hair.
_VARIANTS = {"FE0F", "2640", "2642", *(f"1F3F{digit}" for digit in "BCDEF"), *(f"1F9B{digit}" for digit in range(4))}

#: Man, woman and person, who do the same things.
_PEOPLE = {"1F468", "1F469", "1F9D1"}


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        category: its class.
        kin: code of what it is a variant of.
        name: of its file, without the suffix.
        image: RGB, 32x32.
    """

    category: str
    kin: str
    name: str
    image: Image.Image


def kin_of(code: str) -> str:
    """What all variants of an emoji have in common, from its code, such as "1F469-1F3FD-200D-1F680"."""
    parts = [part for part in code.split("-") if part not in _VARIANTS]
    while parts and parts[-1] == "200D":  # joins what followed
        parts.pop()
    return "-".join("person" if part in _PEOPLE else part for part in parts) or code  # the signs are emoji, too


def pictures(archive: Path, vendor: str) -> Iterator[Picture]:
    """The pictures of a package, as npm packs it.

    Raises:
        InputError: it is no such package.
    """
    try:
        files = _files(archive, "package/emoji.json", f"package/img/{vendor}/64/")
        for emoji in json.loads(files["package/emoji.json"]):
            if emoji["category"] == _LEFT_OUT:
                continue
            for one in (emoji, *emoji.get("skin_variations", {}).values()):
                if one[f"has_img_{vendor}"]:
                    with Image.open(io.BytesIO(files[f"package/img/{vendor}/64/{one['image']}"])) as image:
                        small = to_rgb(image).resize((SIZE, SIZE), Image.Resampling.BOX)
                    name = f"{Path(one['image']).stem}-{vendor}"
                    yield Picture(emoji["category"], kin_of(emoji["unified"]), name, small)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise InputError(f"{archive}: no package of emoji pictures ({type(error).__name__}: {error})") from error


def _files(archive: Path, *prefixes: str) -> dict[str, bytes]:
    """The files of an archive whose names begin so, read in one pass: it is packed as a whole."""
    found = {}
    with tarfile.open(archive) as package:
        for member in package:
            if member.name.startswith(prefixes) and (stream := package.extractfile(member)) is not None:
                found[member.name] = stream.read()
    return found


def lay_out(found: Sequence[Picture], folder: Path) -> dict[str, int]:
    """Write train/CATEGORY/NAME.bmp and val/...; a new folder is whole or not there. Returns counts by split.

    The files hold plain pixels, so that their fingerprint depends on no library that packs them.
    """
    heads = _heads(found)
    order = sorted({(one.category, heads[one.kin]) for one in found}, key=lambda each: _hash(each[1]))
    by_category: dict[str, list[str]] = {}
    for category, head in order:
        by_category.setdefault(category, []).append(head)
    heldout = {head for kin in by_category.values() for head in kin[: max(1, len(kin) // _HELDOUT_OF)]}
    folder.parent.mkdir(parents=True, exist_ok=True)
    counts = {"train": 0, "val": 0}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        whole = Path(temporary) / "whole"
        for one in found:
            split = "val" if heads[one.kin] in heldout else "train"
            path = whole / split / one.category / f"{one.name}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            one.image.save(path)
            counts[split] += 1
        whole.rename(folder)
    return counts


def _heads(found: Sequence[Picture]) -> dict[str, str]:
    """For every kin the one that stands for it and for all kin that share a picture with it, as flags do."""
    heads = {one.kin: one.kin for one in found}

    def head(kin: str) -> str:
        while heads[kin] != kin:
            kin = heads[kin]
        return kin

    seen: dict[bytes, str] = {}
    for one in found:
        other = head(seen.setdefault(one.image.tobytes(), one.kin))
        heads[max(head(one.kin), other)] = min(head(one.kin), other)
    return {kin: head(kin) for kin in heads}


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def fetch(folder: Path) -> list[Path]:
    """The packages, packed into the folder by npm unless they are there.

    Raises:
        InputError: npm is missing or fails; the message says what to do.
    """
    archives = [folder / f"emoji-datasource-{vendor}-{VERSION}.tgz" for vendor in VENDORS]
    missing = [archive for archive in archives if not archive.is_file()]
    names = [f"emoji-datasource-{vendor}@{VERSION}" for vendor in VENDORS]
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), *names]
    if missing and shutil.which("npm") is None:
        raise InputError(
            "npm is not here; install it (Debian: apt-get install npm), or bring the packages from a machine that has "
            f"it: {' '.join(command)}"
        )
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"{' '.join(command)}: failed: {' '.join((done.stderr or done.stdout).split())[-300:]}")
    return archives


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fetch emoji pictures by npm, and lay them out for a study.")
    parser.add_argument("folder", type=lambda text: Path(at_home(text)), help="a folder that is not there yet")
    folder: Path = parser.parse_args(arguments).folder
    if folder.exists():
        print(f"{folder}: is there already")
        return
    try:
        packages = fetch(folder.with_name(f"{folder.name}-packages"))
        found = [one for path, vendor in zip(packages, VENDORS, strict=True) for one in pictures(path, vendor)]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    counts = lay_out(found, folder)
    print(f"{folder}: {counts['train']} pictures to learn from, {counts['val']} held out")


if __name__ == "__main__":
    main()
