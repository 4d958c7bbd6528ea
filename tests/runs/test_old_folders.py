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
from harness.runs.collect import collect
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
def test_the_unfinished_are_refused_and_trained_anew(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = in_this_process(load_sweep(study.sweep_file, "tiny"))
    items = launch(sweep, study, Quiet())
    assert states(items) == {"seed0": State.DONE, "seed1": State.FAILED, "seed2": State.FAILED}
    finished, begun, failed = sorted(items, key=lambda item: item.name)
    assert finished.run.attempt_numbers() == [1], "it needs nothing"
    said = "trained with random draws of version 1, and this harness draws version 2; launch again with --retry"
    assert said in begun.now.message
    assert "resumed" not in capsys.readouterr().out
    launch(sweep, study, Quiet(), retry=True)
    assert [item.refresh().state for item in (begun, failed)] == [State.DONE, State.DONE]
    assert "removed, to train anew: state-" in capsys.readouterr().out
    rows = collect(study, items)
    assert {row["name"][-5:]: row["draws"] for row in rows} == {"seed0": 1, "seed1": 2, "seed2": 2}


@pytest.mark.usefixtures("in_process")
def test_one_that_never_failed_is_trained_anew_at_once(study: Study) -> None:
    sweep = in_this_process(load_sweep(study.sweep_file, "tiny"))
    items = launch(sweep, study, Quiet(), retry=True)
    assert set(states(items).values()) == {State.DONE}


@pytest.mark.usefixtures("in_process")
def test_the_finished_are_measured_again(study: Study) -> None:
    sweep = in_this_process(load_sweep(study.sweep_file, "tiny"))
    finished = min(cell_runs(sweep, study), key=lambda item: item.name)
    other = with_evaluations(sweep, None, {"sampling_steps": "3"})
    chosen = select(other, [finished], None).items
    assert states(launch(other, study, Quiet(), retry=True, chosen=chosen)) == {"seed0": State.DONE}
    assert len(finished.run.evaluation_files()) == 2
    assert {row["draws"] for row in collect(study, [finished])} == {1}
