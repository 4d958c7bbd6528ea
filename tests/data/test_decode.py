"""Image files as arrays: the crop, ranges, transparency, rotation; and what they mean for the fingerprint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from harness.data.dataset import Source
from harness.data.images import ImageFiles, centre_crop, main, read_image, scan
from harness.data.sources import load
from harness.data.trees import find_tree
from harness.errors import InputError
from harness.spec.data import Data


def picture(array: Any) -> Image.Image:
    """Grey levels (H, W) as an RGB image."""
    return Image.fromarray(np.repeat(np.asarray(array, np.uint8)[..., None], 3, axis=2))


def blocks(array: Any, side: int) -> Image.Image:
    return picture(np.kron(np.asarray(array), np.ones((side, side), int)))


# the crop


def test_a_wide_image_is_halved_and_cut_in_the_middle() -> None:
    image = blocks([[10, 20, 30, 40], [50, 60, 70, 80]], 2)  # 8 x 4, the short side is twice 2: one halving
    assert centre_crop(image, 2)[..., 0].tolist() == [[20, 30], [60, 70]]


def test_a_tall_image_is_halved_twice() -> None:
    image = blocks([[10], [20], [30], [40]], 4)  # 4 wide, 16 tall
    assert centre_crop(image, 1)[..., 0].tolist() == [[20]]  # (4 - 1) // 2 = 1


def test_halving_averages() -> None:
    assert centre_crop(picture([[0, 0, 8, 8], [100, 100, 8, 8], [4, 4, 1, 3], [4, 4, 5, 7]]), 2)[..., 0].tolist() == [
        [50, 8],
        [4, 4],
    ]


def test_the_odd_pixel_is_left_at_the_far_end() -> None:
    assert centre_crop(picture([[1, 2, 3]] * 2), 2)[..., 0].tolist() == [[1, 2], [1, 2]]


def test_just_below_twice_the_size_is_no_halving_but_bicubic() -> None:
    ramp = picture([[0, 40, 80, 120, 160, 200, 240]] * 7)  # 7 < 2 * 4
    expected = np.asarray(ramp.resize((4, 4), Image.Resampling.BICUBIC))
    assert np.array_equal(centre_crop(ramp, 4), expected)


def test_a_small_image_is_enlarged() -> None:
    assert np.array_equal(centre_crop(picture([[7] * 3] * 2), 8), np.full((8, 8, 3), 7))


@pytest.mark.parametrize("size", [(9, 7), (7, 9), (1, 50), (64, 64), (65, 33), (500, 3)])
def test_any_shape_gives_a_square(size: tuple[int, int]) -> None:
    assert centre_crop(Image.new("RGB", size, (1, 2, 3)), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (9, 9)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", 8).shape == (8, 8, 3)


# the range


def sixteen(values: list[int], mode: str = "<u2") -> Image.Image:
    return Image.fromarray(np.repeat(np.array([values], mode), 9, axis=0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    grey = sixteen([0, 257, 1000, 32768, 40000, 65535, 65535, 65535, 65535])
    grey.save(tmp_path / f"x{suffix}")
    assert read_image(tmp_path / f"x{suffix}", 9)[4, :6, 1].tolist() == [0, 1, 4, 128, 156, 255]


def test_a_sixteen_bit_ppm_is_scaled(tmp_path: Path) -> None:
    (tmp_path / "x.ppm").write_bytes(b"P5 2 2 65535\n" + np.array([[0, 32768], [40000, 65535]], ">u2").tobytes())
    assert read_image(tmp_path / "x.ppm", 2)[..., 0].tolist() == [[0, 128], [156, 255]]


@pytest.mark.parametrize(
    ("image", "options", "mode"),
    [
        (Image.fromarray(np.full((9, 9), 0.5, np.float32)), {}, "F"),
        (Image.fromarray(np.full((9, 9), 70000, np.int32)), {}, "I"),
        (sixteen([100] * 9), {"tiffinfo": {262: 0}}, "I;16"),  # 0 is white
    ],
)
def test_pixels_of_an_unknown_range_are_refused_by_name(
    tmp_path: Path, image: Image.Image, options: Any, mode: str
) -> None:
    image.save(tmp_path / "x.tif", **options)
    with pytest.raises(InputError, match=rf"x\.tif: no readable image \(pixel mode {mode}, whose range is not known"):
        read_image(tmp_path / "x.tif", 8)


RED, BLUE = [255, 0, 0], [0, 0, 255]


def left_and_right(path: Path, background: str | None = "#0000ff") -> list[list[int]]:
    """The colours of both halves of an image."""
    pixels = read_image(path, 8, background)
    return [pixels[4, 1].tolist(), pixels[4, 6].tolist()]


def test_modes_of_eight_bits_keep_their_levels(tmp_path: Path) -> None:
    for mode, colour, expected in (
        ("1", 1, [255, 255, 255]),
        ("L", 200, [200, 200, 200]),
        ("LA", (200, 255), [200, 200, 200]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("CMYK", (0, 0, 0, 55), [200, 200, 200]),
    ):
        Image.new(mode, (9, 9), colour).save(tmp_path / "x.tif")
        assert read_image(tmp_path / "x.tif", 8)[3, 3].tolist() == expected
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 8)[3, 3].tolist() == [10, 200, 30]


def half_transparent(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """Red on the left; on the right nothing that is seen, and what `save` needs to say so."""
    pixels = np.full((8, 8, 4), [255, 0, 0, 255], np.uint8)
    pixels[:, 4:] = [0, 255, 0, 0]
    image = Image.fromarray(pixels)
    if mode == "RGBA":
        return image, {}
    if mode == "LA":
        return image.convert("LA"), {}
    if mode == "P":
        palette = Image.fromarray(np.repeat(np.array([[0] * 4 + [1] * 4], np.uint8), 8, axis=0), "P")
        palette.putpalette([255, 0, 0, 0, 255, 0])
        return palette, {"transparency": 1}
    return image.convert("RGB"), {"transparency": (0, 255, 0)}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_shows_the_background(tmp_path: Path, mode: str) -> None:
    image, options = half_transparent(mode)
    image.save(tmp_path / "x.png", **options)
    grey = [76, 76, 76]
    assert left_and_right(tmp_path / "x.png") == [grey if mode == "LA" else RED, BLUE]
    assert left_and_right(tmp_path / "x.png", "#ffffff")[1] == [255, 255, 255]
    assert left_and_right(tmp_path / "x.png", None)[1] not in (BLUE, [255, 255, 255])  # hidden, as published


def test_half_of_a_colour_mixes_with_the_background(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png", 8, "#ffffff")[4, 4].tolist() == [255, 127, 127]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    upright = Image.new("RGB", (16, 8), "red")
    upright.paste("blue", (8, 0, 16, 8))
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # EXIF 6 asks for a quarter clockwise
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turn[orientation]) if orientation in turn else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as image:
        assert image.getexif()[ExifTags.Base.Orientation] == orientation
    assert left_and_right(tmp_path / "x.png") == [RED, BLUE]


def test_the_fingerprint_changes_only_where_pixels_do(tmp_path: Path) -> None:
    """Older versions showed what transparency hides; their runs of such folders are of other data."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / name / f"{i}.png")

    def of_the_bytes() -> str:
        """The fingerprint of 0.1.0."""
        tree = find_tree(folder)
        digest = hashlib.sha256(b"a\0b")
        for path, label in (*tree.train, *tree.heldout):
            content = hashlib.sha256((folder / path).read_bytes()).hexdigest()
            digest.update(f"\n{path}\0{label}\0{content}".encode())
        return digest.hexdigest()[:12]

    assert scan(find_tree(folder)).fingerprint == of_the_bytes()
    Image.new("RGBA", (9, 9), (1, 2, 3, 255)).save(folder / "a" / "0.png")  # nothing shows through
    assert scan(find_tree(folder)).fingerprint == of_the_bytes()
    half_transparent("RGBA")[0].save(folder / "a" / "0.png")
    assert scan(find_tree(folder)).fingerprint != of_the_bytes()


