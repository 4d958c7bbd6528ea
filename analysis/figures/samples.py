"""A contact sheet of generated images: rows are sizes, columns are patch sizes (paper's Figure 7)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from analysis.figures.style import DPI, WIDTH, CannotDrawError, Drawing, finish, styled
from analysis.names import SHAPE, block_name, patch_order, shape_name, size_order
from analysis.trainings import training_of

Image8 = npt.NDArray[np.uint8]


#: Folders of pictures, below that of a study: of samples, and of samples beside their nearest training images.
SAMPLES, NEAREST = "samples", "samples/nearest"


def find_samples(folder: Path, cells: pd.DataFrame, where: str = SAMPLES) -> dict[str, Path]:
    """Which picture in a folder of a study shows which cell.

    A picture belongs to the cell whose id is in the file name, or else to the cell whose name is the file's stem. Of
    several pictures of a cell, the last by name is taken. Pictures of unknown cells are left out.

    Args:
        folder: of a study.
        cells: rows with cell and name.
        where: `SAMPLES` or `NEAREST`.

    Returns:
        Cell id to path, in the order of the table.
    """
    pictures = sorted((folder / where).glob("*.png"))
    named = {p.stem: p for p in pictures}
    ending = {p.stem.rpartition("-")[2]: p for p in pictures}  # as `collect` names them
    found: dict[str, Path] = {}
    for cell, name in cells[["cell", "name"]].drop_duplicates().itertuples(index=False):
        own = ending.get(cell) or next((p for p in reversed(pictures) if cell in p.stem), named.get(name))
        if own:
            found[str(cell)] = own
    return found


@styled
def sample_sheet(pictures: Mapping[str, Path], cells: pd.DataFrame, caption: str) -> Drawing:
    """The pictures as a grid of sizes by patch sizes if each place has at most one, otherwise as a labelled list.

    Args:
        pictures: cell id to PNG file, see `find_samples`.
        cells: rows with cell, name, block, size, depth, width, patch_size, seed, and gmacs, which orders a list.
        caption: how the images were sampled.

    Raises:
        CannotDrawError: no pictures, or none that can be read.
    """
    shown = cells.drop_duplicates("cell")
    read = {cell: _read(pictures[cell]) for cell in shown["cell"] if cell in pictures}
    images = {cell: image for cell, image in read.items() if image is not None}
    shown = shown[shown["cell"].isin(list(images))]
    if shown.empty:
        raise CannotDrawError("there are no sample pictures of these cells in samples/")
    order = ["gmacs", "block", "seed"] if "gmacs" in shown else ["block", "seed"]
    shown = shown.sort_values(order, kind="stable")
    sizes = size_order(shown)
    patches = patch_order(shown)
    is_grid = bool(shown["patch_size"].notna().all()) and not shown.duplicated(SHAPE).any() and len(shown) > 1
    columns = len(patches) if is_grid else min(3, len(shown))
    aspect = float(np.mean([image.shape[0] / image.shape[1] for image in images.values()]))
    rows = len(sizes) if is_grid else -(-len(shown) // columns)
    shown = shown.assign(training=training_of(shown))
    parts = [_label(row, shown) for row in shown.itertuples()]
    short = max(len(", ".join(words)) for words in parts) <= 66 // columns
    lines_of = [[", ".join(words)] if short else [", ".join(words[:-1]), words[-1]] for words in parts]
    labels = ["\n".join(textwrap.fill(line, 63 // columns) for line in lines if line) for lines in lines_of]
    lines = max(label.count("\n") + 1 for label in labels)
    pitch = aspect + (0.02 if is_grid else 0.035 * columns * lines)  # of a row, in widths of a column; room for labels
    figure = Drawing((WIDTH, 0.25 + rows * pitch * (WIDTH - 0.2) / columns), DPI, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.02, columns), ylim=(rows * pitch, -0.035 * columns * lines), aspect="equal")
    axes.set_axis_off()
    row: Any
    for index, row in enumerate(shown.itertuples()):
        line, column = divmod(index, columns)
        if is_grid:
            line, column = sizes.index(str(row.size)), patches.index(int(row.patch_size))
        else:
            axes.text(column + 0.49, line * pitch - 0.01, labels[index], fontsize=5.5, ha="center", va="bottom")
        _show(axes, images[str(row.cell)], column, line * pitch, aspect)
    if is_grid:
        for column, patch in enumerate(patches):
            axes.text(column + 0.49, -0.01, f"patch {patch}", fontsize=6.5, ha="center", va="bottom")
        for line, size in enumerate(sizes):
            axes.text(-0.02, line * pitch + aspect / 2, size, rotation=90, fontsize=6.5, ha="right", va="center")
    return finish(figure, "Samples", caption)


@styled
def single_picture(path: Path, caption: str) -> Drawing:
    """One picture alone, as wide as a column.

    Raises:
        CannotDrawError: there is none, or it cannot be read.
    """
    image = _read(path)
    if image is None:
        raise CannotDrawError(f"there is no picture {path.parent.name}/{path.name}, or it cannot be read")
    aspect = image.shape[0] / image.shape[1]
    figure = Drawing((WIDTH, 0.05 + aspect * (WIDTH - 0.1)), DPI, layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(aspect, 0), aspect="equal")
    axes.set_axis_off()
    _show(axes, image, 0, 0, aspect)
    return finish(figure, "Reconstructions", caption)


def _label(row: Any, shown: pd.DataFrame) -> list[str]:
    """The words that tell a picture from the others: shape, block, seed."""
    parts = {shape_name(row.size, row.patch_size): True}
    parts |= {
        block_name(row.block): shown["block"].nunique() > 1,
        f"seed {row.training}": shown["training"].nunique() > 1,
    }
    return [part for part, needed in parts.items() if needed]


def _show(axes: Axes, image: Image8, left: float, top: float, aspect: float) -> None:
    """Draw the picture as large as fits into a place of width 0.98 and height 0.98 * aspect."""
    height, width = image.shape[:2]
    scale = 0.98 * min(1 / width, aspect / height)
    left, right = left + (0.98 - scale * width) / 2, left + (0.98 + scale * width) / 2
    extent = (left, right, top + scale * height, top)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)


def _read(path: Path) -> Image8 | None:
    """A picture as uint8, [h, w] or [h, w, 3]; None if the file is not a picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L" if picture.mode in ("1", "L", "I;16") else "RGB"))
    except (OSError, UnidentifiedImageError):
        return None
