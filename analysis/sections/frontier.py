"""The compute-optimal frontier of every slice with enough checkpoints, and the laws of size and data."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from analysis.conditions import comparable_groups
from analysis.figures.frontier import frontier as draw_frontier
from analysis.figures.laws import best_sizes, isoflops, law_against_compute
from analysis.fit.common import CannotFitError
from analysis.frontier import find_frontier, sampled
from analysis.horizon import ends
from analysis.names import METRIC, block_name
from analysis.page import Page, Section
from analysis.printed import plain
from analysis.printed_laws import approach_table, frontier_table, law_table, law_values, optimum_table, tokens_table
from analysis.recipes import without_other_recipes
from analysis.slices import LOSS, Slice, scaling_slices
from analysis.study_laws import study_laws, with_curves

_OPENING = (
    "What the best checkpoint reaches for a budget of training or of sampling, and the law of size and images, "
    "L = E + A / M^alpha + B / I^beta, that says which model a budget is best spent on."
)


def frontier(page: Page, table: pd.DataFrame, curves: pd.DataFrame | None = None) -> None:
    """Envelope, laws and slices at equal training compute, of the metric and of the held-out loss."""
    section = page.section("frontier", "Compute-optimal frontier", _OPENING)
    page.fits |= {"frontier": [], "sampling frontier": [], "laws": []}
    for column, name in ((METRIC, "frontier"), (LOSS, "loss-frontier")):
        pieces = scaling_slices(table, column)
        for count, piece in enumerate([*pieces[:1], *(p for p in pieces[1:] if p.shapes >= 4)], start=1):
            drawn = piece.group.label == pieces[0].group.label
            if not drawn:
                why = "drawn for the way of measuring with most models only; see its table"
                page.omit(f"Figures of the compute-optimal frontier; {piece.brief}", why)
            suffix = f"-{count}" if count > 1 else ""
            _frontier(page, section, piece, curves, f"{name}{suffix}" if drawn else "")
            _laws(page, section, piece, curves, f"{name.replace('frontier', 'law')}{suffix}" if drawn else "")
    _sampling(page, section, table)


def _frontier(page: Page, section: Section, piece: Slice, curves: pd.DataFrame | None, name: str) -> None:
    """The envelope of one slice; without a name nothing is drawn."""
    rows, metric = with_curves(piece, curves), piece.metric
    label, brief = piece.label_at_any_step, piece.brief_at_any_step
    try:
        found = find_frontier(rows, piece.column)
    except CannotFitError as error:
        page.omit(f"Compute-optimal frontier of the {metric}; {brief}", str(error))
        return
    values: dict[str, Any] = {"label": label, "metric": metric, "block": piece.block, **plain(found)}
    if found.law is not None:  # its intervals would claim too much
        values["law"] = {"coefficient": found.law.coefficient, "exponent": found.law.exponent}
    if name:
        page.draw(
            section, name, f"{metric} of {found.checkpoints} checkpoints against training compute, and their envelope.",
            f"Lines join the checkpoints of a model; steps show the best reached so far.{piece.alone}",
            lambda: draw_frontier(rows, found, metric, label, piece.column, page.key),
        )  # fmt: skip
    section.tables.append(frontier_table(found, metric, brief))
    page.fits["frontier"].append(values)


def _laws(page: Page, section: Section, piece: Slice, curves: pd.DataFrame | None, name: str) -> None:
    """The laws of one slice; without a name nothing is drawn."""
    label, brief = piece.label_at_any_step, piece.brief_at_any_step
    try:
        found = study_laws(piece, curves)
    except CannotFitError as error:
        page.omit(f"The law of the {piece.metric} in size M and images I; {brief}", str(error))
        return
    for summary in found:
        for what, why in summary.omitted:
            page.omit(f"{what} of the {piece.metric} in size and images, {summary.label}; {brief}", why)
    page.fits["laws"].append({"label": label, "metric": piece.metric, "by": [law_values(one) for one in found]})
    found = [summary for summary in found if summary.approaches]
    if not found:
        return
    fitted = [summary for summary in found if summary.fit is not None]
    if fitted:
        section.tables.append(law_table(fitted))
    section.tables.append(approach_table(found))
    panels = {one.label: (one.budgets, way) for one in found if one.budgets and (way := one.approach("parabolas"))}
    if panels:
        section.tables.append(optimum_table(found))
    section.tables += [table for summary in found if (table := tokens_table(summary)) is not None]
    if not name:
        return
    words = found[0].words
    if fitted:
        chosen = max(fitted, key=lambda summary: len(summary.runs.loss) * (summary.label != "all patch sizes"))
        runs, fit = chosen.runs, chosen.fit
        assert fit is not None
        page.draw(
            section, name, f"{words.loss} of {fit.runs} checkpoints against training compute, with the law’s curves.",
            f"The law at six sizes, and at the best size for every budget; {chosen.label}.{piece.alone}",
            lambda: law_against_compute(runs, fit, words, label),
        )  # fmt: skip
        ways = chosen.approaches
        page.draw(
            section, name.replace("law", "best-size"), "The best size against training compute, by three approaches.",
            f"Envelope, parabolas and the law, {chosen.label}; the band is the law’s 95 %.{piece.alone}",
            lambda: best_sizes(ways, words, label),
        )  # fmt: skip
    if panels:
        page.draw(
            section, name.replace("law", "isoflops"), f"{words.loss} against size at equal training compute.",
            f"Each curve is one training budget; a star marks an optimum with models on both sides.{piece.alone}",
            lambda: isoflops(panels, words, label),
        )  # fmt: skip


def _sampling(page: Page, section: Section, table: pd.DataFrame) -> None:
    """The frontier against the compute of sampling one image, of every block sampled with several numbers of steps."""
    count, why = 0, "every model was sampled with one number of steps only, so compute is its size by construction"
    for group in comparable_groups(ends(table), vary=["sampling_steps"]):
        for block, cells in group.table.groupby("block", sort=False):
            swept = cells[cells.groupby("step")["sampling_steps"].transform("nunique") > 1]
            swept = without_other_recipes(swept[swept["step"] == swept["step"].max()], str(block))
            if swept.empty:
                continue
            rows, label = sampled(swept, METRIC), f"{block_name(str(block))}; {group.label}"
            try:
                found = find_frontier(rows, METRIC)
            except CannotFitError as error:
                why = str(error)
                continue
            count += 1
            page.draw(
                section, f"frontier-sampling{f'-{count}' if count > 1 else ''}",
                f"{group.metric} against the compute of sampling one image, with the lower envelope.",
                "Lines join one model at several numbers of sampler steps; at equal sampling compute a smaller model "
                f"may win. {block_name(str(block))} after {int(swept['step'].max()):,} training steps.",
                partial(draw_frontier, rows, found, group.metric, label, METRIC, page.key, "sampling"),
            )  # fmt: skip
            section.tables.append(frontier_table(found, group.metric, label, "sampling"))
            page.fits["sampling frontier"].append({"label": label, "metric": group.metric, **plain(found)})
    if not count:
        page.omit("Compute-optimal frontier against sampling compute", why)
