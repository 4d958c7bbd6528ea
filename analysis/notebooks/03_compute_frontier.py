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
# the law L = E + A / M^alpha + B / I^beta, and slices at equal training compute (the paper's Figure 9). It assumes a
# constant learning rate.
#
# Runs on any study: set `DIT_STUDY` to its folder (default: the published numbers, `results/paper`), or call
# `study_table("results/NAME")` below. `make notebooks` executes it; nothing is computed here, all is from `analysis`.

# %%
# %matplotlib inline
from analysis import printed_laws
from analysis.figures.frontier import frontier as draw_frontier
from analysis.figures.laws import best_sizes, isoflops
from analysis.figures.style import or_reason
from analysis.fit.common import CannotFitError
from analysis.frontier import checkpoints, find_frontier
from analysis.notebooks import study_table
from analysis.slices import largest_slice
from analysis.study_laws import study_laws

piece = largest_slice(study_table())
rows = checkpoints(piece)
try:
    frontier = find_frontier(rows, piece.column)
    shown = draw_frontier(rows, frontier, piece.metric, piece.label)
except CannotFitError as reason:
    frontier, shown = None, f"no frontier: {reason}"
shown

# %%
listed = printed_laws.frontier_table(frontier, piece.metric, piece.label) if frontier else None
print(listed.caption if listed else shown)
listed.frame if listed else None

# %% [markdown]
# The law within each patch size and over all of them, and the best size for a budget in three ways. Models must have
# been trained for several lengths; what cannot be told is listed with its reason.

# %%
try:
    laws = study_laws(piece)
    shown = {f"{what}, {one.label}": why for one in laws for what, why in one.omitted}
except CannotFitError as reason:
    laws, shown = [], f"no law: {reason}"
shown

# %%
printed_laws.law_table(laws).frame if laws else None

# %%
printed_laws.approach_table(laws).frame if laws else None

# %%
or_reason(best_sizes, laws[0].approaches, laws[0].words, piece.label) if laws else None

# %%
panels = {one.label: (one.budgets, way) for one in laws if one.budgets and (way := one.approach("parabolas"))}
or_reason(isoflops, panels, laws[0].words, piece.label) if panels else None

# %%
printed_laws.optimum_table(laws).frame if laws else None
