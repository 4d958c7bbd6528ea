"""Fit a metric against compute, parameters and tokens. Fits return frozen dataclasses and never draw.

Everything is fitted in log space. Intervals of the linear forms come from statsmodels' ordinary least squares (Student
t; HC3 where the noise may differ between models) and from a wild bootstrap, those over training and sampling seeds from
a hierarchical bootstrap. The `flags` of a fit say what it cannot tell. If the data do not suffice for a fit, it raises
`CannotFitError` with the reason, for the report. Measured coverage: docs/analysis.md.
"""
