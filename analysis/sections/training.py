"""The metric and the losses over training steps, and the metric against sampling compute."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.conditions import Group, comparable_groups
from analysis.figures.guidance import chosen_scales
from analysis.figures.scaling import guidance, sampling_compute
from analysis.figures.style import CannotDrawError
from analysis.figures.training import loss_with_zoom, over_steps
from analysis.guidance import Choice
from analysis.horizon import decays
from analysis.names import DEFAULT_OBJECTIVE, METRIC, SHAPE, loss_name, slug
from analysis.page import Page, Section
from analysis.printed_guidance import choice_table

#: Lines in the figure of chosen scales.
_MOST_CHOICES = 12


def training(page: Page, table: pd.DataFrame, curves: pd.DataFrame | None) -> None:
    """The metric and the losses over training steps. `curves` is None for the published numbers, which have none."""
    section = page.section(
        "training", "Over training", "Whether more steps still help, and whether train and held-out loss part."
    )
    if decays(table):
        text = "Where the learning rate falls to 0, a point before the end is not what a shorter training would reach."
        section.paragraphs.append(text)
    groups = comparable_groups(table)
    for index, group in enumerate(groups):
        shapes = group.table.drop_duplicates(SHAPE)
        if len(shapes) == 1 and group.table["block"].nunique() > 1:
            continue  # the block section shows it
        heading = f"{group.metric} over training"
        for panel, what in (("patch_size", ""), ("size", "-by-size")):
            axis = f"{group.metric} (lower is better)"
            try:
                columns = {METRIC: group.metric}
                figure = over_steps(group.table, columns, axis, heading, group.label, panel=panel, key=page.key)
            except CannotDrawError as error:
                page.omit(f"{heading} steps{', a panel per size' if what else ''}{_after(group)}", str(error))
                break
            name = f"metric-over-steps{what}{f'-{index + 1}' if index else ''}"
            caption = f"As the paper’s Figure 6, {'lower' if what else 'upper'} row."
            page.draw(section, name, f"{heading}, one line per cell.", caption, lambda f=figure: f)  # type: ignore[misc]
    if curves is None:
        return
    if curves.empty:
        page.omit("The losses over training steps (Figure 13)", "there is no curves.csv, or it has no rows")
        return
    about = ["size", "depth", "width", "block", "patch_size", "seed", "objective"]
    cells = table.drop_duplicates("cell").set_index("cell")[about]
    known = curves.join(cells, on="cell", how="inner")
    for name in sorted(set(curves["name"][~curves["cell"].isin(cells.index)])):
        page.omit(f"The losses of {name}", "the cell is not in results.csv, so its shape is not known")
    several = known["objective"].nunique() > 1  # whose losses do not compare
    for objective, rows in known.groupby("objective"):
        _losses(page, section, rows, str(objective) if several else "")


def _losses(page: Page, section: Section, known: pd.DataFrame, objective: str) -> None:
    """The losses of one objective over training steps; its name, where the study has several."""
    name, of = (f"-{slug(objective)}", f", {objective}") if objective else ("", "")
    terms = "MSE + variational term; " if set(known["objective"]) == {DEFAULT_OBJECTIVE} else ""
    loss, how = "Training loss", f"{terms}mean since the row before; raw weights, on the batches trained on{of}"
    page.draw(
        section, f"loss-over-steps{name}", f"Training loss over training steps, one line per cell{of}.",
        "As the paper’s Figure 13, on log axes.",
        lambda: over_steps(known, {"loss": "training loss"}, loss, loss, how, log_axes=True, key=page.key),
    )  # fmt: skip
    page.draw(
        section, f"loss-zoom{name}",
        f"Training loss over all of training and over its first tenth, one line per cell{of}.",
        "As the paper’s Figure 13, with its early zoom.",
        lambda: loss_with_zoom(known, "loss", loss, how, page.key),
    )  # fmt: skip
    page.draw(
        section, f"loss-train-vs-heldout{name}",
        f"Denoising loss on the train split and on held-out images over training steps{of}.",
        "A widening gap is memorisation of the train split.",
        lambda: over_steps(
            known, {"loss_train": "train", "loss_heldout": "held-out"},
            f"Denoising loss ({loss_name(known['objective'])})", "Denoising loss, train against held-out",
            f"EMA weights; mean over time{of}", log_axes=True, key=page.key,
        ),
    )  # fmt: skip


def sampling(page: Page, table: pd.DataFrame, chosen: Sequence[Choice] = ()) -> None:
    """The metric against sampling compute and guidance, if cells were sampled with several steps or scales.

    Args:
        page: where it goes.
        table: rows of the study, without those of searches for the best guidance.
        chosen: the best scales.
    """
    opening = "What more sampler steps and stronger guidance buy without training again."
    section = page.section("sampling", "Sampling compute and guidance", opening)
    _chosen(page, section, chosen)
    if not _guidance(page, section, table) and not chosen:
        page.omit("The metric against guidance", "no model was sampled with several guidance scales")
    count = 0
    for group in comparable_groups(table, vary=["sampling_steps"]):
        swept = group.table[group.table.groupby("step")["sampling_steps"].transform("nunique") > 1]
        if swept.empty:
            continue
        count += 1
        step = int(swept["step"].max())
        if swept["step"].nunique() > 1:
            page.omit(f"{group.metric} against sampling compute before step {step:,}", "drawn for the last step only")
        rows, caption = swept[swept["step"] == step], f"{step:,} training steps; {group.label}"
        page.draw(
            section, f"sampling-compute{f'-{count}' if count > 1 else ''}",
            f"{group.metric} against the compute of sampling one image.",
            "As the paper’s Figure 10. Where sampling seeds differ, means and one standard deviation.",
            lambda r=rows, g=group, c=caption: sampling_compute(r, g.metric, c, page.key),  # type: ignore[misc]
        )  # fmt: skip
    if not count:
        why = "all values were sampled with the same number of steps"
        page.omit("The metric against sampling compute (Figure 10)", why)


def _guidance(page: Page, section: Section, table: pd.DataFrame) -> int:
    """The metric against guidance, at the last step where a model was sampled with several scales; counts figures."""
    count = 0
    for group in comparable_groups(table, vary=["guidance", "guidance_channels"]):
        swept = group.table[group.table.groupby(["step", "cell"])["guidance"].transform("nunique") > 1]
        if swept.empty:
            continue
        count += 1
        step = int(swept["step"].max())
        rows, caption = swept[swept["step"] == step], f"{step:,} training steps; {group.label}"
        page.draw(
            section, f"guidance{f'-{count}' if count > 1 else ''}", f"{group.metric} against the guidance scale.",
            f"After {step:,} training steps. Where sampling seeds differ, means and one standard deviation.",
            lambda r=rows, g=group, c=caption: guidance(r, g.metric, c, page.key),  # type: ignore[misc]
        )  # fmt: skip
    return count


def _chosen(page: Page, section: Section, chosen: Sequence[Choice]) -> None:
    """The best scale of every model, chosen on one sampling seed and reported on others."""
    page.fits["guidance"] = [
        {"cell": one.name, "step": one.step, "scale": one.scale, "seed": one.seed, "reports": one.reports}
        for one in chosen
    ]
    for count, way in enumerate(dict.fromkeys((one.conditions, one.step) for one in chosen), start=1):
        found = [one for one in chosen if (one.conditions, one.step) == way]
        section.tables.append(choice_table(found))
        drawn = sorted(found, key=lambda one: one.curve["gmacs"].iloc[0])[-_MOST_CHOICES:]
        page.draw(
            section, f"guidance-best{f'-{count}' if count > 1 else ''}",
            f"{found[0].metric} against the guidance scale, with the best scale of {len(drawn)} models marked.",
            f"Chosen on sampling seed {found[0].seed} (lines, rings), reported on others (crosses).",
            lambda d=drawn, w=way: chosen_scales(d, f"{w[1]:,} training steps; {w[0]}", page.key),  # type: ignore[misc]
        )  # fmt: skip
        if len(found) > len(drawn):
            page.omit(f"Guidance of {len(found) - len(drawn)} models", f"drawn for the {len(drawn)} of most compute")


def _after(group: Group) -> str:
    return f"; {group.brief}" if group.brief else ""
