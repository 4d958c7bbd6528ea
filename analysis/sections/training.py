"""The metric and the losses over training steps, and the metric against sampling compute."""

from __future__ import annotations

import pandas as pd

from analysis.conditions import Group, comparable_groups
from analysis.figures.scaling import guidance, sampling_compute
from analysis.figures.style import CannotDrawError
from analysis.figures.training import loss_with_zoom, over_steps
from analysis.horizon import decays
from analysis.names import DEFAULT_OBJECTIVE, METRIC, SHAPE, loss_name, slug
from analysis.page import Page, Section


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


def sampling(page: Page, table: pd.DataFrame) -> None:
    """The metric against sampling compute and guidance, if cells were sampled with several steps or scales."""
    opening = "What more sampler steps and stronger guidance buy without training again."
    section = page.section("sampling", "Sampling compute and guidance", opening)
    _guidance(page, section, table)
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


def _guidance(page: Page, section: Section, table: pd.DataFrame) -> None:
    """The metric against guidance, at the last step where a model was sampled with several scales."""
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
    if not count:
        page.omit("The metric against guidance", "no model was sampled with several guidance scales")


def _after(group: Group) -> str:
    return f"; {group.brief}" if group.brief else ""
