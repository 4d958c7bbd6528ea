"""A launch whose Slurm does not answer, or not in time; the commands are small scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from submitit.helpers import DelayedSubmission

from harness.errors import InputError
from harness.launch import slurm_commands as slurm
from harness.launch.cancel import cancel
from harness.launch.job import Job
from harness.launch.launch import launch
from harness.launch.slurm import SLURM
from harness.launch.slurm_queue import Queue
from harness.processes import process_identity
from harness.runs.attempts import RESTARTS
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.records import Claim
from harness.runs.state import State
from harness.runs.study import Study
from harness.spec.resources import Resources
from sweeps.grid import load_sweep
from tests.commands import ROOT
from tests.launch.test_slurm import Command, Quiet, command, job, listing, sweep_file, ticket

__all__ = ["command"]  # the fixture

TOKEN = "0123456789ab"

DOWN = {"err": "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", "code": 1}
LATE = {"err": "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n", "code": 1}


def test_the_users_settings_do_not_narrow_the_answers(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("srun")
    for name in ("squeue", "sacct", "scancel", "sbatch"):
        answer = "echo Submitted batch job 17" if name == "sbatch" else ""
        command(name).with_name(name).write_text(f"#!/bin/sh\nenv >>{tmp_path}/{name}.seen\n{answer}\n")
    bad = ["SQUEUE_STATES", "SACCT_FORMAT", "SCANCEL_INTERACTIVE", "SBATCH_COMMENT", "SBATCH_JOB_NAME"]
    for variable in (*bad, "SBATCH_QOS", "SBATCH_PARTITION"):
        monkeypatch.setenv(variable, "theirs")
    slurm.cancel(["7"])
    Queue("s").look(ticket(TOKEN, 0, "7_0"))
    resources = Resources(executor="slurm", partition="ours")
    slurm.submit([job(tmp_path)], resources, tmp_path / "submitit", "s", TOKEN, None)
    seen = {path.stem: path.read_text() for path in tmp_path.glob("*.seen")}
    assert {"squeue", "scancel", "sbatch"} <= set(seen)
    assert not [variable for variable in bad if any(f"{variable}=" in text for text in seen.values())]
    assert "SBATCH_PARTITION=" not in seen["sbatch"], "the sweep names one"
    assert "SBATCH_QOS=theirs" in seen["sbatch"], "the sweep leaves it open"
    assert os.environ["SBATCH_COMMENT"] == "theirs"


def many(folder: Path, seeds: int = 2) -> tuple[Study, Callable[..., list[CellRun]]]:
    """A study of cells, and its launch."""
    folder.mkdir(exist_ok=True)
    sweep = load_sweep(sweep_file(folder, seeds=seeds))
    study = Study(folder / "results", "many", {"slurm": Queue("many")})

    def start(view: Quiet | None = None, *, wait: bool = False) -> list[CellRun]:
        return launch(sweep, study, view or Quiet(), wait=wait)

    return study, start


def cells(study: Study) -> list[CellRun]:
    return cell_runs(load_sweep(study.root.parent / "many.toml"), study)


def claims(study: Study) -> list[list[Claim]]:
    """Of each cell, its claims."""
    return [[item.run.attempt(number).claim for number in item.run.attempt_numbers()] for item in cells(study)]


def accepts(command: Command, then: str, *, answers: bool = True) -> Path:
    """An sbatch that takes the array as job 17, so that squeue lists it, and then does something; returns its calls."""
    calls = command("squeue", listing())
    squeue, calls = calls.with_name("squeue.out"), command("sbatch")
    script = calls.with_name("sbatch")
    lines = "".join(f"<mark>17_{index}<mark>PENDING<mark>None<mark>$token<mark>n<mark>s<mark>" for index in range(2))
    taken = f"printf '%s\\n' \"{lines}\" >>{squeue}" if answers else ":"
    script.write_text(f"#!/bin/sh\necho >>{calls}\ntoken=$(sed -n 's/#SBATCH --comment=//p' \"$1\")\n{taken}\n{then}\n")
    return calls


def work_of(study: Study, command: Command, task: int) -> int:
    """The index of the cell whose work a task of job 17 finds when the script of its array runs."""
    record = study.root / "ran"
    command("srun").with_name("srun").write_text(f"#!/bin/sh\ntouch {record}\n")
    (script,) = (path for path in study.submitit_folder.glob(".submission_file_*.sh") if not path.is_symlink())
    ids = {"SLURM_JOB_ID": str(90 + task), "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": str(task)}
    subprocess.run(["bash", str(script)], check=True, env={**os.environ, **ids})
    assert record.exists()
    found = DelayedSubmission.load(study.submitit_folder / f"17_{task}_submitted.pkl").function
    assert isinstance(found, Job)
    return int(found.run.attempt(1).claim["slurm"]["index"])


FAILS = f"echo '{LATE['err']}' >&2; exit 1"


@pytest.mark.parametrize("then", [FAILS, "echo 'see job 12345678 of our guide: Welcome'", "kill -9 $$", "echo thanks"])
def test_sbatch_fails_after_slurm_has_taken_the_jobs(command: Command, tmp_path: Path, then: str) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    sbatch = accepts(command, then)
    study, start = many(tmp_path)
    view = Quiet()
    assert [item.now.state for item in start(view)] == [State.QUEUED] * 2
    assert "2 cells submitted as Slurm job " in view.told[-1]
    assert [item.now.state for item in start()] == [State.QUEUED] * 2
    assert len(sbatch.read_text().splitlines()) == 1, "nothing is submitted twice"
    if then == FAILS:
        assert [attempts[0]["slurm"]["index"] for attempts in claims(study)] == [0, 1]
        assert [item.run.attempt(1).job_id for item in start()] == ["17_0", "17_1"]
        assert [work_of(study, command, task) for task in range(2)] == [0, 1]


@pytest.mark.parametrize("signal", ["KILL", "INT"])
def test_the_launcher_ends_between_sbatch_and_the_record(command: Command, tmp_path: Path, signal: str) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    sbatch = accepts(command, f"kill -{signal} $PPID; sleep 1")
    study, start = many(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "harness.cli", "launch", str(tmp_path / "many.toml")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == (-9 if signal == "KILL" else 130), ended.stderr
    assert [item.now.state for item in start()] == [State.QUEUED] * 2
    assert [item.run.attempt(1).job_id for item in start()] == ["17_0", "17_1"]
    assert len(sbatch.read_text().splitlines()) == 1, "nothing is submitted twice"
    assert [work_of(study, command, task) for task in range(2)] == [0, 1]


def test_the_message_tells_what_slurm_has(command: Command, tmp_path: Path) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    command("squeue", listing())
    command("sbatch", **LATE)
    study, start = many(tmp_path)
    with pytest.raises(InputError, match=r"Socket timed out .*; it has no job of 2 cells, 0 cells were submitted"):
        start()
    command("squeue", **DOWN)
    later, again = many(tmp_path / "later")
    with pytest.raises(InputError, match=r"Slurm does not answer: .*nothing was submitted"):
        many(tmp_path)[1]()
    calls = command("sbatch", **LATE)
    calls.with_name("sbatch").write_text(f"#!/bin/sh\n{FAILS}\n")
    with pytest.raises(InputError, match="whether it took 2 cells is not known, 0 cells were submitted"):
        again()
    command("squeue", listing())
    for old in (study, later):
        old.schedulers["slurm"].forget()  # type: ignore[attr-defined]
        assert [(item.now.state, item.now.message) for item in cells(old)] == [
            (State.INTERRUPTED, "attempt 1 never started, and Slurm has no job of it")
        ] * 2
    command("sbatch", "Submitted batch job 18\n")
    start()
    assert [[claim["slurm"]["index"] for claim in attempts] for attempts in claims(study)] == [[0, 0], [1, 1]]
    command("sbatch", err="sbatch: error: invalid partition specified: x\n", code=1)
    refused, try_it = many(tmp_path / "refused")
    with pytest.raises(InputError, match="Slurm refused: invalid partition specified: x; 0 cells were submitted"):
        try_it()
    assert claims(refused) == [[], []]
    assert not list(refused.submitit_folder.glob("*_*.pkl")), "what was left for the jobs is removed"


def test_scancel_fails_half_way(command: Command, tmp_path: Path) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    accepts(command, "echo Submitted batch job 17")
    _, start = many(tmp_path)
    items = start()
    command("scancel", err="scancel: error: Kill job error on job id 17_1: Access/permission denied\n", code=1)
    first = cancel(items, items, "many")
    why = "Kill job error on job id 17_1: Access/permission denied"
    assert first.problems == [f"Slurm did not cancel every job: {why}; the same command again"]
    assert [item.refresh().state for item in items] == [State.QUEUED] * 2, "squeue lists them"
    calls = command("scancel")
    assert cancel(items, items, "many").problems == []
    assert calls.read_text() == "--quiet 17_0 17_1\n" * 2


def test_a_refused_job_that_squeue_lists_for_a_while_is_refused(command: Command, tmp_path: Path) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    sbatch = accepts(command, "echo 'sbatch: error: Requested node configuration is not available' >&2; exit 1")
    script = sbatch.with_name("sbatch")
    script.write_text(script.read_text().replace("PENDING<mark>None", "FAILED<mark>BadConstraints"))
    study, start = many(tmp_path)
    with pytest.raises(InputError, match="Slurm refused: Requested node configuration is not available; 0 cells"):
        start()
    assert claims(study) == [[], []]


class World:
    """What happens while a launch waits: at each pause, the next event."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *events: Callable[[], object]) -> None:
        self.pauses: list[float] = []
        self.events = list(events)
        monkeypatch.setattr("harness.launch.launch.time", self)  # of this module only
        monkeypatch.setattr("harness.launch.slurm_queue.QUEUE_SECONDS", 0.0)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        assert self.events, "it waits for ever"
        self.events.pop(0)()


