"""The run folder: claims, liveness and state, from files alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from harness import files
from harness.errors import DiskFullError, InputError
from harness.processes import is_alive, process_identity
from harness.runs.attempts import HEARTBEAT_SECONDS, Seen
from harness.runs.cellruns import evaluation_key
from harness.runs.claims import Hold, SupersededError
from harness.runs.layout import EVALUATING
from harness.runs.log import TrainLog
from harness.runs.records import Claim, Ticket
from harness.runs.state import Run, State
from harness.runs.study import LEFTOVER_SECONDS, Study
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.model import DiTSpec
from tests.records import write_record

CELL = Cell(model=DiTSpec(depth=2, width=32, patch_size=4))
EVALUATION = Evaluation(samples=40)
KEY = evaluation_key(EVALUATION, 10)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / f"x-{CELL.id}")


def state(run: Run) -> State:
    return run.state([KEY], 10).state


def claim(run: Run, number: int = 1, process: dict[str, Any] | None = None) -> bool:
    return run.claim(number, {"process": process or process_identity()}) is not None


@pytest.fixture
def dead() -> dict[str, Any]:
    """Identity of a process that has gone."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(child.pid)
    child.kill()
    child.wait()
    return identity


def may_write(hold: Hold | None) -> bool:
    assert hold is not None
    try:
        with hold.writing():
            return True
    except SupersededError:
        return False


def touch_weights(run: Run) -> None:
    run.weights_file(10).parent.mkdir(parents=True, exist_ok=True)
    run.weights_file(10).write_bytes(b"")


def test_the_states_of_a_life(run: Run, dead: dict[str, Any]) -> None:
    assert state(run) is State.MISSING
    assert claim(run)
    assert state(run) is State.QUEUED
    run.record(1, "submitted", {"process": process_identity()})
    assert state(run) is State.QUEUED
    run.record(1, "started", {"process": process_identity()})
    assert state(run) is State.RUNNING
    run.record(1, "started", {"process": dead})
    assert state(run) is State.INTERRUPTED
    assert claim(run, 2)
    run.record(2, "started", {"process": process_identity()})
    touch_weights(run)
    assert state(run) is State.RUNNING
    run.record(2, "ended", {"outcome": "stopped", "message": ""})
    assert state(run) is State.PARTIAL
    write_record(run, CELL, EVALUATION, 10)
    assert state(run) is State.DONE
    run.evaluation_file(KEY).unlink()
    assert state(run) is State.PARTIAL
    run.evaluation_file(KEY).write_text("{torn")
    assert state(run) is State.PARTIAL


def test_failed_is_failed_until_a_new_attempt(run: Run) -> None:
    claim(run)
    run.record(1, "ended", {"outcome": "failed", "message": "loss became nan at step 3"})
    found = run.state([KEY], 10)
    assert found.state is State.FAILED
    assert "step 3" in found.message
    claim(run, 2)
    assert state(run) is State.QUEUED


def test_a_claim_whose_launcher_died_is_free(run: Run, dead: dict[str, Any]) -> None:
    claim(run, process=dead)
    assert state(run) is State.INTERRUPTED


def test_a_dead_controller_is_not_covered_by_its_living_launcher(run: Run, dead: dict[str, Any]) -> None:
    claim(run)
    run.record(1, "submitted", {"process": dead})
    assert state(run) is State.INTERRUPTED


def test_a_recycled_pid_is_another_process(run: Run) -> None:
    mine = process_identity()
    claim(run, process={**mine, "ticks": mine["ticks"] - 100})
    assert state(run) is State.INTERRUPTED
    claim(run, 2, process={**mine, "started": mine["started"] - 100, "ticks": None})
    assert state(run) is State.INTERRUPTED


