"""The rows that one scaling fit may use: measured alike, one design, one batch size, one training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.conditions import CONDITIONS, Group, comparable_groups, first_topic
from analysis.horizon import ends
from analysis.names import METRIC, SHAPE, block_name, listed, loss_name, recipe_name
from harness.errors import InputError

#: The denoising loss on held-out images; see harness.runs.columns.
LOSS = "loss_heldout"


@dataclass(frozen=True)
class Slice:
    """Rows that one scaling fit may use, and the column that is fitted."""

    group: Group
    block: str
    step: int
    table: pd.DataFrame
    column: str = METRIC
    variant: str = ""  #: batch size and recipe, where the table holds several

    @property
    def shapes(self) -> int:
        """Number of distinct shapes (size and patch size)."""
        return len(self.table.drop_duplicates(SHAPE))

    @property
    def metric(self) -> str:
        """Printed name of what is fitted."""
        return "held-out loss" if self.column == LOSS else self.group.metric

    @property
    def measured(self) -> str:
        """How the column was measured, in words."""
        if self.column == LOSS:
            latents = f"latents of {self.group.conditions['vae']} of " if self.group.conditions.get("vae") else ""
            loss = loss_name(self.table["objective"])
            return f"{loss} of the EMA weights on {latents}held-out images of {self.group.conditions['data']}"
        return self.group.label

    @property
    def label(self) -> str:
        """Block, step, recipe and conditions in words."""
        return f"{block_name(self.block)}, {self.step:,} steps; {self.context}"

    @property
    def label_at_any_step(self) -> str:
        """Block, recipe and conditions in words."""
        return f"{block_name(self.block)}; {self.context}"

    @property
    def context(self) -> str:
        """Recipe and conditions in words, without block and step."""
        return "; ".join(filter(None, (self.variant, self.measured)))

    @property
    def brief(self) -> str:
        """As `label`, without conditions that stand elsewhere (`analysis.conditions.with_ways`)."""
        return f"{block_name(self.block)}, {self.step:,} steps{self._brief_context}"

    @property
    def brief_at_any_step(self) -> str:
        """As `label_at_any_step`, without conditions that stand elsewhere."""
        return f"{block_name(self.block)}{self._brief_context}"

    @property
    def _brief_context(self) -> str:
        measured = f"held-out images of {self.group.conditions['data']}" if self.column == LOSS else self.group.brief
        return "".join(f"; {part}" for part in (self.variant, measured) if part)

    @property
    def alone(self) -> str:
        """For captions: which block it is, where others stand beside it; empty where there is one only."""
        return f" {block_name(self.block)} alone." if self.group.table["block"].nunique() > 1 else ""

    @property
    def where(self) -> str:
        """For sentences: of which studies it is, where the table holds several; empty where it holds one."""
        return f" in {listed(*dict.fromkeys(self.group.table['study']))}" if "topic" in self.table else ""

    @property
    def siblings(self) -> pd.DataFrame:
        """Rows of the same batch size and recipe, of every block and at every step, with a value."""
        rows = self.group.table[self.group.table[self.column].notna()]
        return next(part for _, part in variants(rows) if self.table.index[0] in part.index)

    @property
    def checkpoints(self) -> pd.DataFrame:
        """The siblings with the same block."""
        return self.siblings[self.siblings["block"] == self.block]


def variants(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split rows by batch size, and by recipe if one shape was trained by several: those are not repeats.

    A recipe that depends on the shape, such as a learning rate tuned for each size, splits nothing.

    Returns:
        What the rows of each part share, in words (empty if there is only one part), and the rows.
    """
    shape = ["block", *SHAPE, "batch_size"]
    several = "recipe" in table and bool((table.groupby(shape, dropna=False)["recipe"].nunique() > 1).any())
    batches = table["batch_size"].nunique() > 1
    named = []
    for batch, rows in table.groupby("batch_size", dropna=False, sort=True):
        words = [f"batch {batch}"] * batches
        for recipes in _recipe_parts(rows) if several else [[]]:
            part = rows[rows["recipe"].isin(recipes)] if several else rows
            named.append(("; ".join(words + [f"recipe: {_shared(recipes)}"] * several), part))
    return named


def _recipe_parts(rows: pd.DataFrame) -> list[list[str]]:
    """Recipes that may be fitted together: each goes to the one that it resembles most, and never trained a same model.

    In a sweep of sizes each size has its heads, which split nothing where one of them has another recipe beside it.
    """
    models = {
        str(recipe): set(own[["block", *SHAPE]].astype(object).fillna("").itertuples(index=False, name=None))
        for recipe, own in rows.groupby("recipe")
    }
    parts: list[list[str]] = []
    for recipe in sorted(models, key=lambda name: (-len(models[name]), name)):
        free = [part for part in parts if not any(models[recipe] & models[other] for other in part)]
        alike = sorted(((_likeness(recipe, part[0]), part) for part in free), key=lambda pair: pair[0], reverse=True)
        if alike and alike[0][0][:2] > (0, 0) and (len(alike) == 1 or alike[0][0] > alike[1][0]):
            alike[0][1].append(recipe)
        else:
            parts.append([recipe])
    return sorted(parts, key=min)


