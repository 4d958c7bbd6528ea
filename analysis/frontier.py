"""The compute-optimal frontier: the best metric for a training budget, and the model that reaches it.

Two views, both after Hoffmann et al. (2022, arXiv:2203.15556): the lower envelope over all checkpoints (their approach
1), and slices at equal training compute across models (approach 2). With a constant learning rate, as in Peebles & Xie
(2023), every checkpoint is what a shorter run would have reached. With a rate that falls to 0 it is not, and the last
one alone counts (see `analysis.horizon`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.fit.common import CannotFitError, floats
from analysis.fit.lines import LineFit, fit_line
from analysis.names import SHAPE, plural
from analysis.slices import Slice, per_shape

_BUDGETS = 4  # slices shown per patch size
_LEAST_MODELS = 3  # a parabola has three parameters
_NEAR = 3  # models on either side of the best one; farther away the curve is not a parabola


@dataclass(frozen=True)
class FrontierPoint:
    """A checkpoint that no other beats with as little training compute."""

    name: str
    size: str
    patch_size: int | None
    step: int
    train_gmacs: float  #: 3 * gmacs * batch * step, 1e9 multiply-adds
    gmacs: float
    params: float
    metric: float


@dataclass(frozen=True)
class Frontier:
    """The lower envelope of the metric over training compute, from all checkpoints of one slice's block."""

    points: tuple[FrontierPoint, ...]  #: by training compute; each better than all before it
    checkpoints: int  #: number considered, seeds averaged
    models: int
    law: LineFit | None  #: power law through the envelope against training compute; its intervals are not quoted
    growth: float | None  #: exponent a of gmacs = k * train_gmacs^a along the envelope: how the best model grows
    next_gmacs: float | None  #: gmacs on that line for twice the largest training compute
    flags: tuple[str, ...]


@dataclass(frozen=True)
class IsoFlop:
    """Models of one patch size at equal training compute, each log-log interpolated between its checkpoints."""

    patch_size: int | None
    train_gmacs: float  #: the budget
    names: tuple[str, ...]  #: by gmacs
    gmacs: tuple[float, ...]
    metric: tuple[float, ...]
    curve: tuple[float, float, float]  #: ln metric = c0 (ln gmacs)^2 + c1 ln gmacs + c2, around the best model
    span: tuple[float, float]  #: gmacs of the smallest and the largest model it was fitted to
    optimum: float | None  #: gmacs at the bottom of the parabola; None if the models do not enclose it
    flags: tuple[str, ...]

    @property
    def best(self) -> str:
        """Name of the model with the lowest metric at this budget."""
        return self.names[int(np.argmin(self.metric))]


def checkpoints(piece: Slice) -> pd.DataFrame:
    """All checkpoints of a slice's block with training compute and a positive metric, seeds averaged, by compute."""
    rows = piece.checkpoints
    rows = rows[(rows["train_gmacs"] > 0) & (rows[piece.column] > 0)]
    return per_shape(rows, piece.column).sort_values(["train_gmacs", "gmacs"], kind="stable", ignore_index=True)


def find_frontier(piece: Slice) -> Frontier:
    """The lower envelope of a slice's checkpoints.

    Raises:
        CannotFitError: fewer than three checkpoints, or all of them of one model.
    """
    rows = checkpoints(piece).sort_values(["train_gmacs", piece.column], kind="stable")
    models = len(rows.drop_duplicates(SHAPE))
    if len(rows) < 3:
        raise CannotFitError(f"{plural(len(rows), 'checkpoint')}; an envelope needs at least 3")
    if models < 2:
        raise CannotFitError("all checkpoints are of one model")
    metric = rows[piece.column].to_numpy(float)
    on_it = np.concatenate([[True], metric[1:] < np.minimum.accumulate(metric)[:-1]])
    columns = ["name", *SHAPE, "step", "train_gmacs", "gmacs", "params", piece.column]
    points = [FrontierPoint(*row) for row in rows[on_it][columns].astype({"params": float}).itertuples(index=False)]
    compute, gmacs = np.array([p.train_gmacs for p in points]), np.array([p.gmacs for p in points])
    law, growth, following = None, None, None
    flags = ["the best of noisy values lies below the truth, and its points are chosen: no interval is given"]
    try:
        law = fit_line(compute, np.array([p.metric for p in points]), "power law")
    except CannotFitError as error:
        flags.append(f"no power law through the envelope: {error}")
    if len(points) >= 3 and len(set(gmacs)) >= 2:
        slope, level = np.polyfit(np.log(compute), np.log(gmacs), 1)
        growth = float(slope)
        following = float(np.exp(level + slope * np.log(2 * rows["train_gmacs"].max())))
    single = rows.groupby(SHAPE, dropna=False)["step"].nunique().max() == 1
    flags += ["one checkpoint per model: the envelope is that of one horizon"] if single else []
    largest = points[-1].gmacs == rows["gmacs"].max()
    flags += ["it ends on the largest model: a larger one may be better at that budget"] if largest else []
    return Frontier(tuple(points), len(rows), models, law, growth, following, tuple(flags))


