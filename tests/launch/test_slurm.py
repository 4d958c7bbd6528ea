"""What the harness makes of Slurm's answers, without a Slurm: the commands are small scripts."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.errors import InputError
from harness.launch import slurm_commands as slurm
from harness.launch.job import Job
from harness.launch.launch import launch
from harness.launch.slurm import SLURM
from harness.launch.slurm_queue import Queue
from harness.processes import process_identity
from harness.runs.attempts import Seen
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.claims import SupersededError
from harness.runs.records import Ticket
from harness.runs.state import Run
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.model import DiTSpec
from harness.spec.resources import Recording, Resources
from harness.training.hooks import Report
from sweeps.grid import load_sweep

CELL = Cell(model=DiTSpec(depth=2, width=32, patch_size=4))

Command = Callable[..., Path]

#: Its last argument ends in the format, in which each field stands behind a mark.
SCRIPT = """#!/bin/sh
echo "$@" >>{calls}
for last; do :; done
mark=${{last#--format=}}
case $last in --format=*) sed "s/<mark>/${{mark%%%i*}}/g" {path}.out ;; *) cat {path}.out ;; esac
cat {path}.err >&2
exit {code}
"""

HEADER = ("JOBID", "STATE", "REASON", "COMMENT", "NAME", "COMMAND")


def listing(*jobs: str, name: str = "dit-s", script: str = "/r/s/submitit/.submission_file_0.sh") -> str:
    """What squeue prints for jobs, each a text "comment|number|state|reason"."""
    rows = [HEADER]
    for job in jobs:
        comment, number, state, reason = job.rsplit("|", 3)
        rows.append((number, state, reason, comment, name, script))
    return "".join("<mark>" + "<mark>".join([*row, "\n"]) for row in rows)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Makes a command that prints a text, and counts its calls in a file of its own; see `listing` for squeue's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name: str, out: str = "", err: str = "", code: int = 0) -> Path:
        calls = folder / f"{name}.calls"
        (folder / f"{name}.out").write_text(out)
        (folder / f"{name}.err").write_text(err)
        (folder / name).write_text(SCRIPT.format(calls=calls, path=folder / name, code=code))
        (folder / name).chmod(0o755)
        return calls

    return make


def ticket(token: str, index: int, job: str | None = None) -> Ticket:
    return {"token": token, "index": index, "job": job}


def test_one_question_for_a_whole_study(command: Command) -> None:
    lines = [f"aa|7_{i}|PENDING|JobArrayTaskLimit" for i in range(500)]
    calls = command("squeue", listing(*lines, "bb|9|RUNNING|None", "cc|8_0|CANCELLED by 0|None"))
    queue = Queue("s")
    assert queue.look(ticket("aa", 499)) == Seen(True, "PENDING", "JobArrayTaskLimit", "7_499")
    assert queue.look(ticket("bb", 0)) == Seen(True, "RUNNING", "", "9")
    assert queue.look(ticket("cc", 0)) == Seen(False, "CANCELLED", "", "8_0")
    assert len(calls.read_text().splitlines()) == 1
    assert "--name=dit-s" in calls.read_text()


def test_an_array_is_missing_only_when_asked_for_after_its_claim(command: Command) -> None:
    command("sacct")
    calls = command("squeue", listing("aa|7_0|RUNNING|None"))
    queue = Queue("s")
    queue.look(ticket("aa", 0))
    command("squeue", listing("bb|8_0|PENDING|None"))  # submitted since
    assert queue.look(ticket("bb", 0)).alive
    assert queue.look(ticket("gone", 0)).alive is False
    assert queue.look(ticket("gone", 1)).alive is False
    assert len(calls.read_text().splitlines()) == 3


def test_accounting_gives_the_reason_of_what_squeue_forgot(command: Command) -> None:
    command("squeue", listing())
    calls = command("sacct", "7_0|OUT_OF_MEMORY\n7_1|CANCELLED by 0\n")
    queue = Queue("s")
    assert queue.look(ticket("aa", 0, "7_0")).word == "OUT_OF_MEMORY"
    assert queue.look(ticket("aa", 1, "7_1")).word == "CANCELLED"
    assert queue.look(ticket("aa", 2, "7_2")) == Seen(False)
    assert len(calls.read_text().splitlines()) == 1
    command("sacct", err="Slurm accounting storage is disabled", code=1)
    assert Queue("s").look(ticket("aa", 0, "7_0")) == Seen(False)


def test_silence_is_no_answer(command: Command) -> None:
    command("squeue", err="slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", code=1)
    queue = Queue("s")
    assert queue.look(ticket("aa", 0)) == Seen(None)
    assert queue.error == "Unable to contact slurm controller (connect failure)"
    command("squeue", listing())
    command("sacct")
    queue.forget()
    assert queue.look(ticket("aa", 0)) == Seen(False)
    assert queue.error is None


def test_no_slurm_here_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(slurm.SlurmDownError, match="is this a Slurm machine"):
        slurm.max_array_size()


def test_the_limit_of_arrays(command: Command) -> None:
    command("scontrol", "Configuration data\nMaxArraySize            = 101\nMaxJobCount = 9\n")
    assert slurm.max_array_size() == 101


def test_a_refusal_is_one_line_of_slurms_own_words(command: Command, tmp_path: Path) -> None:
    command("srun")
    words = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed\n"
    command("sbatch", err=words, code=1)
    with pytest.raises(slurm.SlurmError, match=r"^invalid partition specified: x; Batch job submission failed$"):
        slurm.submit([job(tmp_path)] * 2, Resources(executor="slurm"), tmp_path / "submitit", "s", "aa", None)


def test_the_request(command: Command, tmp_path: Path) -> None:
    command("srun")
    calls = command("sbatch", "Submitted batch job 17\n")
    resources = Resources(
        executor="slurm",
        threads=3,
        partition="p",
        account="a",
        qos="q",
        constraint="a100|h100",
        time=60,
        mem_gb=1.5,
        gpus=1,
        max_parallel=2,
    )
    numbers = slurm.submit([job(tmp_path)] * 5, resources, tmp_path / "submitit", "s", "aa", "16")
    assert numbers == [f"17_{i}" for i in range(5)]
    assert len(calls.read_text().splitlines()) == 1
    script = next((tmp_path / "submitit").glob("17_submission.sh")).read_text()
    for line in (
        "partition=p",
        "account=a",
        "qos=q",
        "constraint='a100|h100'",
        "time=60",
        "mem=1536M",
        "gpus-per-node=1",
        "array=0-4%2",
        "cpus-per-task=3",
        "comment=aa",
        "job-name=dit-s",
        "signal=USR2@90",
        "dependency=afterany:16",
        "requeue",
    ):
        assert f"#SBATCH --{line}\n" in script
    assert "--cpus-per-task=3 " in script.partition("srun ")[2]


def test_many_cells_cost_few_questions_and_few_waits_for_the_disk(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("srun")
    command("scontrol", "MaxArraySize = 101\n")
    squeue, sbatch = command("squeue", listing()), command("sbatch", "Submitted batch job 17\n")
    sweep = load_sweep(sweep_file(tmp_path, seeds=250))
    study = Study(tmp_path / "results", "many", {"slurm": Queue("many")})
    synced: list[str] = []
    fsync = os.fsync

    def sync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", sync)
    items = launch(sweep, study, Quiet())
    assert len(sbatch.read_text().splitlines()) == 3
    assert len(squeue.read_text().splitlines()) < 10
    assert len(synced) < 5 * len(items)
    claims = {path for path in synced if path.endswith("attempts/001.json")}
    assert len(claims) == 250, "a claim outlasts a power cut before Slurm hears of it"
    squeue.unlink()
    cell_runs(sweep, Study(tmp_path / "results", "many", {"slurm": Queue("many")}))
    assert len(squeue.read_text().splitlines()) < 5


def test_pools_share_the_cells_and_ask_for_all_their_slots(command: Command, tmp_path: Path) -> None:
    command("srun")
    command("squeue", listing())
    command("scontrol", "MaxArraySize = 101\n")
    command("sbatch", "Submitted batch job 17\n")
    request = "cells_per_job = 4\nmax_parallel = 2\nthreads = 3\nmem_gb = 1.5\ngpus = 1\ncells_per_gpu = 2\n"
    sweep = load_sweep(sweep_file(tmp_path, seeds=7, resources=request))
    study, view = Study(tmp_path / "results", "many", {"slurm": Queue("many")}), Quiet()
    items = launch(sweep, study, view)
    assert view.told == ["7 cells submitted as Slurm job 17 of 2 x 4 slots"]
    script = next(study.submitit_folder.glob("17_submission.sh")).read_text()
    for line in ("array=0-1%2", "cpus-per-task=12", "mem=6144M", "gpus-per-node=2"):
        assert f"#SBATCH --{line}\n" in script
    claims = [item.run.attempt(1) for item in items]
    assert [claim.claim["slurm"]["index"] for claim in claims] == [0, 1, 0, 1, 0, 1, 0]
    assert [claim.job_id for claim in claims[:2]] == ["17_0", "17_1"]
    assert all(claim.pooled for claim in claims)


@pytest.mark.parametrize("arrived", [False, True])
def test_slurm_goes_silent_in_the_middle_of_a_launch(command: Command, tmp_path: Path, arrived: bool) -> None:
    silence = {"err": "slurm_load_jobs error: Unable to contact slurm controller\n", "code": 1}
    command("srun")
    command("sacct")
    command("scontrol", "MaxArraySize = 101\n")
    sbatch, squeue = command("sbatch", **silence), command("squeue", **silence)
    sweep = load_sweep(sweep_file(tmp_path, seeds=2))

    def again() -> list[str]:
        items = launch(sweep, Study(tmp_path / "results", "many", {"slurm": Queue("many")}), Quiet())
        return [item.now.state for item in items]

    with pytest.raises(InputError, match=r"Slurm does not answer: .* 0 cells were submitted, the same command"):
        again()
    for path in (tmp_path / "results").glob("runs/*/attempts/001.json"):
        claim = json.loads(path.read_text())
        token = claim["slurm"]["token"]
        path.write_text(json.dumps({**claim, "process": {"host": socket.gethostname()}}))  # its launcher has ended
    squeue.unlink()
    sbatch.unlink()
    command("squeue", listing(*(f"{token}|17_{i}|PENDING|None" for i in range(2 * arrived))))
    command("sbatch", "Submitted batch job 18\n")
    assert again() == (["queued"] * 2 if arrived else ["interrupted"] * 2)  # this queue does not hear of job 18
    assert sbatch.exists() is not arrived, "nothing is submitted twice"


@pytest.mark.parametrize("name", ["100%j", "a\nb"])
def test_a_results_folder_that_sbatch_would_misread(command: Command, tmp_path: Path, name: str) -> None:
    sbatch = command("sbatch")
    study = Study(tmp_path / name, "many", {"slurm": Queue("many")})
    with pytest.raises(InputError, match="allowed: a results folder without % and line breaks"):
        launch(load_sweep(sweep_file(tmp_path, seeds=1)), study, Quiet())
    assert not sbatch.exists()


@pytest.mark.parametrize("shared", [{"cells_per_job": 2}, {"cells_per_gpu": 2}])
def test_cells_of_several_ranks_share_nothing(shared: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="2 is for cells of one process; allowed: ranks 1 and nodes 1"):
        Resources(**shared, ranks=2)  # type: ignore[arg-type]


def sweep_file(folder: Path, seeds: int, resources: str = "") -> Path:
    path = folder / "many.toml"
    path.write_text(
        f"[grid]\nseed = {list(range(seeds))}\n[model]\ndepth = 1\nwidth = 16\npatch_size = 4\n"
        f'[[evaluation]]\nsamples = 330\n[resources]\nexecutor = "slurm"\n{resources}'
    )
    return path


class Quiet:
    """A view that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def started(self, item: CellRun) -> None:
        self.told.append(f"{item.name}: started")

    def finished(self, item: CellRun) -> None:
        self.told.append(f"{item.name}: {item.now.state}")

    def tick(self, items: list[CellRun]) -> None:
        pass

    def work(self, value: Report) -> None:
        pass

    def note(self, text: str) -> None:
        self.told.append(text)


