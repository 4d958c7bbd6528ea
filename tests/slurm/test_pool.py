"""Many cells in one job of a real Slurm, and the local executor inside an allocation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.test_slurm import SlurmBench, call, nothing_left, pytestmark
from tests.small_study import wait_for

__all__ = ["nothing_left"]  # at the end of this module too
pytestmark = [*pytestmark, pytest.mark.timeout(1200)]


class PoolBench(SlurmBench):
    """A sweep of small cells that are known by their seeds."""

    def __init__(self, folder: Path, seeds: list[int], steps: int = 300) -> None:
        super().__init__(folder, steps=steps, checkpoint=0.1)
        text = self.sweep.read_text()
        self.sweep.write_text(text.replace("width = [16]", f"width = [16]\nseed = {seeds}"))

    def runs(self) -> dict[str, Path]:
        names = json.loads((self.study / "cells.json").read_text())
        return {name.split("-")[-1]: self.study.parent / "runs" / cell for cell, name in names.items()}

    def states(self) -> dict[str, str]:
        return {name.split("-")[-1]: row["state"] for name, row in self.status().items()}

    def jobs(self) -> set[str]:
        """Slurm's numbers of all jobs of the study."""
        return set(call("squeue", "-h", "-r", "--states=all", "--name=dit-small", "-o", "%i").split())

    def at_work(self) -> dict[str, dict[str, Any]]:
        """The cells that a process is at work on, and the processes."""
        found = {}
        for cell, run in self.runs().items():
            started = sorted((run / "attempts").glob("*.started.json"))
            if started and not started[-1].with_name(started[-1].name.replace("started", "ended")).exists():
                found[cell] = json.loads(started[-1].read_text())["process"]
        return found

    def two_at_work(self) -> list[str]:
        """The cells at work, once both slots have one."""
        cells = list(self.at_work())
        return cells if len(cells) == 2 else []

    def count(self, outcome: str) -> int:
        """Attempts that ended so."""
        return sum(found.count(outcome) for found in self.outcomes().values())


def test_ten_cells_through_one_job_of_two_slots(tmp_path: Path) -> None:
    bench = PoolBench(tmp_path / "pool", list(range(10)))
    before = bench.jobs()
    submitted = bench.submit("--cells-per-job", "2")
    assert submitted.returncode == 0, submitted.stderr
    assert "10 cells submitted as Slurm job" in submitted.stdout
    assert "10 queued" in submitted.stdout
    assert "submitted as" not in bench.submit("--cells-per-job", "2").stdout, "nothing is submitted twice"
    (job,) = bench.jobs() - before
    killed = wait_for(lambda: next((cell for cell in bench.at_work() if bench.training(cell)()), ""))
    os.kill(bench.at_work()[killed]["pid"], 9)
    wait_for(lambda: len(bench.outcomes()[killed]) == 2, 60)
    disturbed = {killed}
    for _ in range(2):
        disturbed.update(wait_for(bench.two_at_work))
        stopped = bench.count("stopped")
        call("scancel", "--signal=USR2", job)
        wait_for(lambda: call("squeue", "-h", "-j", job, "-o", "%T").strip() == "PENDING", 60)
        assert not bench.at_work(), "each process wrote its last word"
        assert bench.count("stopped") > stopped
        states = bench.states()
        assert set(states.values()) <= {"done", "queued"}, states
    wait_for(lambda: bench.count("done") == 10, 600)
    done = bench.submit("--cells-per-job", "2", "--wait")
    assert done.returncode == 0, done.stderr
    assert "10 of 10 cells are done already" in done.stdout
    assert bench.jobs() - before == {job}
    outcomes = bench.outcomes()
    assert all(found[-1] == "done" and found.count("done") == 1 for found in outcomes.values()), outcomes
    assert outcomes[killed][0] == "", "its first attempt had no last word"
    other = PoolBench(tmp_path / "local", sorted(int(cell.removeprefix("seed")) for cell in disturbed))
    assert other.launch().returncode == 0
    weights = bench.weights()
    assert {cell: weights[cell] for cell in disturbed} == other.weights()


def test_one_cell_of_a_pool_is_cancelled(tmp_path: Path) -> None:
    bench = PoolBench(tmp_path / "pool", [0, 1, 2, 3], steps=4000)
    assert bench.submit("--cells-per-job", "2").returncode == 0
    first = wait_for(bench.two_at_work)
    waiting = sorted({"seed0", "seed1", "seed2", "seed3"} - set(first))
    for cell in (first[0], waiting[0]):
        told = bench.run("cancel", str(bench.sweep), f"d1-w16-p4-{cell}")
        assert "1 cell asked to stop" in told.stdout, told.stderr
    wait_for(lambda: waiting[1] in bench.at_work(), 60)
    assert bench.states() == {
        first[0]: "cancelled", waiting[0]: "cancelled", first[1]: "running", waiting[1]: "running"
    }  # fmt: skip
    told = bench.run("cancel", str(bench.sweep))
    assert "2 cells asked to stop" in told.stdout, told.stderr
    wait_for(lambda: set(bench.states().values()) == {"cancelled"}, 60)
    assert not bench.at_work()


def test_the_local_executor_keeps_to_its_allocation(tmp_path: Path) -> None:
    bench = PoolBench(tmp_path / "local", [0, 1, 2], steps=20)
    command = [sys.executable, "-m", "harness.cli", "launch", str(bench.sweep)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    allocated = ["srun", "--ntasks=1", "--cpus-per-task=2", "--time=5"]
    done = subprocess.run(
        [*allocated, *command],
        cwd=bench.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    lines = [line for line in done.stdout.splitlines() if ": started" in line or ": done" in line]
    assert [line.partition(": ")[2][:7] for line in lines[:2]] == ["started", "started"]
    assert ": done" in lines[2], "two slots, as the allocation has two cores"
    assert bench.outcomes() == {"seed0": ["done"], "seed1": ["done"], "seed2": ["done"]}
