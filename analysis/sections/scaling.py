"""Fits and figures of the metric and of the held-out loss against compute."""

from __future__ import annotations

import pandas as pd

from analysis import printed
from analysis.figures.metrics import all_metrics
from analysis.figures.quality import held_out_errors, residual_maps
from analysis.figures.scaling import bubbles, metric_against_gflops, training_compute
from analysis.fit.common import CannotFitError
from analysis.fit.lines import Correlation, correlate
from analysis.names import METRIC, METRICS, block_name, plural
from analysis.numbers import number
from analysis.page import Page, Section
from analysis.recipes import without_other_recipes
from analysis.slices import LOSS, Slice, per_shape, scaling_slices
from analysis.study import SliceFits, fit_slice
from harness.runs.columns import printed_title

_OPENINGS = {
    METRIC: "How the distance between generated and real images falls as a forward pass of the model costs more.",
    LOSS: "The same for the denoising loss of the EMA weights on held-out images, which needs no samples.",
}


def scaling(page: Page, table: pd.DataFrame, column: str = METRIC) -> list[SliceFits]:
    """Fits and figures of a metric against compute, for the largest slice and all others that have enough rows.

    Returns:
        The fits, those of the first slice first; empty where nothing was measured.
    """
    is_loss = column == LOSS
    name, title = ("loss", "The held-out loss") if is_loss else ("scaling", "What compute buys")
    section = page.section(name, title, _OPENINGS[column])
    key = "loss slices" if is_loss else "slices"
    page.fits[key] = []
    pieces = scaling_slices(table, column)
    drawn: set[str] = set()  # studies
    if not pieces:
        what = "held-out loss" if is_loss else "metric"
        page.omit(f"The {what} against compute", f"no row has a {what}")
    fitted = []
    for index, piece in enumerate(pieces):
        count = len(per_shape(piece.table, column))
        if index and count < 4:
            why = f"{plural(count, 'shape')}; a fit of the metric against compute needs at least 4"
            page.omit(f"Fit of {piece.brief}", why)
            if column == METRIC and not drawn >= set(piece.table["study"]):
                drawn |= _points(page, section, piece, f"-{index + 1}")
            continue
        _note_absent(page, piece)
        found = fit_slice(piece)
        for what, why in found.omitted:
            page.omit(what, why)
        _figures(page, section, found, f"-{index + 1}" if index else "")
        drawn |= _studies(piece)
        _tables(section, found)
        page.fits[key].append(printed.slice_values(found))
        fitted.append(found)
    return fitted


def _studies(piece: Slice) -> set[str]:
    """The studies whose rows are points of a slice's figures."""
    others = _other_blocks(piece)
    return set(piece.table["study"]) | (set() if others is None else set(others["study"]))


def _points(page: Page, section: Section, piece: Slice, suffix: str) -> set[str]:
    """The models of a study that stand in no other figure, apart and without a fit; returns the studies drawn."""
    rows = per_shape(piece.table)
    page.draw(
        section, f"metric-vs-gflops{suffix}", f"Scatter plot of {piece.metric} against Gflops; {piece.brief}.",
        f"Shown apart, too few for a fit: {piece.brief}.",
        lambda: metric_against_gflops(rows, piece.metric, piece.label, key=page.key),
    )  # fmt: skip
    return set(piece.table["study"])


def _note_absent(page: Page, piece: Slice) -> None:
    """Name the cells of the slice's block without a value at its step, and those whose value has no logarithm."""
    cells = piece.group.table[piece.group.table["block"] == piece.block]
    for cell in cells[~cells["cell"].isin(piece.table["cell"])].drop_duplicates("cell").itertuples():
        page.omit(f"{cell.name} in the scaling fit", f"it has no {piece.metric} at step {piece.step:,}")
    for row in piece.table[piece.table[piece.column] <= 0].itertuples():
        value = number(getattr(row, piece.column))
        page.omit(f"Fits of {piece.brief}", f"the {piece.metric} of {row.name} is {value}, which has no logarithm")


def _tables(section: Section, found: SliceFits) -> None:
    for wanted, table in (
        (found.fits, printed.fit_table), (found.ranking, printed.ranking_table), (found.held, printed.held_table),
        (found.forecasts, printed.forecast_table), (found.slopes, printed.slope_table),
        (found.residuals, printed.residual_table), (found.pairs, printed.pair_table),
        (found.repeats > 1, printed.seed_table),
    ):  # fmt: skip
        if wanted:
            section.tables.append(table(found))


