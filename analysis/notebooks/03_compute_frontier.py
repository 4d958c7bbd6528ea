# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The compute-optimal frontier
#
# What the best checkpoint reaches for a training budget and which model it is: the lower envelope over all checkpoints,
# and slices at equal training compute (the paper's Figure 9). It assumes a constant learning rate.
#
# Runs on any study: set `DIT_STUDY` to its folder (default: the published numbers, `results/paper`), or call
# `study_table("results/NAME")` below. `make notebooks` executes it; nothing is computed here, all is from `analysis`.

# %%
# %matplotlib inline
from analysis import printed
from analysis.figures.frontier import frontier as draw_frontier
from analysis.figures.frontier import isoflops
from analysis.fit.common import CannotFitError
from analysis.frontier import checkpoints, find_frontier, isoflop_slices
from analysis.notebooks import study_table
from analysis.slices import largest_slice

piece = largest_slice(study_table())
try:
    frontier = find_frontier(piece)
    shown = draw_frontier(checkpoints(piece), frontier, piece.metric, piece.label)
except CannotFitError as reason:
    frontier, shown = None, f"no frontier: {reason}"
shown

# %%
listed = printed.frontier_table(frontier, piece.metric, piece.label) if frontier else None
print(listed.caption if listed else shown)
listed.frame if listed else None

# %% [markdown]
# Slices at equal training compute need three models of a patch size with several checkpoints each.

# %%
try:
    slices = isoflop_slices(piece)
    shown = isoflops(slices, piece.metric, piece.label)
except CannotFitError as reason:
    slices, shown = [], f"no slices: {reason}"
shown

# %%
printed.isoflop_table(slices, piece.metric).frame
