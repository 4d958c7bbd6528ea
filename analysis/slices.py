"""The rows that one scaling fit may use: measured alike, one block design, one batch size, one training step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.table import CONDITIONS, METRIC, Group, block_name, comparable_groups

#: The denoising loss on held-out images; see harness.records.
LOSS = "loss_heldout"


@dataclass(frozen=True)
class Slice:
    """Rows that one scaling fit may use, and the column that is fitted."""

    group: Group
    block: str
    step: int
    table: pd.DataFrame
    column: str = METRIC

    @property
    def shapes(self) -> int:
        """Number of different (depth, width, patch size)."""
        return len(self.table.drop_duplicates(["depth", "width", "patch_size"]))

    @property
    def metric(self) -> str:
        """Printed name of what is fitted."""
        return "held-out loss" if self.column == LOSS else self.group.metric

    @property
    def measured(self) -> str:
        """How the column was measured, in words."""
        if self.column == LOSS:
            return f"noise MSE of the EMA weights on held-out images of {self.group.conditions['data']}"
        return self.group.label

    @property
    def label(self) -> str:
        """Block, step and conditions in words."""
        return f"{block_name(self.block)}, {self.step:,} steps; {self.measured}"

    @property
    def checkpoints(self) -> pd.DataFrame:
        """Rows of the same block and batch size at every step, with a value."""
        rows = self.group.table
        batch = self.table["batch_size"].iloc[0]
        same = rows["batch_size"].isna() if pd.isna(batch) else rows["batch_size"] == batch
        return rows[(rows["block"] == self.block) & same.fillna(False) & rows[self.column].notna()]


def scaling_slices(table: pd.DataFrame, column: str = METRIC) -> list[Slice]:
    """The slices of a table in which a metric can be held against compute: most shapes first, then adaLN-Zero.

    Of every group, block and batch size one training step is taken: the one with the most shapes, the latest of
    equals. Cells without a value at that step are not in the slice; compare with `group.table` to name them.

    Args:
        table: rows of `analysis.table.load_study` or `load_published`.
        column: what is fitted: the Frechet distance, or `LOSS`. The loss does not depend on how images were
            sampled, so its groups agree in the data only, with one row per cell and step.
    """
    slices = []
    for group in _loss_groups(table) if column == LOSS else comparable_groups(table):
        rows = group.table[group.table[column].notna()]
        for (block, _), cells in rows.groupby(["block", "batch_size"], dropna=False, sort=True):
            shapes = cells.drop_duplicates(["depth", "width", "patch_size", "step"]).groupby("step").size()
            step = max(shapes.index, key=lambda at: (shapes[at], at))
            slices.append(Slice(group, str(block), int(step), cells[cells["step"] == step], column))
    return sorted(slices, key=lambda piece: (-piece.shapes, piece.block != "adaln-zero"))


def _loss_groups(table: pd.DataFrame) -> list[Group]:
    """Rows with a held-out loss by data set, one per cell and step, without the columns of sampling."""
    sampled = [column for column in (*CONDITIONS, "evaluation", "sampling_seed", METRIC) if column != "data"]
    rows = table[table[LOSS].notna()].drop_duplicates(["cell", "step"]).drop(columns=sampled, errors="ignore")
    groups = [Group({"data": data}, cells) for data, cells in rows.groupby("data", sort=False)]
    return sorted(groups, key=lambda group: -len(group.table))


def per_shape(table: pd.DataFrame, column: str = METRIC) -> pd.DataFrame:
    """One row per shape (block, depth, width, patch size, step): repeats by seed become their geometric mean.

    Fits count shapes, not seeds: two seeds of a model are not two models. The column `repeats` says how many rows
    were averaged. Where a value is not positive the arithmetic mean is taken.
    """
    keys = ["block", "depth", "width", "patch_size", "step"]
    grouped = table.groupby(keys, sort=False)[column]

    def centre(values: pd.Series[float]) -> float:
        if len(values) == 1:
            return float(values.iloc[0])
        return float(np.exp(np.log(values).mean())) if (values > 0).all() else float(values.mean())

    rows = table.drop_duplicates(keys).copy()
    index = pd.MultiIndex.from_frame(rows[keys])
    rows[column] = grouped.apply(centre).reindex(index).to_numpy(dtype=float)
    rows["repeats"] = grouped.size().reindex(index).to_numpy(dtype=int)
    return rows