def _likeness(one: str, other: str) -> tuple[int, int, int]:
    """How many values two recipes share, how many fields, and how few fields only one of them has."""
    first, second = (set(filter(None, recipe.split("; "))) for recipe in (one, other))
    mine, theirs = ({item.partition("=")[0] for item in items} for items in (first, second))
    return len(first & second), len(mine & theirs), -len(mine ^ theirs)


def _shared(recipes: Sequence[str]) -> str:
    """Several recipes in print: what they share."""
    items = [recipe.split("; ") for recipe in recipes]
    shared = [item for item in items[0] if all(item in other for other in items)] if items else []
    return recipe_name("; ".join(shared)) if shared or len(items) < 2 else "its own for each size"


def scaling_slices(table: pd.DataFrame, column: str = METRIC) -> list[Slice]:
    """The slices of a table in which a metric can be held against compute: most shapes first, then adaLN-Zero.

    Each group, block, batch size and recipe gives one slice, at the training step with the most shapes (of several, the
    latest). Cells without a value at that step are not in the slice; compare with `group.table` to name them. Steps at
    which a learning rate was still to fall are in no slice (see `analysis.horizon`).
    Of several studies the slices of the leading topic come first (`analysis.topics.ranked`).

    Args:
        table: rows of `analysis.table.load_study` or `load_published`.
        column: what is fitted: the Frechet distance, or `LOSS`. The loss does not depend on the sampling, so its groups
            only agree in data and objective, and have one row per cell and step.
    """
    slices, table = [], ends(table)
    for group in _loss_groups(table) if column == LOSS else comparable_groups(table):
        rows = group.table[group.table[column].notna()]
        pieces = ((block, name, cells) for name, part in variants(rows) for block, cells in part.groupby("block"))
        for block, name, cells in pieces:
            shapes = cells.drop_duplicates([*SHAPE, "step"]).groupby("step").size()
            step = max(shapes.index, key=lambda at: (shapes[at], at))
            slices.append(Slice(group, str(block), int(step), cells[cells["step"] == step], column, name))
    return sorted(slices, key=lambda piece: (first_topic(piece.table), -piece.shapes, piece.block != "adaln-zero"))


def largest_slice(table: pd.DataFrame, column: str = METRIC) -> Slice:
    """The first of `scaling_slices`.

    Raises:
        InputError: no row has a value.
    """
    pieces = scaling_slices(table, column)
    if not pieces:
        raise InputError(f"no row of the table has a value in column {column}; nothing can be held against compute")
    return pieces[0]


def _loss_groups(table: pd.DataFrame) -> list[Group]:
    """Rows with a held-out loss, one per cell and step, without the columns about sampling.

    They are grouped by data and objective: losses of two objectives do not compare.
    """
    learned = ["data", "vae", "objective"]
    sampled = [
        column for column in (*CONDITIONS, "way", "evaluation", "sampling_seed", METRIC) if column not in learned
    ]
    rows = table[table[LOSS].notna()].drop_duplicates(["cell", "step"]).drop(columns=sampled, errors="ignore")
    side = (rows["tokens"].astype(float) ** 0.5 * rows["patch_size"]).round()  # side of an image or latent
    parts = rows.groupby([*learned, side], dropna=False, sort=False)
    groups = [Group(dict(zip(learned, key, strict=False)), cells) for key, cells in parts]
    return sorted(groups, key=lambda group: (first_topic(group.table), -len(group.table)))


def require_repeats(table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Refuse rows that agree in `keys` but differ in recipe, batch size or horizon: they are not seeds of one model.

    Raises:
        InputError: naming the recipes.
    """
    for part in ("recipe", "batch_size", "horizon"):
        if part not in table or part in keys:
            continue
        mixed = table.groupby(list(keys), dropna=False)[part].transform("nunique") > 1
        if mixed.any():
            found = table.loc[mixed, part].drop_duplicates()
            values = ", ".join(str(value) or "the defaults" for value in found)
            first = "take analysis.horizon.ends" if part == "horizon" else "split them with analysis.slices.variants"
            problem = f"rows of one shape that differ in {part} ({values}) are no repeats and cannot be averaged"
            raise InputError(f"{problem}; {first} first")


def per_shape(table: pd.DataFrame, column: str = METRIC) -> pd.DataFrame:
    """One row per shape (block, size, patch size, step): repeats by seed become their geometric mean.

    Fits count shapes, not seeds: two seeds of a model are not two models. The column `repeats` says how many rows
    were averaged, `spread` is their standard deviation (NaN for one row). If a value is not positive, the mean is
    arithmetic.

    Raises:
        InputError: a shape was trained by several recipes or batch sizes, which are not repeats.
    """
    keys = ["block", *SHAPE, "step"]
    require_repeats(table, keys)
    values = _by(table, keys, table[column])
    repeats = values.transform("size")
    positive = table[column].where(table[column] > 0)
    logs: Any = np.log(positive.astype(float))
    geometric = np.exp(_by(table, keys, logs).transform("mean"))
    all_positive = _by(table, keys, table[column] > 0).transform("all")
    centre = geometric.where(all_positive, values.transform("mean")).where(repeats > 1, table[column])
    return table.assign(**{column: centre, "repeats": repeats, "spread": values.transform("std")}).drop_duplicates(keys)


def _by(table: pd.DataFrame, keys: Sequence[str], values: Any) -> Any:
    """Values of the rows of a table, grouped by its keys."""
    return values.groupby([table[key] for key in keys], sort=False, dropna=False)
