"""A cell of several studies: all of them show it, and none trains it twice."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.launch.executor import Schedulers
from harness.launch.launch import launch
from harness.processes import process_identity
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.state import State
from harness.runs.study import Study
from sweeps.grid import load_sweep
from tests.launch.test_own_executor import STUB, SWEEP, Quiet, in_process
from tests.records import write_record

__all__ = ["in_process"]

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sweeps that share the cell of seed 1, and their union."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stub.py").write_text(STUB)
    for name, seeds in (("one", "[0, 1]"), ("two", "[1, 2]"), ("both", "[0, 1, 2]")):
        (tmp_path / f"{name}.toml").write_text(SWEEP.replace("[0, 1]", seeds))
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command prints; it must end well."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["dit-harness", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code in (0, None), said.err
    return said.out


def items_of(name: str) -> list[CellRun]:
    return cell_runs(load_sweep(Path(f"{name}.toml")), Study(Path("results"), name, Schedulers(name)))


def shared(name: str) -> CellRun:
    return next(item for item in items_of(name) if item.name.endswith("seed1"))


def rows(name: str) -> list[dict[str, str]]:
    with (Path("results") / name / "results.csv").open() as file:
        return list(csv.DictReader(file))


def attempts() -> int:
    return len(list(Path("results/runs").glob("*/attempts/[0-9][0-9][0-9].json")))


def test_the_union_of_two_finished_sweeps_trains_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        command(monkeypatch, capsys, "launch", f"{name}.toml")
    assert attempts() == 3  # of three cells, not of four
    plan = json.loads(command(monkeypatch, capsys, "plan", "both.toml", "--json"))
    assert [row["state"] for row in plan] == ["done"] * 3
    assert "3 of 3 cells are done already" in command(monkeypatch, capsys, "launch", "both.toml")
    assert attempts() == 3
    assert [row["name"][-5:] for row in rows("both")] == ["seed0", "seed1", "seed2"]
    mine, theirs = rows("one")[1], rows("two")[0]
    assert {**mine, "study": "two"} == theirs


@pytest.fixture
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The shared cell, claimed by a process of study `one` that lives."""
    with subprocess.Popen(["sleep", "60"]) as process:
        item = shared("one")
        item.run.write_cell(item.name, item.cell)
        identity = process_identity(process.pid)
        assert item.run.claim(1, {"process": identity, "study": "one", "executor": "local"}) is not None
        item.run.record(1, "started", {"process": identity, "host": "here"})
        item.run.write_progress({"stage": "train", "done": 1, "total": 2, "loss": 0.5})
        item.run.log.write_text("it works\n")
        yield process
        process.kill()


class Ending(Quiet):
    """Ends the shared cell when a launch has looked at it three times."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__()
        self.looks, self._process = 0, process

    def tick(self, items: list[CellRun]) -> None:
        self.looks += 1
        if self.looks == 3:
            item = shared("two")
            for key in item.owed:
                evaluation = next(e for e in item.evaluations if key.startswith(e.id))
                write_record(item.run, item.cell, evaluation, item.cell.training.steps)
            item.run.record(1, "ended", {"outcome": "done", "message": ""})
            self._process.kill()
            self._process.wait()


def test_a_cell_that_runs_for_another_study_is_waited_for(running: subprocess.Popen[bytes]) -> None:
    view = Ending(running)
    study = Study(Path("results"), "two", Schedulers("two"))
    ended = launch(load_sweep(Path("two.toml")), study, view)
    assert [item.now.state for item in ended] == [State.DONE] * 2
    assert view.looks > 3
    assert shared("two").run.attempt_numbers() == [1]
    assert attempts() == 2


@pytest.mark.parametrize("name", ["one", "two", "both"])
def test_every_study_shows_it_and_can_stop_it(
    name: str, running: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = f"{name}.toml"
    status = {row["name"]: row for row in json.loads(command(monkeypatch, capsys, "status", sweep, "--json"))}
    found = status[shared(name).name]
    assert (found["state"], found["done"], found["loss"], found["host"]) == ("running", 1, 0.5, "here")
    plan = {row["name"]: row["state"] for row in json.loads(command(monkeypatch, capsys, "plan", sweep, "--json"))}
    assert sorted(plan.values())[-1] == "running"
    assert command(monkeypatch, capsys, "logs", sweep, shared(name).name) == "it works\n"
    command(monkeypatch, capsys, "collect", sweep)
    assert "running" in (Path("results") / name / "attempts.csv").read_text()
    assert "1 cell asked to stop" in command(monkeypatch, capsys, "cancel", sweep)
    assert running.wait(10) != 0
    assert {shared(other).now.state for other in ("one", "two", "both")} == {State.CANCELLED}
