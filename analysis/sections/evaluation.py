"""How far the distances can be trusted: bias, spread, floor, dependence on N, signs of memorisation."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.figures.evaluation import MEMORY, distance_against_samples, memorisation
from analysis.figures.samples import NEAREST, find_samples, sample_sheet
from analysis.names import METRIC, SHAPE, plural
from analysis.page import Page, Section, Table
from analysis.printed import row_table
from analysis.slices import Slice, scaling_slices

_OPENING = "How far the distances can be trusted: bias, spread, floor, and signs that training images are copied."
_MOST_MODELS = 12  # lines in the figure of N
_WORTH = {
    "frechet_mean_term": "Means", "frechet_cov_term": "Covariances", "frechet_bias": "Bias at N",
    "frechet_infinity": "At N = ∞", "frechet_infinity_se": "Its error", "frechet_folds_mean": "Mean of folds",
    "frechet_folds_sd": "SD of folds", "frechet_fold_samples": "N of a fold", "frechet_floor": "Floor",
}  # fmt: skip
_MEASURED = ("frechet_bias", "frechet_infinity", "frechet_folds_sd", "frechet_floor")
_MEMORY = {
    "frechet_train": "To train", "frechet_heldout": "To held-out", "copies": "Copies", "nearest_ratio": "Nearest ratio",
    "loss_train": "Loss, train", "loss_optimal_train": "Optimal, train", "loss_heldout": "Loss, held-out",
    "loss_optimal_heldout": "Optimal, held-out",
}  # fmt: skip


def evaluation(page: Page, table: pd.DataFrame, nested: pd.DataFrame) -> None:
    """How far the distances can be trusted, and whether models copy training images: of the first slice that tells."""
    section = page.section("evaluation", "What the distances are worth", _OPENING)
    _nearest(page, section, table)
    pieces = scaling_slices(table)
    if not pieces:
        return
    known = (piece for piece in pieces if piece.table["cell"].isin(nested["cell"]).any())
    _worth(page, section, _first(pieces, _MEASURED))
    _samples(page, section, next(known, pieces[0]), nested)
    _memory(page, section, _first(pieces, ("copies", "loss_optimal_train")))


def _first(pieces: Sequence[Slice], columns: Sequence[str]) -> Slice:
    """The first slice in which one of the columns was measured; otherwise the first of all."""
    return next((piece for piece in pieces if any(_measured(piece.table, column) for column in columns)), pieces[0])


def _worth(page: Page, section: Section, piece: Slice) -> None:
    if not any(_measured(piece.table, column) for column in _MEASURED):
        page.omit("Bias, spread and floor of the distance", f"they were not measured{piece.where}")
        return
    caption = (
        "The distance and its two terms. Bias: how much higher N samples of the same Gaussian score than infinitely "
        "many, to first order. At N = ∞: a line in 1/N, extrapolated. Folds: disjoint parts of the samples; being "
        f"smaller, they score higher. Floor: as many real images against the other real ones. {piece.brief}."
    )
    titles = {"samples": "N", METRIC: piece.metric}
    section.tables.append(_table(caption, piece.table, titles | _WORTH))


def _samples(page: Page, section: Section, piece: Slice, nested: pd.DataFrame) -> None:
    what = f"The {piece.metric} against the number of samples"
    if nested.empty:
        page.omit(what, "there is no nested.csv, or it has no rows")
        return
    first = piece.table.sort_values(["gmacs", "sampling_seed"], kind="stable").drop_duplicates("cell")
    if len(first) > _MOST_MODELS:
        page.omit(f"{what}, of {len(first) - _MOST_MODELS} models", f"drawn for the {_MOST_MODELS} of most compute")
        first = first.tail(_MOST_MODELS)
    keys = ["cell", "step", "evaluation"]
    about = first[[*keys, "block", "size", "depth", "width", "patch_size", "frechet_infinity"]]
    rows = nested.merge(about, on=keys, how="inner")
    page.draw(
        section, "samples-n", f"{piece.metric} at nested numbers of samples against 1/N, {len(about)} models.",
        "Values at different N do not compare: fewer samples score higher. Dashed: the line to infinitely many."
        f"{piece.alone}",
        lambda: distance_against_samples(rows, piece.metric, piece.label, page.key),
    )  # fmt: skip


def _memory(page: Page, section: Section, piece: Slice) -> None:
    for panel, name in (("distance", "distance to both splits"), ("copies", "share of copies")):
        if not any(_measured(piece.table, column) for column in MEMORY[panel]):
            page.omit(f"Memorisation: the {name}", f"it was not measured{piece.where}")
    if not _measured(piece.table, "loss_optimal_train"):
        page.omit("Memorisation: the loss against the optimal denoiser", f"it was not measured{piece.where}")
    means = [column for column in _MEMORY if _measured(piece.table, column)]
    models = piece.table.groupby(SHAPE, dropna=False)
    rows = piece.table.assign(**{column: models[column].transform("mean") for column in means}).drop_duplicates(SHAPE)
    page.draw(
        section, "memorisation", f"Train against held-out images, {len(rows)} models against Gflops.",
        "Signs of memorisation: samples nearer to the train images than to the held-out ones, copies, and a loss on "
        f"train images near that of the optimal denoiser, which knows only them. Means over seeds.{piece.alone}",
        lambda: memorisation(rows, piece.metric, piece.label),
    )  # fmt: skip
    if {"frechet_heldout", "copies", "loss_optimal_train"} & set(means):
        caption = f"Train against held-out images. {piece.brief}."
        section.tables.append(_table(caption, piece.table, _MEMORY))


def _nearest(page: Page, section: Section, table: pd.DataFrame) -> None:
    """Samples beside their nearest training images: of a small, a middle and the largest model."""
    cells = table.drop_duplicates("cell").sort_values(["gmacs", "seed"], kind="stable").drop_duplicates(SHAPE)
    pictures = find_samples(page.folder, cells, NEAREST)
    shown = cells[cells["cell"].isin(list(pictures))]
    if shown.empty:
        return
    shown = shown.iloc[sorted({0, len(shown) // 2, len(shown) - 1})]
    page.draw(
        section, "nearest", f"Samples and their nearest training images, {plural(len(shown), 'model')}.",
        "Copying would be visible here. Rows 1 and 3 of each panel are samples, rows 2 and 4 the training image that "
        "is nearest to each in the features: above the ten samples that are most alike, below ten others.",
        lambda: sample_sheet(pictures, shown, "Samples (rows 1, 3), nearest training images (rows 2, 4)"),
    )  # fmt: skip


def _measured(rows: pd.DataFrame, column: str) -> bool:
    return column in rows and bool(rows[column].notna().any())


def _table(caption: str, rows: pd.DataFrame, titles: dict[str, str]) -> Table:
    seeds = {"sampling_seed": "Sampling seed"} if rows["sampling_seed"].nunique() > 1 else {}
    return row_table(caption, rows, {"name": "Model", "block": "Block"} | seeds | titles)
