"""The form of parameters and tokens, with their interaction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.fit.common import (
    CONFIDENCE,
    FEW_POINTS,
    WILD_RESAMPLES,
    Array,
    CannotFitError,
    Pair,
    checked,
    floats,
    least_squares,
)


@dataclass(frozen=True)
class InteractionFit:
    """ln y = c0 + c1 ln N + c2 ln T + c3 ln N ln T, with N parameters and T tokens; natural logarithms."""

    n: int
    coefficients: tuple[float, float, float, float]
    intervals: tuple[Pair, ...]  #: 95 %, Student t, one per coefficient
    intervals_hc3: tuple[Pair, ...]  #: 95 % with HC3 standard errors
    intervals_wild: tuple[Pair, ...]  #: 95 %, wild bootstrap
    sigma: float  #: residual standard deviation of ln y
    flags: tuple[str, ...] = ()
    _model: Any = field(default=None, repr=False, compare=False)

    def predict(self, params: Array, tokens: Array) -> Array:
        """The form at N and T, shape [k] each, in the unit of the metric."""
        return np.asarray(np.exp(interaction_design(params, tokens) @ np.array(self.coefficients)))

    @property
    def form(self) -> str:
        """Name of the form."""
        return "params and tokens"

    def band(self, params: Array, tokens: Array) -> pd.DataFrame:
        """The form at N and T, shape [k] each: columns mean (the median), low, high (95 %, of a new model)."""
        frame = self._model.get_prediction(interaction_design(params, tokens)).summary_frame(alpha=1 - CONFIDENCE)
        out: pd.DataFrame = frame[["mean", "obs_ci_lower", "obs_ci_upper"]]
        return out.set_axis(["mean", "low", "high"], axis=1).map(np.exp)

    def predicted(self, rows: pd.DataFrame) -> pd.DataFrame:
        """A new model at the params and tokens of the rows: columns mean, low, high (95 %)."""
        return self.band(floats(rows, "params"), floats(rows, "tokens"))

    def jacobian(self, rows: pd.DataFrame) -> Array:
        """Derivatives of the form's logarithm by its coefficients, shape [n, 4]."""
        return interaction_design(floats(rows, "params"), floats(rows, "tokens"))

    def fitted(self, rows: pd.DataFrame) -> Array:
        """The form at the params and tokens of the rows, shape [n], in the unit of the metric."""
        return self.predict(floats(rows, "params"), floats(rows, "tokens"))


def fit_interaction(params: Array, tokens: Array, y: Array, resamples: int = WILD_RESAMPLES) -> InteractionFit:
    """Ordinary least squares of the params-and-tokens form; all arguments positive, shape [n].

    Without `resamples` the intervals of the wild bootstrap are NaN.

    Raises:
        CannotFitError: fewer than six points for four parameters, missing or non-positive values, a constant metric,
            or parameters and tokens that do not vary independently.
    """
    params, y = checked(params, y, least=6, what="parameters")
    tokens, _ = checked(tokens, y, least=6, what="tokens")
    design = interaction_design(params, tokens)
    if np.linalg.matrix_rank(design - design.mean(0) * (np.arange(4) > 0)) < 4:
        raise CannotFitError("parameters and tokens do not vary independently, so their effects cannot be told apart")
    fit = least_squares(design, np.log(y), resamples)
    return InteractionFit(
        n=len(y),
        coefficients=tuple(float(c) for c in fit.model.params),  # type: ignore[arg-type]
        intervals=fit.t,
        intervals_hc3=fit.hc3,
        intervals_wild=fit.wild,
        sigma=float(np.sqrt(fit.model.scale)),
        flags=() if len(y) >= FEW_POINTS else (f"few points: {len(y)} for 4 parameters",),
        _model=fit.model,
    )


def interaction_design(params: Array, tokens: Array) -> Array:
    """The columns 1, ln N, ln T, ln N ln T of parameters and tokens, shape [n] each -> [n, 4]."""
    n, t = np.log(np.asarray(params, float)), np.log(np.asarray(tokens, float))
    return np.column_stack([np.ones(len(n)), n, t, n * t])
