"""The losses of all models at equal training compute: what the envelope and the parabolas are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analysis.fit.common import Array, CannotFitError
from analysis.laws.runs import Runs, near, of_one_size

LEAST_MODELS = 3  # a parabola has three constants, and the best of three can have one on either side
_ONE_BUDGET = 0.1  # runs whose compute differs by less, relatively, are of one budget
_MOST = 0.8  # share of the runs that end at the budgets of an IsoFLOP sweep
_BUDGETS, _APART = 12, 1.3  # where the runs have no budgets of their own: how many, and the least ratio between two


#: ln loss of the runs of a mask, all of one model, at the budget of an index; NaN where they do not reach it.
_Value = Callable[[npt.NDArray[np.bool_], int], float]


@dataclass(frozen=True)
class Budgets:
    """ln loss of every model at every budget, shape [m, b], NaN where a model does not reach it."""

    size: Array  #: of the models, ascending, shape [m]
    compute: Array  #: of the budgets, ascending, shape [b]
    log_loss: Array
    model: npt.NDArray[np.int64]  #: [m], in the numbers of the runs
    interpolated: bool  #: between the runs of a model, log-log; otherwise the budgets are those of the runs

    @property
    def reached_by(self) -> npt.NDArray[np.int64]:
        """Number of models at every budget, shape [b]."""
        return np.asarray(np.isfinite(self.log_loss).sum(axis=0))

    def of_models(self, kept: npt.NDArray[np.bool_]) -> Budgets:
        """Some of the models, shape [m]."""
        return replace(self, size=self.size[kept], log_loss=self.log_loss[kept], model=self.model[kept])


def curves(runs: Runs) -> npt.NDArray[np.int64]:
    """Which curve each run lies on, shape [n]: its model's, or where every run is a model, that of its size."""
    return runs.model if runs.models < len(runs.model) else of_one_size(runs.size)


def own_budgets(runs: Runs) -> Budgets:
    """The budgets at which the runs of an IsoFLOP sweep end, those that at least four sizes reach.

    Raises:
        CannotFitError: there are not two such budgets, or many runs lie at none of them.
    """
    budget, curve = near(runs.compute, _ONE_BUDGET), curves(runs)
    found = [at for at in np.unique(budget) if len(np.unique(curve[budget == at])) > LEAST_MODELS]
    if len(found) < 2 or np.isin(budget, found).mean() < _MOST:
        raise CannotFitError("the runs have no budgets in common")
    compute = np.array([np.exp(np.mean(np.log(runs.compute[budget == at]))) for at in found])

    def value(rows: npt.NDArray[np.bool_], place: int) -> float:
        here = rows & (budget == found[place])
        return float(np.mean(np.log(runs.loss[here]))) if here.any() else np.nan

    return _of_curves(runs, compute, value, interpolated=False)


def interpolated_budgets(runs: Runs, count: int = _BUDGETS, apart: float = _APART) -> Budgets:
    """Evenly spaced budgets between the first and the last that three models reach, interpolated between checkpoints.

    Args:
        runs: the runs.
        count: of the budgets, at most.
        apart: the least ratio between two of them.

    Raises:
        CannotFitError: no budget is reached by three models.
    """
    log_c, curve = np.log(runs.compute), curves(runs)
    spans = [(log_c[curve == own].min(), log_c[curve == own].max()) for own in np.unique(curve)]
    grid = np.linspace(min(low for low, _ in spans), max(high for _, high in spans), 201)
    enough = grid[[sum(low <= at <= high for low, high in spans) >= LEAST_MODELS for at in grid]]
    if not len(enough):
        raise CannotFitError(
            f"no {LEAST_MODELS} models have runs that span a common training compute, so none can be chosen between"
        )
    count = min(count, 1 + int((enough[-1] - enough[0]) / np.log(apart)))
    at_all = np.linspace(enough[0], enough[-1], count) if count > 1 else np.array([np.mean(enough)])

    def value(rows: npt.NDArray[np.bool_], place: int) -> float:
        order = np.argsort(log_c[rows], kind="stable")
        x, y = log_c[rows][order], np.log(runs.loss[rows][order])
        inside = x[0] - 1e-9 <= at_all[place] <= x[-1] + 1e-9
        return float(np.interp(at_all[place], x, y)) if inside else np.nan

    found = _of_curves(runs, np.exp(at_all), value, interpolated=True)
    enough_models = found.reached_by >= LEAST_MODELS
    return replace(found, compute=found.compute[enough_models], log_loss=found.log_loss[:, enough_models])


def find_budgets(runs: Runs) -> Budgets:
    """The runs' own budgets, or interpolated ones.

    Raises:
        CannotFitError: as `interpolated_budgets`.
    """
    try:
        return own_budgets(runs)
    except CannotFitError:
        return interpolated_budgets(runs)


def _of_curves(runs: Runs, compute: Array, value: _Value, *, interpolated: bool) -> Budgets:
    curve = curves(runs)
    sizes, models, losses = [], [], []
    for own in np.unique(curve):
        rows = curve == own
        sizes.append(float(np.exp(np.mean(np.log(runs.size[rows])))))
        models.append(int(runs.model[rows][0]))
        losses.append([value(rows, place) for place in range(len(compute))])
    order = np.argsort(sizes, kind="stable")
    return Budgets(np.array(sizes)[order], compute, np.array(losses)[order], np.array(models)[order], interpolated)