@pytest.mark.parametrize(
    ("elsewhere", "words"),
    [
        ({"host": "elsewhere"}, "of host elsewhere"),
        ({"boot": "another"}, "of another machine named {host}, or of this one before its last start,"),
        ({"namespace": "pid:[1]", "pid": 2**22}, "in another PID namespace"),
    ],
)
def test_what_cannot_be_seen_lives_by_its_heartbeat(run: Run, elsewhere: dict[str, Any], words: str) -> None:
    words = words.format(host=socket.gethostname())
    claim(run)
    run.record(1, "started", {"process": {**process_identity(), **elsewhere}})
    run.write_progress({"stage": "train"})
    assert state(run) is State.RUNNING
    assert f"attempt 1 {words}" in run.state([KEY], 10).message
    old = run.progress_file.stat().st_mtime - HEARTBEAT_SECONDS - 1
    for path in (run.progress_file, *run.attempts_folder.iterdir()):
        os.utime(path, (old, old))
    assert state(run) is State.INTERRUPTED
    assert f"attempt 1 {words}" in run.state([KEY], 10).message
    assert "has been silent for 5 min" in run.state([KEY], 10).message


def test_one_of_many_claims_wins(run: Run) -> None:
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda i: run.claim(1, cast(Claim, {"who": i, "process": process_identity()})), range(64)))
    (winner,) = [hold for hold in won if hold is not None]
    claimed = json.loads((run.attempts_folder / "001.json").read_text())
    assert (claimed["who"], claimed["token"]) == (won.index(winner), winner.token)
    assert sorted(p.name for p in run.attempts_folder.iterdir()) == ["001.json"]


def test_a_superseded_attempt_must_not_write(run: Run) -> None:
    first = run.claim(1, {})
    assert may_write(first)
    second = run.claim(2, {})
    assert not may_write(first)
    assert may_write(second)


def test_training_and_evaluating_do_not_take_each_other_over(run: Run) -> None:
    evaluating = run.on(EVALUATING)
    training, measuring = run.claim(1, {"process": process_identity()}), evaluating.claim(1, {})
    assert not claim(evaluating)
    assert may_write(measuring)
    assert claim(evaluating, 2)
    assert not may_write(measuring)
    assert may_write(training)
    run.write_progress({"stage": "train"})
    evaluating.write_progress({"stage": "sample"})
    assert (run.progress(), evaluating.progress()) == ({"stage": "train"}, {"stage": "sample"})
    assert run.log != evaluating.log
    evaluating.record(2, "ended", {"outcome": "failed", "message": "no"})
    assert (state(run), state(evaluating)) == (State.QUEUED, State.FAILED)


def test_what_the_other_track_is_writing_stays(run: Run) -> None:
    evaluating = run.on(EVALUATING)
    assert claim(run)
    assert claim(evaluating)
    names = ("checkpoints/.a.tmp", "evaluations/.b.tmp", "samples/k/.c.tmp", "evaluating/.d.tmp", "attempts/.e.tmp")
    for name in names:
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).touch()

    def left() -> set[str]:
        return {str(path.relative_to(run.folder)) for path in run.folder.rglob(".*.tmp")}

    evaluating.remove_temporary_files()
    assert left() == set(names)
    run.remove_temporary_files()
    assert left() == set(names) - {"checkpoints/.a.tmp"}
    evaluating.record(1, "ended", {"outcome": "done", "message": ""})
    run.remove_temporary_files()
    assert left() == {"evaluating/.d.tmp", "attempts/.e.tmp"}, "launchers write there too"


