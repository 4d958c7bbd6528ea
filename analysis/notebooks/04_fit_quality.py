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
# # How good are the fits?
#
# Forms are judged by what they predict of models they have not seen: leave one model, one size or one patch size out,
# and forecast the large from the small. Residuals show what a form cannot describe.
#
# Runs on any study: set `DIT_STUDY` to its folder (default: the published numbers, `results/paper`), or call
# `study_table("results/NAME")` below. `make notebooks` executes it; nothing is computed here, all is from `analysis`.

# %%
# %matplotlib inline
from analysis import printed
from analysis.figures.quality import held_out_errors, residual_maps
from analysis.figures.style import or_reason
from analysis.notebooks import study_table
from analysis.slices import largest_slice
from analysis.study import fit_slice

found = fit_slice(largest_slice(study_table()))
or_reason(held_out_errors, found.held, found.piece.metric, found.label)

# %%
printed.ranking_table(found).frame

# %%
printed.held_table(found).frame

# %%
or_reason(residual_maps, found.rows, found.residuals, found.piece.metric, found.label)

# %%
printed.residual_table(found).frame

# %% [markdown]
# Intervals of the same parameters by other means, and what the fits cannot tell. Their coverage on made-up data with a
# known law is measured by `python -m tests.analysis.coverage` and printed in `docs/analysis.md`.

# %%
printed.fit_table(found).frame

# %%
{residuals.form: fit.flags for residuals, fit in zip(found.residuals, found.fits, strict=True)}
