"""From a decoded image file to RGB with 8 bits a channel, upright and opaque. Imports no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

#: Pillow's modes of at most 8 bits a channel; it converts them by their range.
_BYTE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")

#: TIFF's tags, and the photometric interpretation under which 0 is black.
_BITS, _PHOTOMETRIC, _BLACK_IS_ZERO = 258, 262, 1


class PixelModeError(ValueError):
    """The range of the pixels is not known."""


#: Behind transparent images, unless the sweep says otherwise.
WHITE = "#ffffff"


def to_rgb(image: Image.Image, background: str | None = WHITE) -> Image.Image:
    """An opened image as RGB; grey levels of 16 bits are divided by 257, so that 65535 becomes 255.

    Args:
        image: as Pillow opened it.
        background: a transparent image is laid over this colour, and one that EXIF calls rotated is turned upright.
            None: transparency and EXIF do not count, as in the published code for ImageNet.

    Raises:
        PixelModeError: pixels of another range; clipping them would be silently wrong.
    """
    image.load()
    sixteen_bits = _is_sixteen_bits(image)  # known from the file alone, before any transformation
    if not sixteen_bits and image.mode not in _BYTE_MODES:
        raise PixelModeError(f"pixel mode {image.mode}, whose range is not known; allowed: 8 bits a channel")
    if background is not None and is_rotated(image):
        image = ImageOps.exif_transpose(image)
    if sixteen_bits:
        levels: NDArray[np.float64] = np.rint(np.asarray(image, dtype=np.float64) / 257)
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if background is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def is_rotated(image: Image.Image) -> bool:
    """Whether EXIF says that an opened image is not upright; EXIF that cannot be read says nothing."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # Pillow raises errors of many kinds on damaged EXIF
        return False


def is_transparent(image: Image.Image) -> bool:
    """Whether a pixel of an opened image is not opaque."""
    if not image.has_transparency_data:
        return False
    alpha: NDArray[np.uint8] = np.asarray(image.convert("RGBA").getchannel("A"))
    return bool((alpha < 255).any())


def _is_sixteen_bits(image: Image.Image) -> bool:
    """Whether the levels are 0 to 65535 from black to white; a mode alone does not say so."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", None)
        if tags is None:
            return image.format == "PNG"
        return bool(tags.get(_BITS) == (16,) and tags.get(_PHOTOMETRIC) == _BLACK_IS_ZERO)
    return image.mode == "I" and image.format in ("PNG", "PPM")