def test_what_killed_launchers_left_goes_when_it_is_old(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    old, young = [[f"{name}.{age}.tmp" for name in ("s/.sweep", f"runs/{CELL.id}/attempts/.001")] for age in "oy"]
    for name in (*old, *young):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in old:
        long_ago = time.time() - LEFTOVER_SECONDS - 5
        os.utime(tmp_path / name, (long_ago, long_ago))
    study.remove_leftovers([study.run(CELL)])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*.tmp")) == sorted(young)


def test_status_writes_nothing(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    run = study.run(CELL)
    assert state(run) is State.MISSING
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["runs/{}", "s/runs/old-name-{}", "another/runs/old-name-{}"])
def test_a_run_is_found_by_its_id_whatever_its_name_and_its_study(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place.format(CELL.id)
    Run(folder).write_cell("old-name", CELL)
    run = Study(tmp_path, "s").run(CELL)
    assert (run.folder, run.label) == (folder, f"old-name-{CELL.id}")
    assert run.cell() == ("old-name", CELL)


def test_the_train_log_is_rewritten_and_survives_a_torn_line(run: Run) -> None:
    run.folder.mkdir()
    log = TrainLog(run)
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 0.5})
    with run.train_log.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [r["step"] for r in log.rows()] == [1, 2, 3]
    log.rewrite([r for r in log.rows() if r["step"] <= 2])
    assert [r["step"] for r in log.rows()] == [1, 2]
    log.append({"step": 3, "loss": 0.25})
    assert [r["loss"] for r in log.rows()] == [0.5, 0.5, 0.25]
    log.rewrite([])
    assert not run.train_log.exists()


@pytest.mark.parametrize("torn", ['{"step": 2}, {"step": 3}', '{"step": [2', "7", "", "{\n}"])
def test_a_line_that_is_no_row_is_left_out_alone(run: Run, torn: str) -> None:
    run.folder.mkdir()
    run.train_log.write_text(f'{{"step": 1}}\n{torn}\n{{"step": 4}}\n')
    assert TrainLog(run).rows() == [{"step": 1}, {"step": 4}]


def test_atomic_write_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    files.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DiskFullError, match="disk is full"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


class FakeSlurm:
    """A scheduler that says what it is told to."""

    def __init__(self) -> None:
        self.says: Seen = Seen(None)
        self.error: str | None = None
        self.asked: list[Ticket] = []

    def look(self, ticket: Ticket) -> Seen:
        self.asked.append(ticket)
        return self.says


@pytest.fixture
def slurm() -> FakeSlurm:
    return FakeSlurm()


@pytest.fixture
def on_slurm(tmp_path: Path, slurm: FakeSlurm, dead: dict[str, Any]) -> Run:
    """A run claimed for Slurm by a launcher that is gone."""
    run = Run(tmp_path / f"x-{CELL.id}", {"slurm": slurm})
    run.claim(1, {"process": dead, "slurm": {"token": "t", "index": 3, "restarts": 0}})
    return run


PENDING, GONE, SILENT = Seen(True, "PENDING", "BeginTime", "7_3"), Seen(False), Seen(None)


def test_a_claim_of_a_dead_launcher_is_what_slurm_says(on_slurm: Run, slurm: FakeSlurm) -> None:
    slurm.says = GONE  # it died before sbatch
    assert state(on_slurm) is State.INTERRUPTED
    slurm.says = PENDING  # it died after
    assert state(on_slurm) is State.QUEUED
    slurm.says = SILENT  # nothing is submitted twice
    assert state(on_slurm) is State.QUEUED
    assert slurm.asked[-1] == {"job": None, "token": "t", "index": 3, "restarts": 0}


def test_a_stopped_slurm_job_is_queued_while_slurm_means_to_run_it_again(on_slurm: Run, slurm: FakeSlurm) -> None:
    on_slurm.record(1, "submitted", {"job_id": "7_3"})
    on_slurm.record(1, "started", {"process": process_identity()})
    slurm.says = Seen(True, "RUNNING")
    assert state(on_slurm) is State.RUNNING
    slurm.says = PENDING  # the node was lost
    found = on_slurm.state([KEY], 10)
    assert (found.state, found.message) == (State.QUEUED, "waits in the queue of Slurm: BeginTime")
    on_slurm.record(1, "ended", {"outcome": "stopped"})
    slurm.says = Seen(True, "COMPLETING")
    assert state(on_slurm) is State.QUEUED
    slurm.says = GONE
    assert state(on_slurm) is State.INTERRUPTED
    slurm.says = Seen(False, "CANCELLED")
    assert state(on_slurm) is State.CANCELLED