def isoflop_slices(piece: Slice) -> list[IsoFlop]:
    """Slices at equal training compute: per patch size up to four evenly spaced budgets that three models reach.

    Raises:
        CannotFitError: no patch size has three models whose checkpoints span a common training compute.
    """
    found: list[IsoFlop] = []
    for patch, rows in checkpoints(piece).groupby("patch_size", dropna=False):
        size = None if pd.isna(patch) else int(str(patch))
        runs = [run for _, run in rows.groupby(["gmacs", "depth", "width", "size"], dropna=False) if len(run) > 1]
        if len(runs) < _LEAST_MODELS:
            continue
        spans = [(run["train_gmacs"].min(), run["train_gmacs"].max(), run["gmacs"].iloc[0]) for run in runs]
        grid = np.geomspace(min(span[0] for span in spans), max(span[1] for span in spans), 41)
        reached = [len({gmacs for low, high, gmacs in spans if low <= budget <= high}) for budget in grid]
        usable = grid[np.array(reached) >= _LEAST_MODELS]
        if len(usable):
            picked = np.unique(np.linspace(0, len(usable) - 1, _BUDGETS).round().astype(int))
            found += [_isoflop(size, float(budget), runs, piece.column) for budget in usable[picked]]
    if not found:
        raise CannotFitError(
            f"no patch size has {_LEAST_MODELS} models whose checkpoints span a common training compute"
        )
    return found


def _isoflop(patch: int | None, budget: float, runs: list[pd.DataFrame], column: str) -> IsoFlop:
    points = []
    for run in runs:
        log_c, log_m = np.log(floats(run, "train_gmacs")), np.log(floats(run, column))
        if log_c[0] - 1e-9 <= np.log(budget) <= log_c[-1] + 1e-9:
            value = float(np.exp(np.interp(np.log(budget), log_c, log_m)))
            points.append((str(run["name"].iloc[0]), float(run["gmacs"].iloc[0]), value))
    names, gmacs, metric = zip(*sorted(points, key=lambda point: point[1]), strict=True)
    log_g = np.log(gmacs)
    flags = [f"few points: {len(points)} models for 3 parameters"] if len(points) < 5 else []
    best = int(np.argmin(metric))
    reach = _NEAR
    while len(set(log_g[near := slice(max(0, best - reach), best + reach + 1)])) < _LEAST_MODELS:
        reach += 1  # models of equal compute count once
    log_g = log_g[near]
    curve = np.polyfit(log_g, np.log(metric)[near], 2)
    c0, c1, c2 = (float(value) for value in curve)
    vertex, optimum = -c1 / (2 * c0) if c0 > 0 else np.nan, None
    if c0 <= 0:
        flags.append("the curve has no minimum")
    elif log_g[0] <= vertex <= log_g[-1]:
        optimum = float(np.exp(vertex))
    else:
        flags.append(f"the optimum lies {'below' if vertex < log_g[0] else 'above'} the models measured")
    span = gmacs[near][0], gmacs[near][-1]
    return IsoFlop(patch, budget, names, gmacs, metric, (c0, c1, c2), span, optimum, tuple(flags))
