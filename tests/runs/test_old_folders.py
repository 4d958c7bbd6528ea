"""Run folders that version 0.1.0 wrote: one finished, one interrupted by a signal, one failed (see tests/fixtures)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.launch.executor import Schedulers
from harness.launch.launch import launch
from harness.launch.remeasure import select, with_evaluations
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.state import State
from harness.runs.study import Study
from harness.spec.extension import Extension
from sweeps.grid import Sweep, load_sweep
from tests.launch.test_own_executor import STUB, Quiet, in_process

__all__ = ["in_process"]

OLD = Path(__file__).parents[1] / "fixtures" / "runs-0.1.0" / "results"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    shutil.copytree(OLD, tmp_path / "results")
    study = Study(tmp_path / "results", "tiny", Schedulers("tiny"))
    study.check_schema()
    return study


def in_this_process(sweep: Sweep) -> Sweep:
    Extension("stub.py", STUB).load()
    return replace(sweep, resources=sweep.resources.model_copy(update={"executor": "stub"}))


def states(items: list[CellRun]) -> dict[str, State]:
    return {item.name[-5:]: item.now.state for item in items}


def test_they_are_read(study: Study) -> None:
    items = cell_runs(load_sweep(study.sweep_file, "tiny"), study)
    assert states(items) == {"seed0": State.DONE, "seed1": State.INTERRUPTED, "seed2": State.FAILED}
    assert [[attempt.outcome for attempt in item.run.attempts()] for item in items] == [
        ["done"],
        ["stopped"],
        ["done", "failed"],
    ]
    assert all(item.run.cell()[1].id == item.cell.id for item in items)
    assert {item.run.attempt(1).executor for item in items} == {"local"}
    assert "removed it, launch again with --retry" in items[2].now.message


@pytest.mark.usefixtures("in_process")
def test_they_are_resumed_retried_and_measured_again(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = in_this_process(load_sweep(study.sweep_file, "tiny"))
    items = launch(sweep, study, Quiet())
    assert states(items) == {"seed0": State.DONE, "seed1": State.DONE, "seed2": State.FAILED}
    finished, resumed, failed = sorted(items, key=lambda item: item.name)
    assert finished.run.attempt_numbers() == [1], "it needs nothing"
    assert "resumed at step 2" in capsys.readouterr().out
    assert [attempt.outcome for attempt in resumed.run.attempts()] == ["stopped", "done"]
    launch(sweep, study, Quiet(), retry=True)
    assert failed.refresh().state is State.DONE
    assert failed.run.attempt_numbers() == [1, 2, 3]
    other = with_evaluations(sweep, None, {"sampling_steps": "3"})
    chosen = select(other, [finished], None).items
    assert states(launch(other, study, Quiet(), retry=True, chosen=chosen)) == {"seed0": State.DONE}
    assert len(finished.run.evaluation_files()) == 2
