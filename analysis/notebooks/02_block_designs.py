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
# The conditioning blocks against adaLN-Zero at the same shape and step: difference with interval, compute multiplier,
# slope, verdict (the paper's Figure 5). With one training seed the verdict is always "inconclusive".
#
# Runs on any study: set `DIT_STUDY` to its folder (default: the published numbers, `results/paper`), or change `study`
# below. `make notebooks` executes it; nothing is computed here, all comes from `analysis`.

# %%
# %matplotlib inline
import os
from pathlib import Path

from analysis import figures, printed
from analysis.compare import block_slopes, compare_blocks, describe
from analysis.slices import largest_slice
from analysis.table import load_table

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "analysis").is_dir())
study = root / os.environ.get("DIT_STUDY", "results/paper")
piece = largest_slice(load_table(study))
rows, group = piece.siblings, piece.group
compared = compare_blocks(rows)
[describe(comparison, group.metric) for comparison in compared] or "one block design only: nothing to compare"

# %%
printed.block_table(compared, group.metric, group.label).frame

# %%
if compared:
    last = compared[-1]
    shown = figures.block_bars(
        last.rows_of(rows), group.metric, f"{last.shape}, {last.step:,} steps; {group.label}", compared
    )
else:
    shown = None
shown

# %% [markdown]
# Does a design gain more from compute? It takes three shapes of a patch size.

# %%
printed.block_slope_table(block_slopes(rows), group.label).frame
