"""What gap a number of trainings can show, by the noncentral t distribution; gaps and deviations are of ln of a value.

A gap counts as shown where a two-sided t test at 5 % finds it with probability `POWER` (Cohen 1988, chapter 2).
"""

from __future__ import annotations

import math
from bisect import bisect_left

POWER = 0.8
SIGNIFICANCE = 0.05

#: Standard deviation of ln FID between trainings of one model, in the literature: 1 to 2 % at every size, 1.26 % for
#: SiT-B/2 (Dufour et al. 2026, arXiv:2606.20536).
LITERATURE_SD = 0.013

#: The most trainings that are asked for.
MOST = 10_000


def smallest_gap(sd: float, trainings: int, paired: bool = False) -> float:
    """The smallest gap between two designs that a comparison shows.

    Args:
        sd: standard deviation between trainings of one design; with pairs, of their differences.
        trainings: of each design, n; two or more.
        paired: the trainings are paired by seed: n - 1 degrees of freedom. Otherwise 2 n - 2.

    Raises:
        ValueError: fewer than two trainings.
    """
    from scipy.special import nctdtrinc, stdtrit

    if trainings < 2:
        raise ValueError(f"{trainings} trainings of a design; a t test needs two or more")
    groups = 1 if paired else 2
    freedom, error = groups * (trainings - 1), sd * math.sqrt(groups / trainings)
    noncentrality = nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - SIGNIFICANCE / 2))
    return float(noncentrality) * error


def trainings_needed(gap: float, sd: float, paired: bool = False) -> int | None:
    """Trainings of each design that show a gap, two or more; None where `MOST` do not.

    Args:
        gap: between the two designs, above 0.
        sd: as for `smallest_gap`.
        paired: as there.
    """
    found = 2 + bisect_left(range(2, MOST + 1), -gap, key=lambda count: -smallest_gap(sd, count, paired))
    return found if found <= MOST else None