def _figures(page: Page, section: Section, found: SliceFits, suffix: str) -> None:
    piece, rows, label, correlation = found.piece, found.rows, found.label, found.correlation
    metric, column = piece.metric, piece.column
    start, others = "loss" if column == LOSS else "metric", _other_blocks(piece)
    r = f" Correlation with the logarithm of compute: {correlation.semilog:.2f}." if correlation else ""
    line = "semi-log line" if found.lines["semi-log"] is not None else "too few models for a line"
    fitted = " The line is that of" if found.lines["semi-log"] is not None else ""
    beside = f"{fitted} {block_name(piece.block)}." if others is not None and fitted else ""
    alt = f"Scatter plot of {metric} against Gflops on a log axis for {len(rows)} models.{r}"
    page.draw(
        section, f"{start}-vs-gflops{suffix}", alt, f"As the paper’s Figure 8: linear metric, {line}.{beside}",
        lambda: metric_against_gflops(
            rows, metric, label, found.lines["semi-log"], correlation, column, page.key, others
        ),
    )  # fmt: skip
    law = found.lines["power law"]
    if law is not None:
        page.draw(
            section, f"{start}-vs-gflops-log{suffix}",
            f"Scatter plot of {metric} against Gflops on two log axes, with the power law {law.equation(metric)}.",
            f"Two log axes, with the power law.{beside}",
            lambda: metric_against_gflops(rows, metric, label, law, correlation, column, page.key, others),
        )  # fmt: skip
    if suffix:
        return  # the other slices have only these two figures, and tables
    if column == METRIC:
        page.draw(
            section, f"bubbles{suffix}",
            f"Bubble chart of {metric} of {len(rows)} models by patch size and size; bubble area shows Gflops.",
            f"As the paper’s Figure 2, left.{piece.alone}",
            lambda: bubbles(rows, metric, label, page.key),
        )  # fmt: skip
        page.draw(
            section, f"training-compute{suffix}", f"{metric} against training compute, one point per checkpoint.",
            f"As the paper’s Figure 9.{piece.alone}",
            lambda: training_compute(per_shape(piece.checkpoints), metric, piece.label_at_any_step, page.key),
        )  # fmt: skip
    page.draw(
        section, f"{start}-residuals{suffix}", f"Maps of the residuals of {len(found.residuals)} forms, in percent.",
        f"Rows or columns of one colour are what a form cannot describe.{piece.alone}",
        lambda: residual_maps(rows, found.residuals, metric, label),
    )  # fmt: skip
    page.draw(
        section, f"{start}-held-out{suffix}", "Mean absolute error of every form on models left out, in percent.",
        f"Forms are judged by what they predict of models they have not seen.{piece.alone}",
        lambda: held_out_errors(found.held, metric, label),
    )  # fmt: skip


def _other_blocks(piece: Slice) -> pd.DataFrame | None:
    """The models of the other block designs at the slice's step, seeds averaged; None where there are none."""
    rows = without_other_recipes(piece.siblings, piece.block)
    rows = rows[(rows["block"] != piece.block) & (rows["step"] == piece.step)]
    return None if rows.empty else per_shape(rows, piece.column)


def metrics(page: Page, table: pd.DataFrame) -> None:
    """Every metric of the generated images against compute, once per way of measuring."""
    opening = "Every metric of the generated images against training compute and against Gflops."
    section = page.section("metrics", "Other metrics", opening)
    first: dict[str, Slice] = {}
    for piece in scaling_slices(table):
        first.setdefault(piece.group.label, piece)
    for count, piece in enumerate(first.values(), start=1):
        names = {column: printed_title(column, piece.group.conditions["extractor"]) for column in METRICS}
        what = "Figure 12 (metrics against compute)"
        for column, name in names.items():
            if column not in table or table[column].isna().all():
                page.omit(f"{name} in {what}", f"it was not measured{piece.where}")
        correlations = {column: r for column in names if (r := _correlation(piece, column)) is not None}
        page.draw(
            section, f"metrics{f'-{count}' if count > 1 else ''}",
            f"{', '.join(names.values())} against training compute and against Gflops.",
            f"As the paper’s Figure 12{'; r is with the logarithm of Gflops' * bool(correlations)}.{piece.alone}",
            lambda p=piece, n=names, c=correlations: all_metrics(p.checkpoints, p.table, n, p.label, c, page.key),  # type: ignore[misc]
        )  # fmt: skip


def _correlation(piece: Slice, column: str) -> Correlation | None:
    rows = per_shape(piece.table[piece.table[column].notna()], column)
    try:
        return correlate(rows["gmacs"].to_numpy(float), rows[column].to_numpy(float))
    except CannotFitError:
        return None
