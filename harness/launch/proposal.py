"""A proposal for a folder, priced as the plan prices it; the shapes it comes upon are probed on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from harness.launch.first import first_seconds, trained_first
from harness.launch.machine import visible_gpus
from harness.launch.plan import Row, plan, totals
from harness.launch.probe import ProbeJob, probes_of
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.study import Shared, Study
from sweeps.grid import Sweep
from sweeps.proposal import Design, Facts, fitted, propose

#: After so many rounds of proposing and probing the models stay; then only the steps follow the measurements.
_ROUNDS = 5


@dataclass
class Prices:
    """What designs cost, in seconds.

    Attributes:
        path: of the sweep file, for messages.
        study: of the proposal; its results folder holds the probes.
        gpu_time: count the time of one GPU; False: the wall time of this machine.
        slowness: what probed shapes take over what is assumed of them; those that are not probed are taken to be alike.
    """

    path: Path
    study: Study
    gpu_time: bool
    slowness: float = field(default=1.0, init=False)

    @property
    def on_gpu(self) -> bool:
        """Whether the cells run on a GPU."""
        return self.gpu_time or bool(visible_gpus())

    @property
    def here(self) -> bool:
        """Whether it is this machine that is priced, so that it can be measured."""
        return not self.gpu_time or bool(visible_gpus())

    def __call__(self, design: Design) -> float:
        """The seconds of a design, without those of starts, losses and scoring."""
        sweep, items = self._of(design)
        rows = [
            row if _is_measured(row) else _slower(row, self.slowness) for row in self._rows(sweep, items, probed=True)
        ]
        first = first_seconds(sum(trained_first(sweep, [items[0].cell], Shared(self.study.root)).values()), rows[0])
        first *= 1 if rows[0]["on_gpu"] else self.slowness
        if self.gpu_time:
            seconds = sum(row["estimated_s"] for row in rows) + max(row["encoding_s"] for row in rows)
            return first + float(seconds)
        return first + float(totals(sweep, rows)["estimated_s"])

    def rows(self, design: Design) -> list[Row]:
        """The plan of a design, a row a cell."""
        return self._rows(*self._of(design), probed=True)

    def where(self, design: Design) -> str:
        """Where a design would run, and on whose word it takes so long."""
        rows = self.rows(design)
        sources = " and ".join(dict.fromkeys(row["time_source"] for row in rows))
        site = "of one GPU" if self.gpu_time else f"on {rows[0]['site']}"
        return f"{site} ({sources})"

    def unmeasured(self, design: Design) -> list[ProbeJob]:
        """The probes that its shapes lack, the cheapest first; none where the machine is not this one."""
        return probes_of(*self._of(design), self.study.root) if self.here else []

    def learn(self, design: Design) -> None:
        """Take the slowness of this machine from the shapes of a design that are probed."""
        sweep, items = self._of(design)
        pairs = zip(self._rows(sweep, items, probed=True), self._rows(sweep, items, probed=False), strict=True)
        assumed = [(row, other["estimated_s"]) for row, other in pairs if _is_measured(row)]
        found = [row["estimated_s"] / seconds for row, seconds in assumed if seconds]
        self.slowness = median(found) if found else self.slowness

    def _of(self, design: Design) -> tuple[Sweep, list[CellRun]]:
        sweep = design.sweep(self.path, self.study.name)
        if not self.on_gpu:  # no plan then takes a GPU in place of cores on which it would take weeks
            sweep = sweep.with_resources({"device": "cpu"})
        return sweep, cell_runs(sweep, self.study)

    def _rows(self, sweep: Sweep, items: list[CellRun], *, probed: bool) -> list[Row]:
        return plan(sweep, items, gpus=None if self.here else 1, shared=Shared(self.study.root) if probed else None)


def proposal(
    facts: Facts,
    budget: float,
    prices: Prices,
    measure: Callable[[Sequence[ProbeJob]], None],
) -> Design:
    """The design that a budget allows on the machine that is priced.

    One shape is measured first, so that no other is chosen by assumed speeds; then those of what is proposed, until
    nothing is proposed that is not measured.

    Args:
        facts: of the folder.
        budget: in seconds, as `prices` gives them.
        prices: of designs.
        measure: runs probes and keeps them.
    """
    for number in range(_ROUNDS):
        design = propose(facts, budget, prices, on_gpu=prices.on_gpu)
        jobs = prices.unmeasured(design)
        if not jobs:
            return design
        measure(jobs if number else jobs[:1])
        prices.learn(design)
    return fitted(design, budget, prices)


def _is_measured(row: Row) -> bool:
    return bool(row["probe"]) and not row["probe"]["error"]


def _slower(row: Row, slowness: float) -> Row:
    return {**row, "estimated_s": row["estimated_s"] * slowness}
