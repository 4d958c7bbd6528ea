"""Figures: each is a function of a table (and a fit) that returns a matplotlib Figure; `save` makes files of it."""

from analysis.figures.evaluation import distance_against_samples, memorisation
from analysis.figures.frontier import frontier, isoflops
from analysis.figures.metrics import all_metrics
from analysis.figures.quality import held_out_errors, residual_maps
from analysis.figures.samples import find_samples, sample_sheet
from analysis.figures.scaling import baselines, bubbles, metric_against_gflops, sampling_compute, training_compute
from analysis.figures.style import CannotDrawError, or_reason, save
from analysis.figures.training import block_bars, loss_with_zoom, over_steps

__all__ = [
    "CannotDrawError",
    "all_metrics",
    "baselines",
    "block_bars",
    "bubbles",
    "distance_against_samples",
    "find_samples",
    "frontier",
    "held_out_errors",
    "isoflops",
    "loss_with_zoom",
    "memorisation",
    "metric_against_gflops",
    "or_reason",
    "over_steps",
    "residual_maps",
    "sample_sheet",
    "sampling_compute",
    "save",
    "training_compute",
]
