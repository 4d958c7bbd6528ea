"""Hierarchical bootstrap: resample models, then their training seeds, then their sampling seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.conditions import require_comparable
from analysis.fit.common import Array, CannotFitError, Pair, checked, pair
from analysis.fit.floor import fit_floor, refit_floors
from analysis.fit.surface import interaction_design
from analysis.names import METRIC, SHAPE
from analysis.slices import per_shape
from analysis.trainings import training_of


@dataclass(frozen=True)
class Bootstrap:
    """95 % percentile interval of a parameter by a hierarchical bootstrap."""

    interval: Pair
    resamples: int
    levels: tuple[str, ...]  #: what was resampled, outermost first


@dataclass(frozen=True)
class _Draws:
    """Resampled models: their indices (`models`) and their ln y, both [b, n]."""

    models: pd.DataFrame
    drawn: npt.NDArray[np.int64]
    log_y: Array
    levels: tuple[str, ...]

    def coefficients(self, design: Array) -> Array:
        """Least-squares coefficients of the draws, design [n, k] -> [k, b]; NaN if a draw does not determine them."""
        picked = design[self.drawn]
        found = np.einsum("bkn,bn->bk", np.linalg.pinv(picked), self.log_y)
        found[np.linalg.matrix_rank(picked) < design.shape[1]] = np.nan
        return np.asarray(found.T)

    def interval(self, values: Array) -> Bootstrap:
        return Bootstrap(pair(np.nanquantile(values, [0.025, 0.975])), len(self.drawn), self.levels)


def bootstrap_exponent(table: pd.DataFrame, metric: str = METRIC, resamples: int = 4000, seed: int = 0) -> Bootstrap:
    """Bootstrap a power law's exponent over models, and over training and sampling seeds if they repeat.

    With one seed per model this is the pairs bootstrap. Its coverage at 12 models is .905 rather than .95. So quote the
    t interval; this one shows how much the fit depends on single models.

    Args:
        table: comparable rows with gmacs, block, size, patch_size, seed, sampling_seed and the metric > 0.
        metric: its column.
        resamples: number of draws.
        seed: of the draws.

    Raises:
        CannotFitError: fewer than four models, or missing or non-positive values.
        InputError: rows that were measured differently.
    """
    draws = _draws(table, metric, 4, resamples, seed)
    log_x = np.log(draws.models["gmacs"].to_numpy(float))
    return draws.interval(-draws.coefficients(np.column_stack([np.ones(len(log_x)), log_x]))[1])


def bootstrap_floor(
    table: pd.DataFrame, metric: str = METRIC, resamples: int = 1000, seed: int = 0
) -> tuple[Bootstrap, Bootstrap]:
    """Bootstrap the exponent and the floor of a power law with a floor; every draw is fitted again.

    Raises:
        CannotFitError: fewer than five models, or missing or non-positive values.
        InputError: rows that were measured differently.
    """
    draws = _draws(table, metric, 5, resamples, seed)
    rows = per_shape(table, metric)
    best = fit_floor(rows["gmacs"].to_numpy(float), rows[metric].to_numpy(float), profile=False)
    start = np.array([np.log(best.coefficient), best.exponent, best.floor])
    found = refit_floors(np.log(draws.models["gmacs"].to_numpy(float))[draws.drawn], draws.log_y, start)
    return draws.interval(found[:, 1]), draws.interval(found[:, 2])


def bootstrap_interaction(
    table: pd.DataFrame, metric: str = METRIC, resamples: int = 2000, seed: int = 0
) -> tuple[Bootstrap, ...]:
    """Bootstrap every coefficient of the params-and-tokens form.

    Raises:
        CannotFitError: fewer than six models, or missing or non-positive values.
        InputError: rows that were measured differently.
    """
    draws = _draws(table, metric, 6, resamples, seed)
    design = interaction_design(draws.models["params"].to_numpy(float), draws.models["tokens"].to_numpy(float))
    return tuple(map(draws.interval, draws.coefficients(design)))


def _draws(table: pd.DataFrame, metric: str, least: int, resamples: int, seed: int) -> _Draws:
    require_comparable(table)
    _, y = checked(table["gmacs"].to_numpy(float), table[metric].to_numpy(float), least=least)
    rng = np.random.default_rng(seed)
    keys = [table[column] for column in ("block", *SHAPE, "step") if column in table]
    models = table.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
    seeds = pd.factorize(training_of(table), sort=True)[0]
    count = int(models.max()) + 1
    if count < least:
        raise CannotFitError(f"{count} models; a bootstrap over models needs at least {least}")
    values = [[np.log(y[(models == m) & (seeds == s)]) for s in np.unique(seeds[models == m])] for m in range(count)]
    drawn = rng.integers(count, size=(resamples, count))
    log_y = np.empty(drawn.shape)
    for m in range(count):
        at = drawn == m
        log_y[at] = _nested_means(values[m], int(at.sum()), rng)
    levels = ["model"] + ["training seed"] * any(len(runs) > 1 for runs in values)
    levels += ["sampling seed"] * any(len(samples) > 1 for runs in values for samples in runs)
    first = [int(np.argmax(models == m)) for m in range(count)]
    return _Draws(table.iloc[first].reset_index(drop=True), drawn, log_y, tuple(levels))


def _nested_means(runs: list[Array], count: int, rng: np.random.Generator) -> Array:
    """`count` means over resampled runs, each of them a mean over its resampled samples; shape [count]."""
    chosen = rng.integers(len(runs), size=(count, len(runs)))
    means = np.empty(chosen.shape)
    for index, samples in enumerate(runs):
        at = chosen == index
        again = rng.integers(len(samples), size=(int(at.sum()), len(samples)))
        means[at] = samples[again].mean(axis=1)
    return np.asarray(means.mean(axis=1))
