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
# # Gflops against FID
#
# How the Fréchet distance falls with the compute of one forward pass: the fits with their intervals, the slope per
# patch size, what a larger model would reach, and whether equal compute buys equal quality (the paper's Figures 2, 8).
#
# Runs on any study: set `DIT_STUDY` to its folder (default: the published numbers, `results/paper`), or call
# `study_table("results/NAME")` below. `make notebooks` executes it; nothing is computed here, all is from `analysis`.

# %%
# %matplotlib inline
from analysis import printed
from analysis.figures.scaling import bubbles, metric_against_gflops
from analysis.figures.style import or_reason
from analysis.notebooks import study_table
from analysis.slices import largest_slice
from analysis.study import fit_slice

table = study_table()
found = fit_slice(largest_slice(table))
found.label

# %%
what = (found.rows, found.piece.metric, found.label)
or_reason(metric_against_gflops, *what, found.lines["semi-log"], found.correlation)

# %%
or_reason(metric_against_gflops, *what, found.lines["power law"], found.correlation)

# %%
or_reason(bubbles, *what)

# %% [markdown]
# The fits. Quote the t interval; the flags say what the data cannot tell.

# %%
printed.fit_table(found).frame

# %%
printed.slope_table(found).frame

# %% [markdown]
# What a larger model would reach. Where the forms differ by more than their intervals, no forecast is supported.

# %%
printed.forecast_table(found).frame

# %%
printed.pair_table(found).frame

# %% [markdown]
# What could not be computed, and why:

# %%
dict(found.omitted)
