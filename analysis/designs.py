"""Designs: the blocks, networks and objectives that a table holds against each other, and what must match for that."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import pandas as pd

from analysis.conditions import CONDITIONS
from analysis.fit.common import floats
from analysis.names import BASELINE, DEFAULT_OBJECTIVE, shape_names, without_shape
from harness.runs.columns import MATCHED

#: Fields of a recipe that only a DiT has.
_DIT_FIELDS = frozenset({"heads", "mlp_ratio", "qk_norm"})


def by_design(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose rows can be compared design by design.

    - `block` has the objective too, such as "adaln-zero with flow", where the table holds several objectives.
    - `sampler`: two objectives have no sampler in common. Where each has one at an equal number of forward passes
      (within `MATCHED`), and all else was measured alike, their rows have the names of both and so compare.
    - `place` is what designs must share: the shape; for a network without depth and width the shape of the DiT whose
      compute is nearest, if it is within `MATCHED`. Of several such models of one design the nearest one has the place.
      Its `recipe` is that of the DiT, if they differ in no more than what `_recipes` says.
    """
    table = table.assign(objective=table["objective"].replace("", DEFAULT_OBJECTIVE))
    if table["objective"].nunique() > 1:
        other = table["objective"] != DEFAULT_OBJECTIVE
        table["block"] = table["block"].where(~other, table["block"] + " with " + table["objective"])
        table = _joined_samplers(table)
    table = table.assign(place=_places(table))
    return table.assign(recipe=_recipes(table))


def passes_of(rows: pd.DataFrame) -> pd.Series[float]:
    """Forward passes of the network for one sample; in rows of older tables a step has one, or two with guidance."""
    twice = 1 + (rows["guidance"].fillna(1) != 1)
    return rows["sampling_passes"].astype(float).fillna(rows["sampling_steps"].astype(float) * twice)


def _joined_samplers(table: pd.DataFrame) -> pd.DataFrame:
    table = table.copy()
    rows = table[table["extractor"] != ""]
    shared = [column for column in CONDITIONS if column in rows and column not in ("sampler", "sampling_steps")]
    rows = rows.assign(passes=passes_of(rows))
    rows["near"] = rows.groupby(shared, dropna=False)["passes"].transform(_near)
    for cost in ("passes", "near"):  # of two ways that cost nearly as much as another's, the one of equal cost is taken
        joined: list[object] = []
        for _, own in rows.groupby([*shared, cost], dropna=False, sort=False):
            ways = own[["objective", "sampler", "sampling_steps"]].drop_duplicates()
            if len(ways) < 2 or not ways["objective"].is_unique:
                continue
            joined += own.index.to_list()
            if ways["sampling_steps"].nunique() == 1:
                table.loc[own.index, "sampler"] = " / ".join(ways["sampler"])
            else:
                steps = ways["sampler"].str.upper() + " " + ways["sampling_steps"].astype(str) + " steps"
                table.loc[own.index, "sampler"] = " / ".join(steps)
                table.loc[own.index, "sampling_steps"] = pd.NA
        rows = rows.drop(index=joined)
    return table


def _near(costs: pd.Series[float]) -> pd.Series[float]:
    """Each cost as the least one of those that it matches: they differ by at most `MATCHED`."""
    least: list[float] = []
    for cost in sorted(set(costs.dropna())):
        if not least or cost > least[-1] * (1 + MATCHED):
            least.append(cost)
    return costs.map(lambda cost: max((first for first in least if first <= cost), default=cost))


def _places(table: pd.DataFrame) -> pd.Series[str]:
    places, shapeless = shape_names(table), without_shape(table)
    base = table[~shapeless & (table["block"] == BASELINE)].drop_duplicates("gmacs")
    if base.empty or not shapeless.any():
        return places
    models = table[shapeless].drop_duplicates(["block", "gmacs"])[["block", "gmacs"]]
    apart = np.abs(np.log(np.divide.outer(floats(models, "gmacs"), floats(base, "gmacs"))))  # (models, DiTs)
    models = models.assign(place=places[base.index].to_numpy()[apart.argmin(1)], apart=apart.min(1))
    models = models[models["apart"] <= math.log(1 + MATCHED)].sort_values("apart").drop_duplicates(["block", "place"])
    found = table[["block", "gmacs"]].merge(models, how="left", on=["block", "gmacs"])["place"].set_axis(table.index)
    return places.where(~shapeless | found.isna(), found)


def _recipes(table: pd.DataFrame) -> pd.Series[str]:
    """The recipes; of a network without a shape that of its DiT, if that is the only one which differs in no more.

    They may differ in fields that only a DiT has, and then in the learning rate: each network has its own best one.
    """
    shapeless = without_shape(table)
    is_dit = ~shapeless & (table["block"] == BASELINE)
    recipes = table["recipe"].where(~shapeless, table["recipe"].map(lambda recipe: _without(recipe, _DIT_FIELDS)))
    for lacking in (_DIT_FIELDS, _DIT_FIELDS | {"learning_rate"}):
        bare = table["recipe"].map(lambda recipe, lacking=lacking: _without(recipe, lacking))
        keys = pd.Series(zip(table["place"], bare, strict=True), index=table.index)
        of_dits = table["recipe"][is_dit].groupby(keys[is_dit]).agg(["first", "nunique"])
        alone = table["recipe"].groupby([table["block"], keys]).transform("nunique") == 1
        taken = shapeless & alone & keys.isin(of_dits.index[of_dits["nunique"] == 1])
        recipes = recipes.where(~taken, keys.map(of_dits["first"]))
    return recipes


def _without(recipe: str, fields: Collection[str]) -> str:
    return "; ".join(field for field in recipe.split("; ") if field.partition("=")[0] not in fields)
