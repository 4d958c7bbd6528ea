"""The sections of a report: each takes tables, asks for fits and figures, and adds to the page."""

from analysis.sections.blocks import blocks
from analysis.sections.evaluation import evaluation
from analysis.sections.frontier import frontier
from analysis.sections.paper import paper_tables
from analysis.sections.records import attempts, costs, provenance, results, samples
from analysis.sections.scaling import metrics, scaling
from analysis.sections.training import sampling, training

__all__ = [
    "attempts",
    "blocks",
    "costs",
    "evaluation",
    "frontier",
    "metrics",
    "paper_tables",
    "provenance",
    "results",
    "samples",
    "sampling",
    "scaling",
    "training",
]
