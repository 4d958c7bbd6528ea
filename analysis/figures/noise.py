"""The noise of one value: every training and sampling of a model, and the gaps that trainings show."""

from __future__ import annotations

import numpy as np

from analysis.figures import style
from analysis.figures.style import Drawing
from analysis.fit.common import floats
from analysis.names import SHAPE
from analysis.power import smallest_gap
from analysis.study_noise import StudyNoise

_COUNTS = np.arange(2, 21)


@style.styled
def noise_figure(noise: StudyNoise, pair_sd: float | None = None) -> Drawing:
    """Deviations of a model's trainings and samplings from their mean, and the smallest gap by number of trainings.

    Args:
        noise: with noise between trainings; of several models the one with most values is drawn.
        pair_sd: standard deviation of the differences of ln in pairs of one seed, where there are pairs.
    """
    found = noise.together
    models = noise.rows.groupby(["block", *SHAPE], sort=False, dropna=False)
    rows = max((own for _, own in models), key=len)
    value = 100 * np.log(floats(rows, noise.column))
    trainings = list(dict.fromkeys(rows["training"]))
    place = rows["training"].map(trainings.index).to_numpy()
    means = np.array([value[place == index].mean() for index in range(len(trainings))])
    value, means = value - means.mean(), means - means.mean()
    figure, (left, right) = style.new_figure(1.9, columns=2, sharey=False)
    if found.training is not None:
        left.axhspan(-100 * found.training.sd, 100 * found.training.sd, color=style.GREY, alpha=0.15, linewidth=0)
    left.plot(place, value, "o", color=style.PALETTE[0], markersize=2, alpha=0.5, markeredgewidth=0)
    left.hlines(means, np.arange(len(means)) - 0.35, np.arange(len(means)) + 0.35, color="black", linewidth=0.8)
    left.set(xlabel="Training", ylabel=f"{style.shortened(noise.metric, 20)}, % from mean")
    left.set_xticks([])
    times = [1] + [found.samplings] * (found.sampling is not None and found.samplings > 1)
    ways = [(f"sampled {count}×", found.sd(count), False) for count in times]
    ways += [("pairs of one seed", pair_sd, True)] if pair_sd else []
    for (name, sd, paired), line, colour in zip(ways, style.LINES, style.PALETTE, strict=False):
        gaps = [100 * smallest_gap(sd, int(count), paired) for count in _COUNTS]
        right.plot(_COUNTS, gaps, linestyle=line, color=colour, label=name)
    style.log_scale(right, "y")
    right.set(xlabel="Trainings a design", ylabel="Smallest gap, %")
    right.legend()
    return style.finish(figure, f"Noise of {noise.metric}", noise.context)
