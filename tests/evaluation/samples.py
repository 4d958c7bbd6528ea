"""Read an npz of samples, as evaluators of the ADM suite do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import InputError
from harness.evaluation import adm


def read_samples(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, H, W, C) and labels (N,), zeros where the file has none, of an npz of samples.

    Raises:
        InputError: not there, not whole, or no uint8 images in `arr_0`.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    found = adm.headers(path)
    if adm.IMAGES not in found:
        raise InputError(f"{path}: no samples, it lacks {adm.IMAGES} (has {', '.join(found) or 'nothing'})")
    shape, dtype = found[adm.IMAGES]
    if dtype != np.uint8 or len(shape) != 4:
        raise InputError(f"{path}: {adm.IMAGES} is {dtype} {shape}, wanted uint8 (N, H, W, C)")
    images = adm._read(path, adm.IMAGES)
    labels = adm._read(path, adm.LABELS) if adm.LABELS in found else np.zeros(len(images), dtype=np.int64)
    return images, labels.astype(np.int64)
