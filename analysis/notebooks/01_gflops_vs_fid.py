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
# Runs on any study: set `DIT_STUDY` to its folder (default: the published numbers, `results/paper`), or change `study`
# below. `make notebooks` executes it; nothing is computed here, all comes from `analysis`.

# %%
# %matplotlib inline
import os
from pathlib import Path

from analysis import figures, printed
from analysis.slices import largest_slice
from analysis.study import fit_slice
from analysis.table import load_table

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "analysis").is_dir())
study = root / os.environ.get("DIT_STUDY", "results/paper")
table = load_table(study)
found = fit_slice(largest_slice(table))
found.label

# %%
what = (found.rows, found.piece.metric, found.label)
figures.or_reason(figures.metric_against_gflops, *what, found.lines["semi-log"], found.correlation)

# %%
figures.or_reason(figures.metric_against_gflops, *what, found.lines["power law"], found.correlation)

# %%
figures.or_reason(figures.bubbles, *what)

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
