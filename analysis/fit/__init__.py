"""Fit a metric against compute, parameters and tokens. Fits return frozen dataclasses and never draw.

Everything is fitted in log space. Intervals of the linear forms come from statsmodels' ordinary least squares (Student
t; HC3 where the noise may differ between models) and from a wild bootstrap, those over training and sampling seeds from
a hierarchical bootstrap. What a fit cannot tell is said in its `flags`, and a fit that the data cannot carry raises
`CannotFitError` with the reason, so that a report can state it. Measured coverage: docs/analysis.md.
"""

from analysis.fit.bootstrap import Bootstrap, bootstrap_exponent, bootstrap_floor, bootstrap_interaction
from analysis.fit.common import CONFIDENCE, FAR, FEW_POINTS, NARROW_RANGE, Array, CannotFitError
from analysis.fit.floor import FloorFit, fit_floor, floor_deviance
from analysis.fit.lines import Correlation, LineFit, correlate, fit_line
from analysis.fit.residuals import Residuals, fit_residuals, form_name
from analysis.fit.surface import InteractionFit, fit_interaction

__all__ = [
    "CONFIDENCE",
    "FAR",
    "FEW_POINTS",
    "NARROW_RANGE",
    "Array",
    "Bootstrap",
    "CannotFitError",
    "Correlation",
    "FloorFit",
    "InteractionFit",
    "LineFit",
    "Residuals",
    "bootstrap_exponent",
    "bootstrap_floor",
    "bootstrap_interaction",
    "correlate",
    "fit_floor",
    "fit_interaction",
    "fit_line",
    "fit_residuals",
    "floor_deviance",
    "form_name",
]
