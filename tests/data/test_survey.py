"""What is found in a folder of images of many kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from harness.data.survey import survey


def pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """So many random pictures of 12 by 10 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def odd_pictures(folder: Path) -> None:
    """A picture of each kind that is not plain RGB, and files that are left out."""
    rgb = Image.effect_noise((16, 20), 60).convert("RGB")
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("RGBA").rotate(20).save(folder / "transparent.png")
    Image.fromarray(np.arange(320, dtype=np.uint16).reshape(20, 16) * 200).save(folder / "sixteen.png")
    turned = Image.Exif()
    turned[274] = 6
    rgb.save(folder / "rotated.jpg", exif=turned)
    (folder / "broken.png").write_bytes(b"junk")
    Image.fromarray(np.zeros((9, 9), np.float32)).save(folder / "float.tif")
    (folder / "notes.txt").write_text("no picture")
    (folder / "below").mkdir()
    (folder / "below" / "deep.png").write_bytes(b"junk")


def test_every_kind_of_picture_counts_and_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    odd_pictures(pictures(tmp_path / "a", 30))
    pictures(tmp_path / "b", 4, seed=1)
    found = survey(tmp_path)
    assert found.counts == {"a": 36, "b": 4}
    assert found.imbalance == 9
    assert sum(found.train) == len(found.tree.train) == 36
    assert (found.sides[0], found.side, found.sides[-1]) == (10, 10, 16)
    assert {reason.partition(",")[0]: paths for reason, paths in found.reasons.items()} == {
        "no readable image": ["a/broken.png"],
        "pixel mode F": ["a/float.tif"],
        "other suffix": ["a/notes.txt"],
        "in a folder below its class": ["a/below/deep.png"],
    }


def test_equal_files_are_found_also_across_the_split(tmp_path: Path) -> None:
    pictures(tmp_path, 20)
    held_out = survey(tmp_path).tree.heldout[0][0]
    assert (survey(tmp_path).equal, survey(tmp_path).leaked) == (0, 0)
    (tmp_path / "copy.png").write_bytes((tmp_path / held_out).read_bytes())
    (tmp_path / "again.png").write_bytes((tmp_path / held_out).read_bytes())
    found = survey(tmp_path)
    assert found.equal == 2
    leaked = {path for path, _ in found.tree.heldout} & {held_out, "copy.png", "again.png"}
    assert found.leaked == (len(leaked) if len(leaked) < 3 else 0)
    assert found.leaked > 0