def fail(study: Study) -> None:
    """Let the newest attempts of all cells end."""
    for run in (item.run for item in cells(study)):
        run.record(run.attempt_numbers()[-1], "ended", {"outcome": "failed", "message": "so it ended"})


@pytest.mark.parametrize("trouble", [DOWN, {"out": ""}, {"err": "squeue: error: Munge encode failed\n", "code": 1}])
def test_the_last_cells_end_while_slurm_is_away(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: dict[str, Any]
) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    accepts(command, "echo Submitted batch job 17")
    study, start = many(tmp_path)
    World(monkeypatch, lambda: command("squeue", **trouble), lambda: None, lambda: fail(study))
    view = Quiet()
    assert [item.now.state for item in start(view, wait=True)] == [State.FAILED] * 2
    assert sum("Slurm does not answer" in line for line in view.told) == 1
    assert sum(line.endswith(": failed") for line in view.told) == 2


def test_a_launch_that_waits_goes_on_when_sbatch_did_not_answer(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    command("squeue", listing())
    command("sbatch", **LATE)
    study, start = many(tmp_path)
    silent = [lambda: None] * (RESTARTS + 2)
    back = lambda: accepts(command, "echo Submitted batch job 17")  # noqa: E731
    world = World(monkeypatch, *silent, back, lambda: None, lambda: fail(study))
    view = Quiet()
    assert [item.now.state for item in start(view, wait=True)] == [State.FAILED] * 2
    assert world.pauses[1] > world.pauses[0], "it asks less and less often"
    assert world.pauses[-1] == SLURM.poll_seconds
    assert sum("Slurm does not answer" in line for line in view.told) == 1
    assert "2 cells submitted as Slurm job 17" in view.told


def test_a_launch_that_waits_finds_out_what_slurm_took(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    sbatch = accepts(command, FAILS)
    study, start = many(tmp_path)
    taken = sbatch.with_name("squeue")
    script = taken.read_text()
    taken.write_text(f"#!/bin/sh\necho '{DOWN['err']}' >&2\n[ ! -e {sbatch} ] || exit 1\nexec {taken}.up \"$@\"\n")
    taken.with_name("squeue.up").write_text(script)
    taken.with_name("squeue.up").chmod(0o755)
    World(monkeypatch, lambda: None, lambda: taken.write_text(script), lambda: None, lambda: fail(study))
    assert [item.now.state for item in start(wait=True)] == [State.FAILED] * 2
    assert len(sbatch.read_text().splitlines()) == 1, "nothing is submitted twice"


def test_a_job_that_works_outlives_an_empty_queue(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("srun")
    command("sacct")
    command("scontrol", "MaxArraySize = 101\n")
    accepts(command, "echo Submitted batch job 17")
    _, start = many(tmp_path, seeds=1)
    (item,) = start()
    item.run.record(1, "started", {"process": process_identity()})
    command("squeue", listing())  # slurmctld has lost its list
    monkeypatch.setattr("harness.launch.slurm_queue.QUEUE_SECONDS", 0.0)
    (item,) = start()
    assert item.now.state is State.RUNNING
    item.run.record(1, "started", {"process": {**process_identity(), "pid": 1}})
    (item,) = start()
    assert item.run.attempt_numbers() == [1, 2], "its process is dead"


def test_one_silence_among_answers_starts_nothing_anew(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    sbatch = accepts(command, "echo Submitted batch job 17")
    study, start = many(tmp_path)
    for item in start():
        item.run.record(1, "started", {"process": {**process_identity(), "pid": 1}})  # on a node that is gone
    squeue, once = sbatch.with_name("squeue"), tmp_path / "once"
    squeue.rename(squeue.with_name("whole"))
    squeue.write_text(f'#!/bin/sh\nif rm {once} 2>/dev/null; then exit 1; fi\nexec {squeue.with_name("whole")} "$@"\n')
    squeue.chmod(0o755)
    World(monkeypatch, once.touch, lambda: None, once.touch, lambda: fail(study))
    once.touch()  # the first cell is read in silence, the second one is not
    assert [item.now.state for item in start(wait=True)] == [State.FAILED] * 2
    assert len(sbatch.read_text().splitlines()) == 1
