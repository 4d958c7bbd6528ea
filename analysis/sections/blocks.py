"""The designs side by side: blocks, networks, objectives."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from analysis.compare import BlockComparison, block_slopes, compare_blocks, describe
from analysis.conditions import Group, comparable_groups
from analysis.figures.blocks import block_bars, block_curves
from analysis.names import BASELINE, METRIC, block_name, design_noun, slug
from analysis.page import Page, Section
from analysis.printed import block_slope_table, block_table, plain
from analysis.recipes import not_compared, without_other_recipes
from analysis.slices import scaling_slices, variants
from harness.runs.columns import MATCHED

_OPENING = (
    "Each design (block, network or objective) against adaLN-Zero at the same shape, batch, recipe and training step; "
    f"a network of another kind against the DiT whose Gflops are nearest, at most {100 * MATCHED:.0f} % apart, at a "
    "learning rate of its own where it has one."
)
_MOST_SHAPES = 4  # shapes with figures of their own, the largest first


def blocks(page: Page, table: pd.DataFrame) -> list[BlockComparison]:
    """The designs side by side, at every shape and step where the baseline was also measured.

    Returns:
        The comparisons of the rows that the answers are about, at the last step of each shape.
    """
    noun = design_noun(table)
    section = page.section("blocks", "Block designs" if noun == "block" else "Designs", _OPENING)
    page.fits["blocks"], page.fits["block slopes"] = [], []
    if table["block"].nunique() < 2:
        only = block_name(table["block"].iloc[0])
        page.omit("The block comparison", f"the table holds one block design only ({only})")
        return []
    lead_found: list[BlockComparison] = []
    for whole in comparable_groups(table):
        for apart in not_compared(whole.table):
            page.omit(
                f"{block_name(apart.block)} against {block_name(BASELINE)} at {apart.shape}",
                f"not compared: {apart.reason}",
            )
    lead = next((piece.table.index[0] for piece in scaling_slices(table)), None)
    parts = [(group, name, rows) for group in comparable_groups(table) for name, rows in variants(group.table)]
    for whole, name, own in sorted(parts, key=lambda part: lead not in part[2].index):
        group, label = replace(whole, table=own), "; ".join(filter(None, (name, whole.label)))
        brief = "; ".join(filter(None, (name, whole.brief)))
        found = compare_blocks(own)
        if not found:
            continue
        section.tables.append(block_table(found, group.metric, brief))
        if slopes := block_slopes(own):
            section.tables.append(block_slope_table(slopes, brief))
            page.fits["block slopes"] += [{**plain(s), "conditions": dict(group.conditions)} for s in slopes]
        about = {"metric_name": group.metric, "conditions": dict(group.conditions)}
        page.fits["blocks"] += [{**plain(c), "ratio": c.ratio, **about} for c in found]
        final = {c.shape: max(d.step for d in found if d.shape == c.shape) for c in found}
        last = [c for c in found if c.step == final[c.shape]]
        section.paragraphs += [f"{describe(c, group.metric)}." for c in last] if not lead_found else []
        compute = {c.shape: c.gmacs for c in found}
        largest = sorted(final, key=lambda shape: -compute[shape])[:_MOST_SHAPES]
        if lead_found:
            why = "drawn for the rows that the answers are about; see its table"
            page.omit(f"Figures of the designs; {brief}", why)
            continue
        lead_found = last
        if len(largest) < len(final):
            others = ", ".join(shape for shape in final if shape not in largest)
            page.omit(f"Figures of the designs at {others}", "drawn for the largest shapes only; see the table")
        suffixes = {shape: f"-{slug(shape)}" if len(final) > 1 else "" for shape in largest}
        for shape, suffix in suffixes.items():
            _block_figures(page, section, group, label, shape, final[shape], found, suffix)
        if lead in own.index:
            page.front_names = _front(suffixes[largest[0]])
    if not lead_found:
        why = f"no design was measured at the same shape and step as {block_name(BASELINE)}"
        page.omit("The block comparison", why)
    return lead_found


def _block_figures(
    page: Page, section: Section, group: Group, label: str, shape: str, step: int, found: list[BlockComparison],
    suffix: str,
) -> None:  # fmt: skip
    same = without_other_recipes(group.table[group.table["place"] == shape])
    rows = same[same["step"] == step]
    here = [c for c in found if c.shape == shape and c.step == step]
    values = ", ".join(f"{block_name(c.block)} {c.metric:.4g}" for c in here)
    caption = f"{shape} at step {step:,}."
    if rows.groupby("block")[METRIC].count().max() > 1:
        caption += " Bars: geometric means; ±: one standard deviation; dots: the seeds."
    if any(c.multiplier is not None and c.conclusive for c in here):
        caption += f" × compute: Gflops over those of {block_name(BASELINE)} that is as good."
    page.draw(
        section, f"blocks{suffix}",
        f"Bars of {group.metric} at {shape}: {block_name(BASELINE)} {here[0].baseline_metric:.4g}, {values}.", caption,
        lambda: block_bars(rows, group.metric, f"{shape}, {step:,} steps; {label}", here),
    )  # fmt: skip
    seeds = same.groupby("block")["cell"].nunique().max() > 1
    page.draw(
        section, f"blocks-over-steps{suffix}", f"{group.metric} of the designs over training steps at {shape}.",
        f"As the paper’s Figure 5.{' Thick: means; faint: the seeds.' if seeds else ''}",
        lambda: block_curves(same, group.metric, shape, f"{shape}; {label}"),
    )  # fmt: skip


def _front(suffix: str) -> tuple[str, ...]:
    """The figures that show the verdict, by preference."""
    return f"blocks{suffix}", "metric-vs-gflops-log", f"blocks-over-steps{suffix}", "metric-vs-gflops"
