"""The compute-optimal frontier: the best metric for a budget of training or of sampling, and the model that reaches it.

The lower envelope over all checkpoints (approach 1 of Hoffmann et al. 2022, arXiv:2203.15556). With a constant learning
rate, as in Peebles & Xie (2023), every checkpoint is what a shorter run would have reached. With a rate that falls to 0
it is not, and the last one alone counts (see `analysis.horizon`).
A budget that one model alone reaches shows no choice: where there is no other there is no frontier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.designs import passes_of
from analysis.fit.common import CannotFitError, floats
from analysis.fit.lines import LineFit, fit_line
from analysis.names import SHAPE, plural
from analysis.slices import Slice, per_shape

#: Operations of a training over `train_gmacs`, which are 1e9 multiply-adds: C = 6 M I is twice as many.
TRAINING = 2e9
_SAMPLING = 2e9  # operations over 1e9 multiply-adds, forward only


@dataclass(frozen=True)
class FrontierPoint:
    """A checkpoint that no other beats with as little compute."""

    name: str
    size: str
    patch_size: int | None
    step: int
    compute: float  #: operations of its training, or of sampling one image
    gmacs: float
    params: float
    metric: float


@dataclass(frozen=True)
class Frontier:
    """The lower envelope of the metric over compute."""

    points: tuple[FrontierPoint, ...]  #: by compute; each better than all before it
    checkpoints: int  #: number considered, seeds averaged
    models: int
    law: LineFit | None  #: power law through the points that others could have been; its intervals are not quoted
    flags: tuple[str, ...]


def checkpoints(piece: Slice, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """All checkpoints of a slice's block with a positive metric, seeds averaged, by the operations of training.

    Args:
        piece: the slice.
        rows: its checkpoints; by default those in results.csv.

    Returns:
        Rows with a column `compute`.
    """
    rows = piece.checkpoints if rows is None else rows
    rows = rows[(rows["train_gmacs"] > 0) & (rows[piece.column] > 0)]
    rows = rows.assign(compute=TRAINING * rows["train_gmacs"])
    return per_shape(rows, piece.column).sort_values(["compute", "gmacs"], kind="stable", ignore_index=True)


def sampled(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Rows of one block and step at several sampler steps, with the operations of sampling one image, `compute`.

    Args:
        table: rows that differ in `sampling_steps` and seeds alone among the ways of measuring.
        column: of the metric.

    Returns:
        One row per model and number of sampler steps, seeds averaged.
    """
    rows = table[(table["sampling_steps"] > 0) & (table[column] > 0)]
    parts = [per_shape(part, column) for _, part in rows.groupby("sampling_steps")]
    found = pd.concat(parts, ignore_index=True) if parts else rows
    return found.assign(compute=_SAMPLING * found["gmacs"] * passes_of(found))


def find_frontier(rows: pd.DataFrame, column: str) -> Frontier:
    """The lower envelope over rows of `checkpoints` or `sampled`.

    Raises:
        CannotFitError: fewer than three rows, all of them of one model, or no budget that two models reach.
    """
    rows = rows.sort_values(["compute", column], kind="stable")
    models = len(rows.drop_duplicates(SHAPE))
    if len(rows) < 3:
        raise CannotFitError(f"{plural(len(rows), 'checkpoint')}; an envelope needs at least 3")
    if models < 2:
        raise CannotFitError("all checkpoints are of one model")
    spans = rows.groupby(SHAPE, dropna=False)["compute"].agg(["min", "max"]).to_numpy(float)
    compute = floats(rows, "compute")
    contested = ((spans[:, 0] <= compute[:, None] * (1 + 1e-9)) & (compute[:, None] <= spans[:, 1] * (1 + 1e-9))).sum(
        axis=1
    ) > 1
    if not contested.any():
        raise CannotFitError(
            "no two models were measured at the same compute, so the best one is the only one, and its size grows as "
            "C^1.00 by construction; needed: models of several lengths"
        )
    metric = floats(rows, column)
    on_it = np.concatenate([[True], metric[1:] < np.minimum.accumulate(metric)[:-1]])
    columns = ["name", *SHAPE, "step", "compute", "gmacs", "params", column]
    points = [FrontierPoint(*row) for row in rows[on_it][columns].astype({"params": float}).itertuples(index=False)]
    law = None
    flags = ["the best of noisy values lies below the truth, and its points are chosen: no interval is given"]
    chosen = on_it & contested
    try:
        law = fit_line(compute[chosen], metric[chosen], "power law")
    except CannotFitError as error:
        flags.append(f"no power law through the envelope: {error}")
    if alone := int((on_it & ~contested).sum()):
        flags.append(f"{plural(alone, 'point')} at a budget that no other model reaches")
    largest = points[-1].gmacs == rows["gmacs"].max()
    flags += ["it ends on the largest model: a larger one may be better at that budget"] if largest else []
    return Frontier(tuple(points), len(rows), models, law, tuple(flags))
