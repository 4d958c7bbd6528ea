"""Which widths a pilot takes in the time that is given, and the study that it makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from harness.errors import InputError
from harness.files import write_text
from harness.launch.plan import plan, totals
from harness.runs.cellruns import cell_runs
from harness.runs.state import State
from harness.runs.study import Study
from sweeps.grid import Sweep, load_sweep
from sweeps.pilot import pilot, rates_around, widths
from sweeps.text import text_of


class Design(NamedTuple):
    """A pilot, and what it takes if nothing of it is done."""

    sweep: Sweep
    widths: tuple[int, ...]
    seconds: float  # wall time
    source: str  # where, and on whose word


def design(sweep: Sweep, study: Study, rates: Sequence[float] | None, hours: float | None) -> Design:
    """The pilot of a sweep: its smallest width, the largest that the time allows, and the one nearest to their middle.

    A pilot that was begun keeps its widths.

    Args:
        sweep: with the resources on which the pilot is to run.
        study: of the pilot.
        rates: to try; None: five around the sweep's own.
        hours: wall time that it may take; None: any.

    Raises:
        InputError: the sweep has one width only, or two take longer than that.
    """
    known = widths(sweep)
    begun = _begun(study)
    found = None
    for chosen in [begun] if begun and begun <= known.keys() else _choices([*known]):
        cells = [known[width] for width in sorted(chosen)]
        made = pilot(sweep, cells, rates or rates_around(cells))
        rows = plan(made, cell_runs(made, study))
        total = totals(made, [{**row, "state": State.MISSING.value} for row in rows])
        found = Design(made, tuple(sorted(chosen)), total["estimated_s"], f"{total['site']}, {total['time_source']}")
        if begun or hours is None or found.seconds <= hours * 3600:
            return found
    assert found is not None
    raise InputError(
        f"--hours {hours:g}: the two smallest widths, {found.widths[0]} and {found.widths[1]}, take about "
        f"{found.seconds / 3600:.2g} hours ({found.source}); allowed: that or more"
    )


def save(found: Sweep, study: Study) -> None:
    """Write the pilot as the sweep file of its study, so that every verb takes its name."""
    for extension in found.extensions:
        write_text(study.folder / extension.name, extension.text)
    text = text_of(found, "dit-harness pilot")
    if not study.sweep_file.exists() or study.sweep_file.read_text(encoding="utf-8") != text:
        write_text(study.sweep_file, text)


def _choices(every: Sequence[int]) -> Iterator[set[int]]:
    """The smallest width, a larger one, and the one nearest to their geometric middle; the largest choice first."""
    for last in reversed(range(1, len(every))):
        middle = math.sqrt(every[0] * every[last])
        between = sorted(every[1:last], key=lambda width: abs(math.log(width / middle)))
        yield {every[0], every[last], *between[:1]}


def _begun(study: Study) -> set[int]:
    """The widths of a pilot that was begun; empty where none was."""
    if not study.sweep_file.exists():
        return set()
    cells = [cell for _, cell in load_sweep(study.sweep_file, study.name).cells()]
    return {width for cell in cells if isinstance(width := getattr(cell.model, "width", None), int)}
