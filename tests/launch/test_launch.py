"""The main path from a sweep file to results.csv by the command itself, and what happens when it is disturbed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.launch import local
from harness.launch.executor import Launch
from harness.launch.launch import run_to_end
from harness.launch.local import LOCAL
from harness.launch.machine import default_slots, usable_cores, visible_gpus
from harness.processes import process_identity
from harness.runs.cellruns import CellRun
from harness.runs.records import Claim
from harness.runs.state import Run
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.model import DiTSpec
from harness.spec.resources import Resources
from tests.small_study import Bench, sweep_text, wait_for


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A short sweep, launched once without disturbance."""
    bench = Bench(tmp_path_factory.mktemp("quiet"))
    done = bench.launch()
    assert done.returncode == 0, done.stderr + done.stdout
    assert "d1-w16-p4: done" in done.stdout
    return bench


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A longer sweep, launched once without disturbance: what the disturbed ones must equal."""
    bench = disturbed(tmp_path_factory.mktemp("long"))
    done = bench.launch()
    assert done.returncode == 0, done.stderr
    return bench


def disturbed(folder: Path) -> Bench:
    """A longer sweep that writes many checkpoints."""
    return Bench(folder, sweep_text(steps=500, checkpoint=0.2))


def test_a_sweep_ends_with_a_table(quiet: Bench) -> None:
    rows = quiet.rows()
    assert [row["name"] for row in rows] == ["d1-w16-p4", "d2-w16-p4"]
    for row in rows:
        assert float(row["frechet"]) > 0
        assert row["samples"] == "330"
        assert row["extractor"].startswith("digits-cnn@")
        assert row["reference"].startswith("digits/train(1500)@")
        assert float(row["train_gmacs"]) == pytest.approx(3 * float(row["gmacs"]) * 8 * 40)
        assert 0 < float(row["loss_train"]) < 2
        assert (quiet.study / "samples" / f"{row['name']}-{row['cell']}.png").stat().st_size > 100
    assert {row["state"] for row in quiet.status().values()} == {"done"}


def test_plan_prints_json_without_starting_anything(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "b")
    done = bench.run("plan", str(bench.sweep), "--json")
    rows = json.loads(done.stdout)
    keys = {"id", "name", "depth", "width", "heads", "patch_size", "block", "tokens", "params_m", "gmacs", "state"}
    assert all(keys <= row.keys() for row in rows)
    assert [row["state"] for row in rows] == ["missing", "missing"]
    assert not (bench.folder / "results").exists()


def test_again_trains_nothing(quiet: Bench) -> None:
    before = quiet.attempts()
    done = quiet.launch()
    assert done.returncode == 0
    assert "2 of 2 cells are done already" in done.stdout
    assert quiet.attempts() == before


@pytest.mark.parametrize(("verb", "heavy"), [("launch", {"torch"}), ("status", {"torch", "numpy"})])
def test_what_finds_everything_done_imports_nothing_heavy(quiet: Bench, verb: str, heavy: set[str]) -> None:
    code = (
        "import sys; from harness.cli.main import app\n"
        f"try: app([{verb!r}, {str(quiet.sweep)!r}, '--results', {str(quiet.study.parent)!r}])\n"
        "except SystemExit as e: assert e.code == 0\n"
        f"assert not {heavy!r} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_deleted_record_repeats_that_evaluation_only(quiet: Bench) -> None:
    before, metrics, weights = quiet.attempts(), quiet.metrics(), quiet.weights()
    run = quiet.runs()["d1"]
    trained = (run / "train.jsonl").stat().st_mtime_ns
    next((run / "evaluations").iterdir()).unlink()
    assert quiet.status()["d1-w16-p4"]["state"] == "partial"
    assert quiet.launch().returncode == 0
    assert quiet.attempts() == {"d1": [*before["d1"], f"{len(before['d1']) + 1:03d}.json"], "d2": before["d2"]}
    assert (run / "train.jsonl").stat().st_mtime_ns == trained
    assert quiet.metrics() == metrics
    assert quiet.weights() == weights


def test_a_deleted_run_repeats_that_cell_only(quiet: Bench) -> None:
    before, metrics, weights = quiet.attempts(), quiet.metrics(), quiet.weights()
    shutil.rmtree(quiet.runs()["d2"])
    assert quiet.status()["d2-w16-p4"]["state"] == "missing"
    assert quiet.launch().returncode == 0
    assert quiet.attempts() == {"d1": before["d1"], "d2": ["001.json"]}
    assert quiet.weights() == weights
    assert quiet.metrics() == metrics


def test_killed_launcher_leaves_jobs_that_the_next_launch_adopts(long: Bench, tmp_path: Path) -> None:
    bench = disturbed(tmp_path / "b")
    first = bench.start("launch", str(bench.sweep), "--slots", "1")
    wait_for(bench.is_training)
    first.kill()
    first.wait()
    assert bench.processes(), "the job should go on as an orphan"
    done = bench.launch("--slots", "1")
    assert done.returncode == 0, done.stderr
    assert bench.attempts() == {"d1": ["001.json"], "d2": ["001.json"]}
    assert bench.weights() == long.weights()
    assert bench.metrics() == long.metrics()


def test_killed_job_is_started_again_and_ends_with_the_same_bits(long: Bench, tmp_path: Path) -> None:
    bench = disturbed(tmp_path / "b")
    launcher = bench.start("launch", str(bench.sweep))
    wait_for(bench.is_training)
    for process in bench.processes():
        os.kill(process["pid"], signal.SIGKILL)
    out, err = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, err
    assert "starting it again" in out
    assert max(len(found) for found in bench.attempts().values()) == 2
    assert bench.weights() == long.weights()
    assert bench.metrics() == long.metrics()


def test_everything_killed_then_the_same_command(long: Bench, tmp_path: Path) -> None:
    bench = disturbed(tmp_path / "b")
    launcher = bench.start("launch", str(bench.sweep))
    wait_for(bench.is_training)
    launcher.kill()
    launcher.wait()
    for process in bench.processes():
        os.kill(process["pid"], signal.SIGKILL)
    wait_for(lambda: "running" not in {row["state"] for row in bench.status().values()})
    assert bench.launch().returncode == 0
    assert bench.weights() == long.weights()
    assert bench.metrics() == long.metrics()


def test_interrupt_lets_the_cells_write_a_checkpoint(long: Bench, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "b", sweep_text(steps=500, checkpoint=1e6))
    launcher = bench.start("launch", str(bench.sweep))
    wait_for(lambda: list(bench.study.parent.glob("runs/*/progress.json")))
    launcher.send_signal(signal.SIGINT)
    _, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 130, err
    states = {row["state"] for row in bench.status().values()}
    assert "running" not in states
    assert "interrupted" in states
    assert bench.is_training()
    assert (bench.study / "attempts.csv").exists(), "the tables tell what there is"
    assert bench.launch().returncode == 0
    assert bench.weights() == long.weights()


def test_two_launches_at_once_train_nothing_twice(long: Bench, tmp_path: Path) -> None:
    bench = disturbed(tmp_path / "b")
    both = [bench.start("launch", str(bench.sweep)) for _ in range(2)]
    for launcher in both:
        _, err = launcher.communicate(timeout=240)
        assert launcher.returncode == 0, err
    assert bench.attempts() == {"d1": ["001.json"], "d2": ["001.json"]}
    assert bench.weights() == long.weights()


def test_a_failing_cell_leaves_the_others_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "b")
    text = bench.sweep.read_text().replace(
        "depth = [1, 2]", "recipe = [{learning_rate = 1e-3}, {learning_rate = 1e30}]"
    )
    bench.sweep.write_text(
        text.replace("learning_rate = 1e-3\nema", "ema").replace("width = 16", "width = 16\ndepth = 1")
    )
    done = bench.launch()
    assert done.returncode == 1
    states = {name: row["state"] for name, row in bench.status().items()}
    assert sorted(states.values()) == ["done", "failed"]
    assert "at step" in done.stderr
    assert "--retry" in done.stderr
    assert len(bench.rows()) == 1
    again = bench.launch()
    assert again.returncode == 1
    assert "started" not in again.stdout
    retried = bench.launch("--retry")
    assert retried.returncode == 1
    assert retried.stdout.count(": started") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["launch", "none.toml"], "none.toml: no such sweep file"),
        (["launch", "nothing"], "nothing: no study of this name"),
        (["status", "../x"], "no study name"),
        (["status", "a/b"], "no study name"),
        (["report", "nothing"], "nothing: no study of this name"),
        (["report", "small.toml"], "no cell is evaluated yet"),
        (["logs", "small.toml", "zz"], "zz: no cell of this name in small; allowed: d1-w16-p4, d2-w16-p4"),
        (["logs", "small.toml", "d1-w16-p4"], "has no log yet"),
        (["launch", "fashion.toml", "--data-folder", "here"], "fashion"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], expected: str) -> None:
    bench = Bench(tmp_path / "b")
    fashion = bench.sweep.read_text() + '[data]\nname = "fashion-mnist"\n'
    (bench.folder / "fashion.toml").write_text(fashion)
    done = bench.run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(bench.folder.glob("results/runs/*/*")), "nothing may have been started"


def test_help_imports_no_heavy_package() -> None:
    code = (
        "import sys; from harness.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'pandas', 'matplotlib', 'submitit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_slots_are_those_of_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = usable_cores()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_GPUS", raising=False)
    assert usable_cores() == 1
    assert visible_gpus() == [], "the node may have some, but not for this job"
    monkeypatch.setenv("SLURM_JOB_GPUS", "2,3")
    assert visible_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert visible_gpus() == ["0", "1", "2"]
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", str(cores + 8))
    assert usable_cores() == cores
    assert default_slots(Resources(cells_per_gpu=4), visible_gpus()) == 12
    assert default_slots(Resources(cells_per_gpu=4), []) == cores


def test_cells_that_run_elsewhere_take_no_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    here, cell = process_identity(), Cell(model=DiTSpec(depth=1, width=16, patch_size=4))

    def in_local_slot(name: str, **claim: Any) -> bool:
        run = Run(tmp_path / name)
        assert run.claim(1, cast(Claim, {"process": here, **claim}))
        return CellRun(name, cell, run, []).in_local_slot

    assert in_local_slot("here")
    assert not in_local_slot("other-host", process={**here, "host": "elsewhere"})
    assert not in_local_slot("allocation", allocation="17")
    assert not in_local_slot("slurm", slurm={"token": "aa", "index": 0, "restarts": 0})
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert in_local_slot("mine", allocation="17")
    assert not in_local_slot("none")


def test_a_lost_cell_is_started_again_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell(model=DiTSpec(depth=1, width=16, patch_size=4))
    item = CellRun("d1", cell, Run(tmp_path / "run"), ["owed@1"])
    said = []

    def lose(_launch: Launch, item: CellRun, **_: object) -> SimpleNamespace:
        number = len(item.run.attempt_numbers()) + 1
        item.mine = item.run.claim(number, {"process": {**process_identity(), "ticks": 1}}) is not None
        return SimpleNamespace()

    class View:
        def note(self, text: str) -> None:
            said.append(text)

        def started(self, item: CellRun) -> None:
            said.append("started")

        def finished(self, item: CellRun) -> None:
            said.append("finished")

        def tick(self, items: list[CellRun]) -> None:
            pass

    monkeypatch.setattr(Launch, "claim", lose)
    monkeypatch.setattr(local, "_submit", lambda _job: None)
    monkeypatch.setattr(local.LocalExecutor, "poll_seconds", 0)
    resources = Resources(slots=1)
    sweep = SimpleNamespace(resources=resources, resources_of=lambda _cell: resources)
    run_to_end(Launch(sweep, Study(tmp_path, "s"), [item], View(), [], set()), LOCAL)  # type: ignore[arg-type]
    again = [f"d1: attempt {number} ended without a word; starting it again" for number in (1, 2)]
    assert said == ["started", again[0], "started", again[1], "started", "finished"]


def test_cancel_is_on_record_until_retried(long: Bench, tmp_path: Path) -> None:
    bench = disturbed(tmp_path / "b")
    launcher = bench.start("launch", str(bench.sweep), "--slots", "1")
    wait_for(bench.is_training)
    done = bench.run("cancel", str(bench.sweep), "d2-w16-p4")  # the dearest is started first
    assert done.returncode == 0, done.stderr
    assert "1 cell asked to stop" in done.stdout
    _, err = launcher.communicate(timeout=240)
    assert launcher.returncode == 1, err
    assert "d2-w16-p4: cancelled" in err
    assert [row["state"] for _, row in sorted(bench.status().items())] == ["done", "cancelled"]
    assert bench.launch("--retry").returncode == 0
    assert bench.attempts() == {"d1": ["001.json"], "d2": ["001.json", "002.json"]}
    assert bench.weights() == long.weights()
