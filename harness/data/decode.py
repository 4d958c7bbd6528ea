"""From a decoded image file to RGB with 8 bits a channel. Imports no torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Pillow's modes of at most 8 bits a channel; it converts them by their range, and drops transparency.
_BYTE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")

#: TIFF's tags, and the photometric interpretation under which 0 is black.
_BITS, _PHOTOMETRIC, _BLACK_IS_ZERO = 258, 262, 1


class PixelModeError(ValueError):
    """The range of the pixels is not known."""


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image as RGB; grey levels of 16 bits are divided by 257, so that 65535 becomes 255.

    Raises:
        PixelModeError: pixels of another range; clipping them would be silently wrong.
    """
    image.load()
    if image.mode in _BYTE_MODES:
        return image.convert("RGB")
    if _is_sixteen_bits(image):
        levels: NDArray[np.float64] = np.rint(np.asarray(image, dtype=np.float64) / 257)
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    raise PixelModeError(f"pixel mode {image.mode}, whose range is not known; allowed: 8 bits a channel")


def _is_sixteen_bits(image: Image.Image) -> bool:
    """Whether the levels are 0 to 65535 from black to white; a mode alone does not say so."""
    if image.mode.startswith("I;16"):
        tags = getattr(image, "tag_v2", None)
        if tags is None:
            return image.format == "PNG"
        return bool(tags.get(_BITS) == (16,) and tags.get(_PHOTOMETRIC) == _BLACK_IS_ZERO)
    return image.mode == "I" and image.format in ("PNG", "PPM")
