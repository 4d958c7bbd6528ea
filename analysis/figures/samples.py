"""A contact sheet of generated images: rows are sizes, columns are patch sizes (paper's Figure 7)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.style import WIDTH, CannotDrawError, styled, title
from analysis.table import block_name, size_order

Image8 = npt.NDArray[np.uint8]


def find_samples(folder: Path, cells: pd.DataFrame) -> dict[str, Path]:
    """Which picture in `folder`/samples shows which cell.

    A picture belongs to the cell whose id is in its file's name, or else to the one whose name is the file's stem. Of
    several pictures of a cell the last in order of name is taken. Pictures of no known cell are left out.

    Args:
        folder: of a study.
        cells: rows with cell and name.

    Returns:
        Cell id to path, in the order of the table.
    """
    pictures = sorted((folder / "samples").glob("*.png"))
    found: dict[str, Path] = {}
    for cell, name in cells[["cell", "name"]].drop_duplicates().itertuples(index=False):
        own = [p for p in pictures if cell in p.stem] or [p for p in pictures if p.stem == name]
        if own:
            found[str(cell)] = own[-1]
    return found


@styled
def sample_sheet(pictures: Mapping[str, Path], cells: pd.DataFrame, caption: str) -> Figure:
    """The pictures as a grid of sizes by patch sizes where each place has one at most, as a labelled list otherwise.

    Args:
        pictures: cell id to PNG file, see `find_samples`.
        cells: rows with cell, name, block, size, depth, width, patch_size, seed.
        caption: how the images were sampled.

    Raises:
        CannotDrawError: no pictures, or none that can be read.
    """
    shown = cells.drop_duplicates("cell")
    shown = shown[shown["cell"].isin(list(pictures))]
    images = {cell: image for cell in shown["cell"] if (image := _read(pictures[cell])) is not None}
    shown = shown[shown["cell"].isin(list(images))]
    if shown.empty:
        raise CannotDrawError("there are no sample pictures of these cells in samples/")
    sizes = size_order(shown)
    patches = sorted({int(patch) for patch in shown["patch_size"]}, reverse=True)
    is_grid = not shown.duplicated(["size", "patch_size"]).any() and len(shown) > 1
    columns = len(patches) if is_grid else min(3, len(shown))
    rows = len(sizes) if is_grid else -(-len(shown) // columns)
    aspect = float(np.mean([image.shape[0] / image.shape[1] for image in images.values()]))
    figure = Figure(figsize=(WIDTH, 0.7 + rows * (WIDTH / columns * aspect * 0.9 + 0.2)), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    row: Any
    for index, row in enumerate(shown.itertuples()):
        if is_grid:
            at = grid[sizes.index(str(row.size)), patches.index(int(row.patch_size))]
        else:
            at = grid[index // columns, index % columns]
            at.set_title(_label(row, shown), fontsize=7)
        _show(at, images[str(row.cell)])
    if is_grid:
        for axes, patch in zip(grid[0], patches, strict=True):
            axes.set_title(f"patch {patch}", fontsize=9)
        for axes, size in zip(grid[:, 0], sizes, strict=True):
            axes.text(-0.02, 0.5, size, transform=axes.transAxes, rotation=90, ha="right", va="center", fontsize=9)
    title(figure, "Samples", caption)
    return figure


def _label(row: Any, shown: pd.DataFrame) -> str:
    parts = [f"{row.size}/{row.patch_size}"]
    if shown["block"].nunique() > 1:
        parts.append(block_name(row.block))
    if shown["seed"].nunique() > 1:
        parts.append(f"seed {row.seed}")
    return ", ".join(parts)


def _show(axes: Axes, image: Image8) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def _read(path: Path) -> Image8 | None:
    """A picture as bytes, [h, w] or [h, w, 3]; None where the file is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB"))
    except (OSError, UnidentifiedImageError):
        return None
