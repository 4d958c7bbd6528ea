"""The chosen guidance scales in print."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from analysis.guidance import Choice
from analysis.numbers import number
from analysis.page import Table


def choice_table(found: Sequence[Choice]) -> Table:
    """The scales of models measured in one way, and the distance without and with guidance, side by side."""
    metric, seeds = found[0].metric, max(len(one.reports) for one in found)
    steps = len({one.step for one in found}) > 1
    flags = any(one.flag for one in found)
    rows = []
    for one in found:
        without, at_best = (np.array(values) for values in zip(*one.reports, strict=True))
        spread = [number(values.std(ddof=1), 2) if len(values) > 1 else "" for values in (without, at_best)]
        rows.append(
            [one.name, *([one.step] if steps else []), one.scale, without.mean(), spread[0], at_best.mean(), spread[1]]
            + ([one.flag] if flags else [])
        )
    head = ["Model", *(["Steps"] if steps else []), "Best scale", "Without guidance", "SD", "At best scale", "SD"]
    caption = (
        f"{metric} without guidance and at the scale that is best on sampling seed {found[0].seed}, of other sampling "
        f"seeds (up to {seeds}): mean and standard deviation. {found[0].conditions}."
    )
    return Table.of(caption, " | ".join([*head, *(["Note"] if flags else [])]), rows)
