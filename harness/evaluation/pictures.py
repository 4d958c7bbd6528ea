"""Pictures of samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import ImageArray
from harness.files import write_atomic
from harness.runs.state import Run

#: Rows (classes, or blocks of samples) and columns of the picture of an evaluation.
GRID_ROWS, GRID_COLUMNS = 10, 10


def save_grid(run: Run, key: str, images: ImageArray, labels: NDArray[np.int64]) -> None:
    """Write a picture of samples, one row per class; noise and labels are the same in every cell of a study."""
    classes = np.unique(labels)
    if len(classes) > 1:
        rows = [np.flatnonzero(labels == c)[:GRID_COLUMNS] for c in classes[:GRID_ROWS]]
    else:
        rows = [r for r in np.array_split(np.arange(min(len(images), GRID_ROWS * GRID_COLUMNS)), GRID_ROWS) if len(r)]
    save_picture(run.grid_file(key), images, rows, GRID_COLUMNS)


def save_pairs(run: Run, key: str, samples: ImageArray, train: ImageArray, pairs: Sequence[tuple[int, int]]) -> None:
    """Write a picture of samples, and below each the training image that is nearest to it.

    `pairs` are indices of both (see `memorisation.Nearest`).
    """
    half = len(pairs) // 2
    mine, theirs = (np.array(indices) for indices in zip(*pairs, strict=True))
    shown = np.concatenate([samples[mine], train[theirs]])
    rows = [np.arange(first, first + half) for first in (0, 2 * half, half, 3 * half)]
    save_picture(run.nearest_file(key), shown, rows, half)


def save_picture(path: Path, images: ImageArray, rows: Sequence[NDArray[np.int64]], columns: int) -> None:
    """Write images (N, H, W, channels) as one PNG, small ones enlarged; a row holds the indices of its images."""
    picked = iter(images[np.concatenate(rows)])
    side, channels = images.shape[1], images.shape[3]
    scale = max(1, 32 // side)
    gap = 1
    canvas = np.full((len(rows) * (side + gap) + gap, columns * (side + gap) + gap, channels), 128, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c in range(len(row)):
            top, left = gap + r * (side + gap), gap + c * (side + gap)
            canvas[top : top + side, left : left + side] = next(picked)
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))
