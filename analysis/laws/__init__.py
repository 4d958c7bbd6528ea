"""Laws of loss in size and data, L = E + A / M^alpha + B / I^beta, and the best size for a training budget C = 6 M I.

M is the multiply-adds of one forward pass of one image and I the images seen; in a table of language models they are
parameters N and tokens D. Nothing here knows a study: `runs.Runs` holds the numbers, and whatever cannot be fitted
raises `CannotFitError` with the reason.

- `law.Law` predicts, differentiates and allocates; `parametric.fit_law` finds it, and draws it anew by a bootstrap.
- `approaches` are the three ways of Hoffmann et al. (2022) to the best size, from the losses at equal compute.
- `patches` asks whether a term for tokens predicts patch sizes that were left out.
"""
