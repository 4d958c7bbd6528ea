"""Designs compare by an equal recipe, known or equally unknown."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.names import BASELINE, METRIC, NOT_STATED, recipe_name

#: What designs must share to compare, besides the recipe; see `analysis.designs` for the place.
SAME_PLACE = ["place", "batch_size", "step"]


@dataclass(frozen=True)
class NotCompared:
    """A design beside the baseline at one shape and step that was trained by another recipe, or by none known."""

    block: str
    shape: str
    step: int
    reason: str


def not_compared(table: pd.DataFrame, metric: str = METRIC, baseline: str = BASELINE) -> list[NotCompared]:
    """The designs that stand beside the baseline at a shape and step, but whose recipe is not the baseline's.

    Args:
        table: rows that were measured alike, of any recipe.
        metric: its column.
        baseline: the block to compare with.
    """
    rows = table[table[metric].notna()]
    found = []
    for _, cells in rows.groupby(SAME_PLACE, dropna=False, sort=True):
        base = set(cells.loc[cells["block"] == baseline, "recipe"])
        for block, own in cells[cells["block"] != baseline].groupby("block"):
            if base and (other := set(own["recipe"]) - base):
                first = own.iloc[0]
                reason = _other_recipe(other, base)
                found.append(NotCompared(str(block), str(first["place"]), int(first["step"]), reason))
    return found


def _other_recipe(own: set[str], base: set[str]) -> str:
    sides = [" or ".join(map(recipe_name, sorted(recipes))) for recipes in (own, base)]
    if NOT_STATED in own | base:
        whose = "" if NOT_STATED in own else "the baseline’s "
        return f"{whose or 'the '}recipe is not stated"
    return f"the recipe differs ({sides[0]}, not {sides[1]})"


def without_other_recipes(rows: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """The rows without the designs whose recipe is not that of the baseline at the same shape and step."""
    if "recipe" not in rows or rows["recipe"].nunique() < 2:
        return rows
    keys = pd.MultiIndex.from_frame(rows[SAME_PLACE].astype(object).fillna(""))
    both = pd.MultiIndex.from_frame(rows[[*SAME_PLACE, "recipe"]].astype(object).fillna(""))
    base = (rows["block"] == baseline).to_numpy()
    return rows[base | both.isin(both[base]) | ~keys.isin(keys[base])]