def job(folder: Path, attempt: int = 1) -> Job:
    return Job(
        folder=str(folder / "r"),
        attempt=attempt,
        token=Run(folder / "r").attempt(attempt).claim.get("token", ""),
        study="s",
        cell=CELL,
        evaluations=(),
        recording=Recording(),
        resources=Resources(executor="slurm"),
    )


def write(job: Job) -> None:
    with job.hold.writing():
        pass


def claim(run: Run, number: int, token: str, restarts: int) -> None:
    value: Ticket = {"token": token, "index": 0, "restarts": restarts}
    assert run.claim(number, {"process": process_identity(), "slurm": value})


def test_each_start_of_a_requeued_job_is_an_attempt_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "r")
    claim(run, 1, "aa", 0)
    assert SLURM.of_this_start(job(tmp_path)).attempt == 1
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert SLURM.of_this_start(job(tmp_path)).attempt == 2
    assert SLURM.of_this_start(job(tmp_path)).attempt == 2
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")  # once it did not come so far as to claim
    assert SLURM.of_this_start(job(tmp_path)).attempt == 3
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # of a node that was thought lost
    with pytest.raises(SupersededError):
        write(SLURM.of_this_start(job(tmp_path)))


def test_a_requeued_job_does_not_take_a_cell_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "r")
    claim(run, 1, "aa", 0)
    claim(run, 2, "bb", 0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(SupersededError):
        write(SLURM.of_this_start(job(tmp_path)))
    assert run.attempt_numbers() == [1, 2]