def test_without_slurm_a_started_job_lives_by_its_process(on_slurm: Run, slurm: FakeSlurm) -> None:
    slurm.says = SILENT
    on_slurm.record(1, "started", {"process": process_identity()})
    assert state(on_slurm) is State.RUNNING
    on_slurm.record(1, "ended", {"outcome": "failed", "message": "m"})
    slurm.asked.clear()
    assert state(on_slurm) is State.FAILED
    assert slurm.asked == [], "what the files decide is not asked"


def test_a_lost_slurm_job_carries_its_word(on_slurm: Run, slurm: FakeSlurm, dead: dict[str, Any]) -> None:
    on_slurm.record(1, "started", {"process": dead})
    slurm.says = Seen(False, "OUT_OF_MEMORY")
    assert on_slurm.state([KEY], 10).message.endswith("Slurm: OUT_OF_MEMORY")


def test_cancelled_stays_until_a_new_attempt(run: Run, dead: dict[str, Any]) -> None:
    claim(run)
    run.record(1, "cancelled", {})
    assert state(run) is State.QUEUED
    run.record(1, "started", {"process": dead})
    assert state(run) is State.CANCELLED
    assert run.attempt(1).outcome == "cancelled"
    run.write_progress({"attempt": 1, "stage": "train", "done": 3, "total": 10})
    claim(run, 2)
    assert state(run) is State.QUEUED
    run.record(2, "started", {"process": dead})
    for event, stopped in (("", State.INTERRUPTED), ("cancelled", State.CANCELLED)):
        if event:
            run.record(2, event, {})
        found = run.state([KEY], 10)
        assert (found.state, (found.progress or {}).get("done")) == (stopped, 3), "at rest it is where it was left"


def test_a_released_claim_leaves_nothing(run: Run) -> None:
    claim(run)
    run.write_cell("x", CELL)
    run.release(1)
    assert not run.folder.exists()
    claim(run)
    run.record(1, "ended", {"outcome": "failed"})
    claim(run, 2)
    run.release(2)
    assert state(run) is State.FAILED


def test_a_clock_that_is_set_kills_no_job(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(run)
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + 3600)
    assert state(run) is State.QUEUED
    without = {key: value for key, value in process_identity().items() if key != "ticks"}
    assert is_alive(without), "as identities were before ticks were in them"


@pytest.mark.parametrize("off", [-7200.0, 7200.0])
def test_clocks_of_two_machines_may_differ(run: Run, monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    claim(run, process={**process_identity(), "host": "elsewhere"})
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + off)  # this machine's clock; the files carry the server's
    files._clock_offset.cache_clear()
    assert state(run) is State.QUEUED, "a live one must not look dead"
    silent = wall() - HEARTBEAT_SECONDS - 1
    for path in run.attempts_folder.iterdir():
        os.utime(path, (silent, silent))
    assert state(run) is State.INTERRUPTED, "a dead one must not look alive"


def test_the_file_systems_clock_leaves_no_file(tmp_path: Path) -> None:
    files._clock_offset.cache_clear()
    assert files.file_clock(tmp_path) == pytest.approx(time.time(), abs=5)
    assert list(tmp_path.iterdir()) == []
    assert files.file_clock(tmp_path / "absent") == pytest.approx(time.time(), abs=5)


@pytest.mark.parametrize("text", ['{"schema": 3}', '{"schema": "x"}'])
def test_a_newer_schema_is_refused(tmp_path: Path, text: str) -> None:
    study = Study(tmp_path, "s")
    study.check_schema()  # as before versions were written
    source = tmp_path / "s.toml"
    source.write_text("")
    study.save_sweep(source, {CELL.id: "x"})
    assert json.loads(study.schema_file.read_text()) == {"schema": 2}
    assert json.loads(study.cells_file.read_text()) == {CELL.id: "x"}
    study.check_schema()
    study.schema_file.write_text(text)
    with pytest.raises(InputError, match="newer version of this harness; allowed here: up to 2"):
        study.check_schema()
