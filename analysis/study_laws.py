"""The laws of a study: its checkpoints as runs, within each patch size and over all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from analysis.fit.common import CannotFitError, floats
from analysis.frontier import checkpoints
from analysis.horizon import ends
from analysis.laws.approaches import envelope
from analysis.laws.runs import Runs, Words, require_lengths
from analysis.laws.summary import LawSummary, summarise
from analysis.names import SHAPE, patch_name
from analysis.side_by_side import side_by_side
from analysis.slices import LOSS, Slice

_GIGA = 1e9
_FEW_RUNS = 100  # up to so many a second process is not worth its start
_EARLY = 0.01  # share of its steps before which a checkpoint of a longer training is no run of its own


def with_curves(piece: Slice, curves: pd.DataFrame | None) -> pd.DataFrame:
    """The checkpoints of a slice, of the held-out loss also those between evaluations.

    With a constant learning rate every checkpoint is what a shorter training would have ended with; with one that falls
    to 0 the last alone counts. Those of the first hundredth of a training are left out: they show its start.

    Args:
        piece: of the metric or of the held-out loss.
        curves: rows of curves.csv, or None.

    Returns:
        Rows as `analysis.frontier.checkpoints`, with `images`, the images seen.
    """
    rows = piece.checkpoints
    if piece.column == LOSS and curves is not None and not curves.empty:
        cells = rows.drop_duplicates("cell").drop(columns=["step", LOSS, "train_gmacs"])
        points = curves.loc[curves[LOSS].notna(), ["cell", "step", LOSS]]
        found = ends(cells.merge(points, on="cell"))
        compute = 3 * found["gmacs"] * found["batch_size"].astype(float) * found["step"]
        rows = pd.concat([rows, found.assign(train_gmacs=compute)]).drop_duplicates(["cell", "step"])
    last = rows.groupby("cell")["step"].transform("max")
    rows = rows[rows["step"] >= _EARLY * last]
    return checkpoints(piece, rows).assign(images=lambda found: found["step"] * found["batch_size"].astype(float))


def runs_of(rows: pd.DataFrame, column: str) -> Runs:
    """Rows of `with_curves` as runs; those of one shape are of one model."""
    relative = floats(rows, "spread") / floats(rows, column)
    variances = (relative**2 / floats(rows, "repeats"))[floats(rows, "repeats") > 1]  # of the means over the seeds
    return Runs(
        size=floats(rows, "gmacs") * _GIGA,
        data=floats(rows, "images"),
        loss=floats(rows, column),
        model=rows.groupby(SHAPE, dropna=False).ngroup().to_numpy().astype(np.int64),
        tokens=floats(rows, "tokens") if rows["tokens"].notna().all() else None,
        seed_sd=float(np.sqrt(variances.mean())) if len(variances) else None,
    )


def study_laws(piece: Slice, curves: pd.DataFrame | None = None) -> list[LawSummary]:
    """The law within each patch size, then over all of them if there are several.

    Raises:
        CannotFitError: no checkpoints, or all models were trained for one length.
    """
    rows, words = with_curves(piece, curves), Words(loss=piece.metric)
    if rows.empty:
        raise CannotFitError("no checkpoint has a positive value and a training compute")
    require_lengths(runs_of(rows, piece.column), words)
    parts = sorted(rows.groupby("patch_size", dropna=False), key=lambda part: str(part[0]), reverse=True)
    tasks = [
        partial(summarise, patch_name(patch) or "all models", runs_of(part, piece.column), words)
        for patch, part in parts
    ]
    if len(parts) > 1:
        tasks.insert(0, partial(summarise, "all patch sizes", runs_of(rows, piece.column), words, over_patches=True))
    done = list(side_by_side(tasks) if len(rows) > _FEW_RUNS else (task() for task in tasks))  # the longest first
    over_all = [done.pop(0)] if len(parts) > 1 else []
    sizes = [None if pd.isna(patch) else int(str(patch)) for patch, _ in parts]
    return [replace(summary, patch_size=size) for summary, size in zip(done, sizes, strict=True)] + over_all


def next_gmacs(piece: Slice) -> float | None:
    """Gflops of the best model for twice the largest training compute, on the line through the envelope.

    None where the runs show no choice between sizes; see `analysis.laws.approaches`.
    """
    runs = runs_of(with_curves(piece, None), piece.column)
    try:
        size = envelope(runs, resamples=0).best_size(2 * runs.compute.max())
    except CannotFitError:
        return None
    return None if size is None else float(size) / _GIGA
