"""Figures: each is a function of a table (and a fit) that returns a matplotlib Figure; `save` makes files of it."""

from analysis.figures.samples import find_samples, sample_sheet
from analysis.figures.scaling import baselines, bubbles, metric_against_gflops, sampling_compute, training_compute
from analysis.figures.style import CannotDrawError, save, write_atomic
from analysis.figures.training import block_bars, over_steps

__all__ = [
    "CannotDrawError",
    "baselines",
    "block_bars",
    "bubbles",
    "find_samples",
    "metric_against_gflops",
    "over_steps",
    "sample_sheet",
    "sampling_compute",
    "save",
    "training_compute",
    "write_atomic",
]
