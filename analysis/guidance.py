"""The guidance scale that is best for a model: chosen on one sampling seed, reported on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.conditions import CONDITIONS, describe_conditions
from analysis.names import METRIC
from harness.runs.columns import metric_name

#: Fewest scales among which one is chosen, no guidance included.
_FEWEST = 3

#: What the guidance decides is no condition of a choice.
_VARY = ("guidance", "guidance_channels")


@dataclass(frozen=True)
class Choice:
    """The best scale of one cell at one step, measured in one way.

    Attributes:
        curve: rows of the sampling seed that chose, by rising scale.
        reports: pairs (without guidance, with the chosen scale) of the other seeds.
        rest: rows of the other seeds, whatever their scale.
        conditions: in words, without the guidance.
    """

    curve: pd.DataFrame
    reports: tuple[tuple[float, float], ...]
    rest: pd.DataFrame
    conditions: str

    @property
    def name(self) -> str:
        """Of the cell."""
        return str(self.curve["name"].iloc[0])

    @property
    def step(self) -> int:
        """Of the training."""
        return int(self.curve["step"].iloc[0])

    @property
    def seed(self) -> int:
        """The sampling seed that chose."""
        return int(self.curve["sampling_seed"].iloc[0])

    @property
    def metric(self) -> str:
        """Printed name of the distance."""
        return metric_name(str(self.curve["extractor"].iloc[0]))

    @property
    def scale(self) -> float:
        """The scale with the least distance."""
        return float(self.curve["guidance"].iloc[int(np.argmin(self.curve[METRIC]))])

    @property
    def is_search(self) -> bool:
        """Whether the other seeds lack scales that the first one has; False: a grid, whose rows stand by themselves."""
        return not set(self.curve["guidance"]) <= set(self.rest["guidance"])

    @property
    def flag(self) -> str:
        """What is to be known of the scale; empty where it lies between others."""
        if self.scale == 1:
            return "no guidance is best"
        return "the largest tried: the best may lie beyond" if self.scale == self.curve["guidance"].max() else ""


def choices(table: pd.DataFrame) -> list[Choice]:
    """The choices that a table holds, in the order of its rows.

    A choice needs three scales or more, 1 among them, on one seed, and that and the best one on another. Of several
    seeds with equally many scales the lowest chooses.

    Args:
        table: rows of `analysis.table.load_study`, or as `harness.runs.collect` gives them.
    """
    return list(_choices(table))


def _choices(table: pd.DataFrame) -> Iterator[Choice]:
    rows = table[table[METRIC].notna() & table["guidance"].notna()]
    rows = rows[rows.groupby("cell")["guidance"].transform("nunique") >= _FEWEST]  # mostly none: groups are slow
    conditions = [column for column in CONDITIONS if column in rows and column not in _VARY]
    for key, own in rows.groupby(["cell", "step", *conditions], dropna=False, sort=False):
        counts = own.groupby("sampling_seed")["guidance"].nunique()
        if counts.empty or counts.max() < _FEWEST:
            continue
        first = own["sampling_seed"] == counts.idxmax()
        curve, rest = own[first].sort_values("guidance"), own[~first]
        words = describe_conditions(dict(zip(conditions, key[2:], strict=True)))
        found = Choice(curve, (), rest, words)
        by_seed = [part.set_index("guidance")[METRIC] for _, part in rest.groupby("sampling_seed")]
        reports = tuple((float(d[1]), float(d[found.scale])) for d in by_seed if {1.0, found.scale} <= set(d.index))
        if 1 in set(curve["guidance"]) and reports:
            yield Choice(curve, reports, rest, words)


def without_searches(table: pd.DataFrame, found: Sequence[Choice]) -> pd.DataFrame:
    """The table without the guided rows of searches: every scale of each would be a way of measuring of its own."""
    searched = [row for one in found if one.is_search for part in (one.curve, one.rest) for row in part.index]
    return table.drop(index=[row for row in searched if table.at[row, "guidance"] != 1])