def test_a_sweep_names_the_background(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in "ab":
        (folder / name).mkdir(parents=True)
        for i in range(3):
            half_transparent("RGBA")[0].save(folder / name / f"{i}.png")
    common: dict[str, Any] = {"resolution": 8, "classes": 2, "fingerprint": scan(find_tree(folder)).fingerprint}
    white, black = (Data(name="folder", background=colour, **common) for colour in (None, "#000000"))
    found = [load(data, Source(folder)).train.images[[0]][0, 4, 6].tolist() for data in (white, black)]
    assert found == [[255] * 3, [0] * 3]
    with pytest.raises(ValueError, match="background is fixed for name digits; leave it out"):
        Data(background="#000000")
    with pytest.raises(ValueError, match="should match pattern"):
        Data(name="folder", background="black", **common)


def test_a_flat_folder_has_no_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "notes.txt").write_text("x")
    main([str(tmp_path)])
    printed = dict(line.split(" = ") for line in capsys.readouterr().out.splitlines() if " = " in line)
    assert (printed["classes"], printed["labels"]) == ("1", "false")
    data = Data(name="folder", resolution=8, classes=1, labels=False, fingerprint=printed["fingerprint"].strip('"'))
    loaded = load(data, Source(tmp_path))
    assert (len(loaded.train.labels), len(loaded.heldout.labels), data.shape.classes) == (18, 2, 0)
    assert isinstance(loaded.train.images, ImageFiles)
