"""The emoji pictures: every variant of one emoji in one split, whatever the packages hold."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness.data import emoji
from harness.data.trees import find_tree
from harness.errors import InputError


@pytest.mark.parametrize(
    ("code", "kin"),
    [
        ("1F385", "1F385"),
        ("1F3C3-1F3FD-200D-2642-FE0F", "1F3C3"),
        ("1F469-1F3FD-200D-1F680", "person-200D-1F680"),
        ("1F468-200D-1F9B3", "person"),
        ("2640-FE0F", "2640-FE0F"),
        ("1F1E6-1F1E8", "1F1E6-1F1E8"),
    ],
)
def test_variants_are_kin(code: str, kin: str) -> None:
    assert emoji.kin_of(code) == kin


def entry(code: str, category: str, variants: tuple[str, ...] = ()) -> dict[str, Any]:
    def one(code: str) -> dict[str, Any]:
        return {
            "unified": code,
            "image": f"{code.lower()}.png",
            "has_img_google": True,
            "has_img_twitter": code != "B3",
        }

    return {**one(code), "category": category, "skin_variations": {skin: one(f"{code}-{skin}") for skin in variants}}


ENTRIES = [
    *(entry(f"A{number}", "Animals", ("1F3FB", "1F3FF")) for number in range(20)),
    *(entry(f"B{number}", "Flags & Co") for number in range(20)),
    entry("1F3FB", "Component"),
]


def pack(path: Path, vendor: str) -> None:
    """A package of pictures, each of one colour; two flags are the same."""

    def add(name: str, content: bytes) -> None:
        info = tarfile.TarInfo(f"package/{name}")
        info.size = len(content)
        package.addfile(info, io.BytesIO(content))

    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as package:
        for number, one in enumerate(e for whole in ENTRIES for e in (whole, *whole["skin_variations"].values())):
            level = 17 if one["unified"] in ("B4", "B5") else number
            picture = Image.new("RGBA", (64, 64), (level, 0, 100 * (vendor == "google"), 255 * (number > 0)))
            buffer = io.BytesIO()
            picture.save(buffer, "png")
            add(f"img/{vendor}/64/{one['image']}", buffer.getvalue())
        add("emoji.json", json.dumps(ENTRIES).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for vendor in emoji.VENDORS:
        pack(tmp_path / "emoji-packages" / f"emoji-datasource-{vendor}-{emoji.VERSION}.tgz", vendor)
    return tmp_path / "emoji"


def test_layout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emoji.main([str(folder)])
    assert "145 pictures to learn from, 14 held out" in capsys.readouterr().out
    tree = find_tree(folder)
    assert tree.classes == ("Animals", "Flags & Co")
    assert not tree.own_split
    assert not tree.left_out
    splits = [{path.rsplit("/", 1)[1].split("-")[0] for path, _ in files} for files in (tree.train, tree.heldout)]
    assert not splits[0] & splits[1]
    assert sum(name.startswith("a") for name in splits[1]) == 2
    assert ("b4" in splits[1]) == ("b5" in splits[1])
    with Image.open(folder / tree.train[0][0]) as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")
    clear = next(folder.glob("*/*/a0-google.bmp"))  # nothing but transparent
    with Image.open(clear) as image:
        assert image.getextrema() == ((255, 255),) * 3
    emoji.main([str(folder)])
    assert "is there already" in capsys.readouterr().out


def test_bad_packages_and_no_npm(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package = next(folder.with_name("emoji-packages").glob("*twitter*"))
    whole = package.read_bytes()
    package.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit):
        emoji.main([str(folder)])
    assert "no package of emoji pictures" in capsys.readouterr().err
    package.unlink()
    monkeypatch.setenv("PATH", str(folder.parent))
    with pytest.raises(SystemExit):
        emoji.main([str(folder)])
    assert "apt-get install npm" in capsys.readouterr().err
    assert not folder.exists()
    monkeypatch.setattr("shutil.which", lambda _: "npm")
    (folder.parent / "npm").write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    (folder.parent / "npm").chmod(0o755)
    with pytest.raises(InputError, match=r"npm pack .*twitter@16\.0\.0: failed: no such package"):
        emoji.fetch(folder.with_name("emoji-packages"))
