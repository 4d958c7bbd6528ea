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
# # Block designs
#
# The conditioning blocks against adaLN-Zero at the same shape and step: ratio with interval, compute multiplier,
# slope, verdict (the paper's Figure 5). With one training seed the verdict is always "inconclusive".
#
# Runs on any study: set `DIT_STUDY` to its folder (default: the published numbers, `results/paper`), or call
# `study_table("results/NAME")` below. `make notebooks` executes it; nothing is computed here, all is from `analysis`.

# %%
# %matplotlib inline
from analysis import printed
from analysis.compare import block_slopes, compare_blocks, describe
from analysis.figures.blocks import block_bars
from analysis.notebooks import study_table
from analysis.slices import largest_slice

piece = largest_slice(study_table())
rows, group = piece.siblings, piece.group
compared = compare_blocks(rows)
[describe(comparison, group.metric) for comparison in compared] or "one block design only: nothing to compare"

# %%
printed.block_table(compared, group.metric, group.label).frame

# %%
if compared:
    last = compared[-1]
    shown = block_bars(last.rows_of(rows), group.metric, f"{last.shape}, {last.step:,} steps; {group.label}", compared)
else:
    shown = None
shown

# %% [markdown]
# Does a design gain more from compute? It takes three shapes of a patch size.

# %%
printed.block_slope_table(block_slopes(rows), group.label).frame
