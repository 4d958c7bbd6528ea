"""Which widths a pilot takes in the time that is given, and the study that it makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.errors import InputError
from harness.files import write_text
from harness.launch.plan import plan, totals
from harness.runs.cellruns import cell_runs
from harness.runs.state import State
from harness.runs.study import Study
from sweeps.grid import Sweep
from sweeps.pilot import pilot, rates_around, text_of, widths

#: How long a pilot takes, in seconds, and what that rests on.
Time = tuple[float, str]


def design(sweep: Sweep, study: Study, rates: Sequence[float] | None, hours: float | None) -> tuple[Sweep, Time]:
    """The pilot of a sweep: its smallest width, the largest that the time allows, and the one nearest to their middle.

    Args:
        sweep: with the resources on which the pilot is to run.
        study: of the sweep.
        rates: to try; None: five around the sweep's own.
        hours: wall time that it may take if nothing of it has run yet; None: any.

    Raises:
        InputError: the sweep has one width only, or two take longer than that.
    """
    known = widths(sweep)
    every = list(known)
    for largest in reversed(range(1, len(every))):
        middle = math.sqrt(every[0] * every[largest])
        between = min(every[1:largest], key=lambda width: abs(math.log(width / middle)), default=None)
        chosen = [known[width] for width in (every[0], between, every[largest]) if width is not None]
        found = pilot(sweep, chosen, rates or rates_around(chosen))
        time = _time(found, study)
        if hours is None or time[0] <= hours * 3600:
            return found, time
    raise InputError(
        f"--hours {hours:g}: the two smallest widths, {every[0]} and {every[1]}, take about {time[0] / 3600:.2g} hours "
        f"({time[1]}); allowed: that or more"
    )


def save(found: Sweep, study: Study) -> None:
    """Write the pilot as the sweep file of its study, so that every verb takes its name."""
    for extension in found.extensions:
        write_text(study.folder / extension.name, extension.text)
    text = text_of(found)
    if not study.sweep_file.exists() or study.sweep_file.read_text(encoding="utf-8") != text:
        write_text(study.sweep_file, text)


def _time(found: Sweep, study: Study) -> Time:
    """Wall time of the whole pilot, whatever of it is done."""
    rows = plan(found, cell_runs(found, study))
    total = totals(found, [{**row, "state": State.MISSING.value} for row in rows])
    return float(total["estimated_s"]), f"{total['site']}, {total['time_source']}"
