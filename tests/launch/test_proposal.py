"""Prices of proposals: those of the plan, and what no plan counts; and speeds that are learned from probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.launch.plan import plan, totals
from harness.launch.probe import ProbeJob
from harness.launch.proposal import Prices, proposal
from harness.runs.cellruns import cell_runs
from harness.runs.probes import Probe, Spread, write_probe
from harness.runs.study import Study
from sweeps.proposal import COUNTED, Design, Facts

FACTS = Facts("/pictures/birds", "birds", "0" * 12, (900, 900), 200, side=8, labelled=True)

DESIGN = Design(FACTS, 8, 0, 1, 64)


@pytest.fixture
def prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prices:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return Prices(Path("birds.toml"), Study(tmp_path, "birds"), gpu_time=False)


def test_a_price_is_that_of_the_plan_and_the_extractor(prices: Prices) -> None:
    sweep = DESIGN.sweep(prices.path, "birds")
    planned = totals(sweep, plan(sweep, cell_runs(sweep, prices.study)))["estimated_s"]
    extractor = sweep.evaluations[0].extractor
    cell = next(cell for _, cell in sweep.cells())
    gmacs = 3 * extractor.gmacs(cell.data.image_shape) * extractor.batch_size * extractor.steps  # type: ignore[union-attr]
    assert gmacs > 10
    assert prices(DESIGN) == pytest.approx(planned + gmacs / 25)
    prices.slowness = 3.0
    assert prices(DESIGN) == pytest.approx(3 * planned + 3 * gmacs / 25, rel=0.01)


@pytest.mark.parametrize("slowness", [0.5, 20.0])
def test_a_machine_is_measured_until_all_that_is_proposed_is(prices: Prices, slowness: float) -> None:
    rounds: list[int] = []

    def measure(jobs: Sequence[ProbeJob]) -> None:
        rounds.append(len(jobs))
        for job in jobs:
            seconds = slowness * 1e-9 * job.cell.model.macs_proxy(job.cell.data.shape)
            spread = Spread(seconds, seconds, seconds)
            write_probe(job.shared, job.shape, Probe(spread, Spread(*(one / 200 for one in spread)), 1), "")

    facts = replace(FACTS, side=40)
    design = proposal(facts, 1800.0, prices, measure)
    assert rounds[0] == 1
    assert not prices.unmeasured(design)
    assert {row["time_source"] for row in prices.rows(design)} == {"measured by a probe"}
    assert 0.8 * COUNTED * 1800 < prices(design) <= COUNTED * 1800
    assert (design.resolution, design.seeds) == ((32, 2) if slowness < 1 else (16, 1))
