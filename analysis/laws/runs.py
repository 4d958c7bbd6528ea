"""The runs that a law is fitted to: size, data and loss, and which model each is of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from analysis.fit.common import Array, CannotFitError
from analysis.names import plural
from analysis.numbers import number

#: Operations per multiply-add of a training step: two each forward, and twice that backward.
OPERATIONS = 6

LEAST_VALUES = 3  # of size and of data: E + A / M^alpha has three constants
_SAME = 0.02  # sizes that differ by less, relatively, are of one model


@dataclass(frozen=True)
class Words:
    """What size, data and loss are called in print."""

    size: str = "M"
    data: str = "I"
    size_title: str = "Multiply-adds of an image, M"
    data_title: str = "Images seen, I"
    loss: str = "loss"

    @property
    def meaning(self) -> str:
        """What the letters stand for."""
        titles = {self.size: self.size_title, self.data: self.data_title}
        return ", ".join(f"{letter}: {title.rpartition(',')[0].lower()}" for letter, title in titles.items())

    @property
    def compute(self) -> str:
        """The training compute, as an axis says it."""
        return f"Training compute C = 6 {self.size} {self.data}, operations"


@dataclass(frozen=True)
class Runs:
    """Measured losses, all arrays of shape [n]; checkpoints of one model are runs of it."""

    size: Array  #: multiply-adds of one forward pass of one image, or parameters
    data: Array  #: images seen, or tokens
    loss: Array
    model: npt.NDArray[np.int64]  #: index of the model; the bootstrap draws models with all their runs
    tokens: Array | None = None  #: tokens of an image
    seed_sd: float | None = None  #: standard deviation of ln loss between seeds, where they repeat

    @property
    def compute(self) -> Array:
        """Operations of the training, C = 6 M I, shape [n]."""
        return np.asarray(OPERATIONS * self.size * self.data)

    @property
    def models(self) -> int:
        """Number of distinct models."""
        return len(np.unique(self.model))

    def where(self, kept: npt.NDArray[np.bool_]) -> Runs:
        """Some of the runs."""
        tokens = None if self.tokens is None else self.tokens[kept]
        return replace(
            self,
            size=self.size[kept],
            data=self.data[kept],
            loss=self.loss[kept],
            model=self.model[kept],
            tokens=tokens,
        )


def separate_runs(size: Array, data: Array, loss: Array) -> Runs:
    """Runs that were all trained apart, as in a table of anyone's: each is a model of its own."""
    return Runs(size, data, loss, np.arange(len(size)))


def of_one_size(size: Array) -> npt.NDArray[np.int64]:
    """A number per run, shape [n], equal where sizes differ by less than 2 %: what a figure gives is not exact."""
    return near(size, _SAME)


def near(values: Array, share: float) -> npt.NDArray[np.int64]:
    """A number per value, shape [n], by value; a group ends where a value is above its first by more than `share`."""
    groups = np.zeros(len(values), np.int64)
    first, group = -np.inf, -1
    for index in np.argsort(values, kind="stable"):
        if values[index] > first * (1 + share) or group < 0:
            first, group = values[index], group + 1
        groups[index] = group
    return groups


def require_lengths(runs: Runs, words: Words) -> None:
    """Refuse runs of one size, or all but one model of one length: they say how they were chosen, not what is best.

    Raises:
        CannotFitError: naming what does not vary.
    """
    for name, other, values in ((words.data, words.size, runs.data), (words.size, words.data, runs.size)):
        if len(np.unique(near(values, _SAME))) == 1:
            raise CannotFitError(
                f"{name} is {number(values[0])} in every run, so compute is {other} times a constant and the best "
                f"{other} grows as C^1.00 by construction; needed: {LEAST_VALUES} or more values of {name}"
            )
    for model in np.unique(runs.model):
        if len(np.unique(near(runs.data[runs.model != model], _SAME))) == 1:
            raise CannotFitError(
                f"{words.data} varies within one model only, so what it does rests on that model alone; needed: "
                f"several models of {LEAST_VALUES} or more values of {words.data}"
            )


def require_law(runs: Runs, constants: int, words: Words) -> None:
    """Refuse runs that cannot carry a law in size and data.

    Raises:
        CannotFitError: too few runs, a value without a logarithm, or sizes and data that do not vary independently.
    """
    for name, values in ((words.size, runs.size), (words.data, runs.data), (words.loss, runs.loss)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise CannotFitError(f"a value of {name} is missing or not positive, so it has no logarithm")
    if len(runs.loss) <= constants:
        raise CannotFitError(f"{plural(len(runs.loss), 'run')} for {constants} constants; needed: {constants + 1}")
    require_lengths(runs, words)
    for name, values in ((words.data, runs.data), (words.size, runs.size)):
        if (count := len(np.unique(near(values, _SAME)))) < LEAST_VALUES:
            raise CannotFitError(f"{name} has {count} values; needed: {LEAST_VALUES} or more")
    logs = np.column_stack([np.log(runs.size), np.log(runs.data)])
    if np.ptp(logs.sum(axis=1)) < np.log(1 + _SAME):
        raise CannotFitError(f"all runs have one budget, C = {np.median(runs.compute):.3g}: that carries no law")
    logs -= logs.mean(axis=0)
    if np.linalg.matrix_rank(logs, tol=1e-3 * float(np.abs(logs).max())) < 2:
        raise CannotFitError(f"{words.size} and {words.data} do not vary independently, so they cannot be told apart")
