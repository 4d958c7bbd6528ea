"""Probes: what a short measurement finds, what becomes of a failure, and what a plan and an attempt make of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli.tables import plan_table
from harness.errors import InputError
from harness.launch import probe
from harness.launch.estimate import Basis, Probes, Throughput, work_of
from harness.launch.plan import plan, totals
from harness.model.cost import count_cell
from harness.runs.cellruns import cell_runs
from harness.runs.probes import Probe, Spread, write_probe
from harness.runs.study import Shared, Study
from sweeps.grid import Sweep, load_sweep
from tests.small_study import Bench, sweep_text

FOUND = Probe(Spread(0.5, 0.4, 0.7), Spread(0.01, 0.005, 0.02), 10**9, compiled=False)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    path = tmp_path / "small.toml"
    path.write_text(sweep_text("depth = [1, 2]\nseed = [0, 1]"))
    return load_sweep(path)


def test_a_shape_is_measured_in_this_process(sweep: Sweep) -> None:
    cell = next(sweep.cells()).cell
    found = probe.measure(cell, sweep.resources.model_copy(update={"micro_batch": 3, "sampling_batch": 2}), "cpu")
    assert found.step is not None
    assert found.image is not None
    for spread in (found.step, found.image):
        assert 0 < spread.least <= spread.median <= spread.most
    assert found.memory_bytes is not None
    assert found.memory_bytes > 10**7
    assert (found.compiled, found.error) == (False, "")


def test_each_distinct_shape_has_one_probe_and_only_what_lacks_one_is_measured(sweep: Sweep, tmp_path: Path) -> None:
    study = Study(tmp_path / "results", "small")
    items = cell_runs(sweep, study)
    jobs = probe.probes_of(sweep, items, study.root, gpus=0)
    assert [job.cell.model.layers for job in jobs] == [1, 2]
    write_probe(Shared(study.root), jobs[0].shape, FOUND, "now")
    write_probe(Shared(study.root), jobs[1].shape, Probe(error="out of memory"), "now")
    assert [job.cell.model.layers for job in probe.probes_of(sweep, items, study.root, gpus=0)] == [2]
    other = sweep.with_resources({"threads": 2})
    assert len(probe.probes_of(other, cell_runs(other, study), study.root, gpus=0)) == 2
    with pytest.raises(InputError, match=r"--measure: measures this machine, and the plan is for 3 GPUs"):
        probe.probes_of(sweep, items, study.root, gpus=3)


def test_a_probe_that_fails_is_a_line_and_not_the_end(sweep: Sweep, tmp_path: Path) -> None:
    class Bursts:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, ("raise MemoryError('no room')",)

    study = Study(tmp_path / "results", "small")
    items = cell_runs(sweep, study)
    good, bad = probe.probes_of(sweep, items, study.root, gpus=0)
    broken = dataclasses.replace(bad, extensions=(Bursts(),))  # type: ignore[arg-type]
    errors = [found.error for found in probe.run_probes([broken, good])]
    assert errors == ["out of memory", ""]
    rows = plan(sweep, items, gpus=0, shared=Shared(study.root))
    assert [row["probe"] and row["probe"]["error"] for row in rows] == ["", "", "out of memory", "out of memory"]
    assert [row["time_source"] for row in rows] == ["measured by a probe"] * 2 + ["assumed"] * 2
    assert rows[0]["estimated_least"] <= rows[0]["estimated_s"] <= rows[0]["estimated_most"]
    table = plan_table("t", rows, totals(sweep, rows))
    assert "(measured by a probe and assumed)" in table.caption
    shown = {column.title: [column.text(row) for row in rows] for column in table.columns}
    assert shown["probe"] == ["", "", "out of memory", "out of memory"]
    assert not any((study.root / folder).exists() for folder in ("runs", "small"))


def test_a_probe_gives_the_time_and_its_interval(sweep: Sweep) -> None:
    cell = next(sweep.cells()).cell
    work = work_of(cell, sweep.evaluations_of(cell), count_cell(cell).macs)
    basis = Basis(Throughput(1.0, "assumed"), {"cpu": (2.0, 3.0, 7.0)})
    rest = work.rest / 25 + 2e-3 * work.scored
    found = basis.estimate(work, "cpu", probe=FOUND)
    passes = 330 * 4
    expected = [round(40 * step + passes * image + rest, 1) for step, image in ((0.5, 0.01), (0.4, 0.005), (0.7, 0.02))]
    assert found == dict(zip(("seconds", "least", "most"), expected, strict=True)) | {"source": "measured by a probe"}
    once = dataclasses.replace(work, scored=0)
    assert basis.estimate(work, "cpu")["seconds"] - basis.estimate(once, "cpu")["seconds"] == pytest.approx(
        3 * 2e-3 * work.scored, abs=0.11
    ), "scoring takes time, too"
    by_cells = basis.estimate(work, "cpu", probe=Probe(error="failed"))
    assert by_cells["source"] == "measured on 3 finished cells of this machine"
    assert by_cells["least"] is not None
    assert by_cells["seconds"] == pytest.approx(by_cells["least"] * 3 / 2, abs=0.1)


def test_a_torn_probe_counts_as_none(sweep: Sweep, tmp_path: Path) -> None:
    cell, shared = next(sweep.cells()).cell, Shared(tmp_path)
    job = probe.ProbeJob(cell, sweep.resources, "cpu", str(tmp_path))
    path = write_probe(shared, job.shape, FOUND, "now")
    assert Probes(shared).of(cell, sweep.resources, "cpu") == FOUND
    document = json.loads(path.read_text())
    for odd in ({"step": [1]}, {"more": 1}, {}):
        path.write_text(json.dumps({**document, "probe": odd}))
        assert Probes(shared).of(cell, sweep.resources, "cpu") is None


def test_an_attempt_holds_its_estimate_and_the_report_sets_it_beside_the_truth(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sweep_text("depth = [1]"))
    shared = Shared(bench.study.parent)
    sweep = load_sweep(bench.sweep)
    cell = next(sweep.cells()).cell
    write_probe(shared, probe.ProbeJob(cell, sweep.resources, "cpu", str(shared.root)).shape, FOUND, "now")
    assert bench.launch("--device", "cpu").returncode == 0
    started = json.loads(next(bench.study.parent.glob("runs/*/attempts/001.started.json")).read_text())
    assert started["estimate"]["source"] == "measured by a probe"
    done = bench.run("report", "small")
    assert done.returncode == 0, done.stderr
    page = (bench.study / "report.html").read_text()
    assert "Estimates measured by a probe: 1 cell, the true time is" in page
    assert "of 1 lie inside the interval." in page
