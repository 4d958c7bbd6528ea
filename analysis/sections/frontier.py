"""The compute-optimal frontier of every slice with enough checkpoints."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.figures.frontier import frontier as draw_frontier
from analysis.figures.frontier import isoflops
from analysis.fit.common import CannotFitError
from analysis.frontier import IsoFlop, checkpoints, find_frontier, isoflop_slices
from analysis.names import METRIC
from analysis.page import Page, Section
from analysis.printed import frontier_table, isoflop_table, plain
from analysis.slices import LOSS, Slice, scaling_slices

_OPENING = "What the best checkpoint reaches for a training budget, and which model it is."


def frontier(page: Page, table: pd.DataFrame) -> None:
    """Envelope and slices at equal training compute, of the metric and of the held-out loss."""
    section = page.section("frontier", "Compute-optimal frontier", _OPENING)
    page.fits["frontier"] = []
    for column, name in ((METRIC, "frontier"), (LOSS, "loss-frontier")):
        pieces = scaling_slices(table, column)
        for count, piece in enumerate([*pieces[:1], *(p for p in pieces[1:] if p.shapes >= 4)], start=1):
            drawn = piece.group.label == pieces[0].group.label
            if not drawn:
                why = "drawn for the way of measuring with most models only; see its table"
                page.omit(f"Figures of the compute-optimal frontier; {piece.brief}", why)
            _frontier(page, section, piece, f"{name}{f'-{count}' if count > 1 else ''}", drawn)


def _frontier(page: Page, section: Section, piece: Slice, name: str, drawn: bool) -> None:
    rows, metric = checkpoints(piece), piece.metric
    label, brief = piece.label_at_any_step, piece.brief_at_any_step
    try:
        found = find_frontier(piece)
    except CannotFitError as error:
        page.omit(f"Compute-optimal frontier of the {metric}; {brief}", str(error))
        return
    values: dict[str, Any] = {"label": label, "metric": metric, "block": piece.block, **plain(found)}
    if found.law is not None:  # its intervals would claim too much
        values["law"] = {"coefficient": found.law.coefficient, "exponent": found.law.exponent}
    draw = page.draw if drawn else lambda *_: None
    draw(
        section, name, f"{metric} of {found.checkpoints} checkpoints against training compute, with their envelope.",
        f"Lines join the checkpoints of a model; steps show the best reached so far.{piece.alone}",
        lambda: draw_frontier(rows, found, metric, label, piece.column, page.key),
    )  # fmt: skip
    section.tables.append(frontier_table(found, metric, brief))
    slices: list[IsoFlop] = []
    try:
        slices = isoflop_slices(piece)
    except CannotFitError as error:
        page.omit(f"Slices at equal training compute, {metric}; {brief}", str(error))
    if slices:
        draw(
            section, name.replace("frontier", "isoflops"),
            f"{metric} against Gflops at {len({s.train_gmacs for s in slices})} training budgets.",
            "Each curve is one training budget, interpolated between checkpoints; a star marks an enclosed optimum."
            f"{piece.alone}",
            lambda: isoflops(slices, metric, label),
        )  # fmt: skip
        section.tables.append(isoflop_table(slices, metric))
    values["isoflop slices"] = [{**plain(s), "best": s.best} for s in slices]
    page.fits["frontier"].append(values)
