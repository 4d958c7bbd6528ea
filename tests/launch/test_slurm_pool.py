"""A pool of cells at work on this machine: its processes are quick stand-ins of real jobs."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.launch.cancel import cancel
from harness.launch.job import Job
from harness.launch.signals import StopFlag
from harness.launch.slurm_pool import Pool, _Slots, claim_start
from harness.processes import process_identity
from harness.runs.attempts import RESTARTS, Seen
from harness.runs.cellruns import CellRun
from harness.runs.records import Ticket
from harness.runs.state import Run, State
from harness.spec.cell import Cell
from harness.spec.model import DiTSpec
from harness.spec.resources import Recording, Resources
from tests.small_study import wait_for

RESOURCES = Resources(executor="slurm", cells_per_job=2)


@dataclass(frozen=True)
class StandIn(Job):
    """Does what the first word of its run's folder says."""

    def __call__(self) -> str:
        run, does = self.run, Path(self.folder).name.partition("-")[0]
        stop = StopFlag(with_parent=True)
        run.record(self.attempt, "started", {"process": process_identity(), "gpu": self.gpu})
        if does == "killed" or (does == "once" and self.attempt == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while does == "long" and not stop.is_set() and time.monotonic() < deadline:
            time.sleep(0.02)
        outcome = "stopped" if stop.is_set() else "failed" if does == "failed" else "done"
        run.record(self.attempt, "ended", {"outcome": outcome, "message": ""})
        return outcome


def jobs(folder: Path, *names: str) -> list[StandIn]:
    made = []
    for seed, name in enumerate(names):
        cell = Cell(model=DiTSpec(depth=1, width=16, patch_size=4), seed=seed)
        made.append(
            StandIn(
                folder=str(folder / name),
                attempt=1,
                token="",
                study="s",
                cell=cell,
                evaluations=(),
                recording=Recording(),
                resources=RESOURCES,
                pooled=True,
            )
        )
        made[-1] = replace(made[-1], token=claim(made[-1].run, 1))
    return made


def claim(run: Run, number: int, restarts: int = 0, token: str = "aa") -> str:
    ticket: Ticket = {"token": token, "index": 0, "restarts": restarts, "pool": True}
    hold = run.claim(number, {"process": process_identity(), "slurm": ticket})
    assert hold is not None
    return hold.token


def outcomes(job: Job) -> list[str]:
    return [(attempt.ended or {}).get("outcome", "") for attempt in job.run.attempts()]


Work = Callable[[list[StandIn]], int]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """One start of a pool of two slots in this process, whose handlers of signals are put back."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr("harness.launch.slurm_pool.POLL_SECONDS", 0.02)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield lambda made: _Slots(Pool(tuple(made), 2), StopFlag()).work()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def soon(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Act in another thread once the condition holds."""
    thread = threading.Thread(target=lambda: (wait_for(condition, 30), act()))
    thread.start()
    return thread


def test_cells_that_fail_or_die_leave_the_others_alone(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")  # of the job; each slot has one
    made = jobs(tmp_path, "well-1", "failed-2", "killed-3", "once-4", "well-5")
    assert work(made) == 0
    assert [outcomes(job) for job in made] == [["done"], ["failed"], ["", "", "failed"], ["", "done"], ["done"]]
    killed = made[2].run.attempt(RESTARTS + 1).ended
    assert killed is not None
    assert killed["message"] == "its process ended without a word 3 times (exit status -9)"
    assert killed["cause"] == "lost"
    assert {attempt.started and attempt.started["gpu"] for job in made for attempt in job.run.attempts()} == {"3", "5"}


def test_stopped_by_a_signal_and_continued_after_the_requeue(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = jobs(tmp_path, "long-1", "long-2", "well-3")
    preempted = soon(
        lambda: all(job.run.attempt(1).started for job in made[:2]), lambda: os.kill(os.getpid(), signal.SIGUSR2)
    )
    assert work(made) == 3
    preempted.join()
    assert [outcomes(job) for job in made] == [["stopped"], ["stopped"], [""]]
    assert made[2].run.attempt(1).started is None, "no new cell is drawn once the time runs low"
    for job in made[:2]:
        Path(job.folder).rename(Path(job.folder).with_name(Path(job.folder).name.replace("long", "well")))
    made = [StandIn(**{**vars(job), "folder": job.folder.replace("long", "well")}) for job in made]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert work(made) == 0
    assert [outcomes(job) for job in made] == [["stopped", "done"], ["stopped", "done"], ["", "done"]]
    assert made[2].run.attempt(1).outcome == "waited", "it is not lost"


def test_a_cell_that_cannot_be_started_leaves_the_others_alone(
    tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = jobs(tmp_path, "well-1", "well-2")

    def claim_one(job: Job, restarts: int, *, again: bool) -> Job | None:
        if job is made[0]:
            raise OSError("no space left")
        return claim_start(job, restarts, again=again)

    monkeypatch.setattr("harness.launch.slurm_pool.claim_start", claim_one)
    assert work(made) == 1
    assert [outcomes(job) for job in made] == [[""], ["done"]]


def test_processes_stop_when_their_pool_is_killed(tmp_path: Path) -> None:
    made = jobs(tmp_path, "long-1")
    code = (
        "import pickle, sys; from harness.launch.slurm_pool import Pool; "
        "Pool(tuple(pickle.load(sys.stdin.buffer)), 1)()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment) as pool:
        assert pool.stdin is not None
        pool.stdin.write(pickle.dumps(made))
        pool.stdin.close()
        wait_for(lambda: made[0].run.attempt(1).started, 60)
        pool.kill()
    wait_for(lambda: outcomes(made[0]) == ["stopped"], 30)


def test_one_cell_is_cancelled_and_the_others_go_on(tmp_path: Path, work: Work) -> None:
    made = jobs(tmp_path, "long-1", "well-2", "well-3")
    items = [
        CellRun(f"c{i}", job.cell, Run(Path(job.folder), {"slurm": Alive()}), ["e@1"]) for i, job in enumerate(made)
    ]
    assert cancel([items[2]], items, "s").cells == 1  # waits for a slot
    assert items[2].refresh().state is State.CANCELLED

    def cancel_the_long_one() -> None:
        items[0].refresh()
        assert cancel([items[0]], items, "s").problems == []

    cancelled = soon(lambda: made[0].run.attempt(1).started, cancel_the_long_one)
    assert work(made) == 0
    cancelled.join()
    assert [outcomes(job) for job in made] == [["stopped"], ["done"], [""]]
    assert [item.refresh().state for item in (items[0], items[2])] == [State.CANCELLED] * 2


@pytest.mark.parametrize(("study", "stopped"), [("s", [["17"]]), ("another", [[]])])
def test_a_pool_of_another_study_is_not_cancelled_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str, stopped: list[list[str]]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("harness.launch.slurm_commands.cancel", lambda numbers: asked.append(list(numbers)))
    run = Run(tmp_path / "r", {"slurm": Alive()})
    ticket: Ticket = {"token": "aa", "index": 0, "restarts": 0, "pool": True, "job": "17"}
    assert run.claim(1, {"process": process_identity(), "study": study, "slurm": ticket})
    items = [CellRun("c", jobs(tmp_path, "well-1")[0].cell, run, ["e@1"])]
    assert cancel(items, items, "s").cells == 1
    assert run.is_cancelled(1), "its pool reads this, and stops the cell"
    assert asked == stopped


class Alive:
    """A Slurm that runs the pool."""

    error: str | None = None

    def look(self, ticket: Ticket) -> Seen:
        return Seen(True, "RUNNING", "", "17")


def test_the_state_of_a_cell_is_its_own_while_the_pool_runs(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "well-1")
    run = Run(Path(job.folder), {"slurm": Alive()})
    run.record(1, "submitted", {"process": None, "job_id": "17"})
    waits = run.state(["e@1"], 10)
    assert (waits.state, waits.message) == (State.QUEUED, "waits for a slot")
    run.record(1, "started", {"process": process_identity()})
    assert run.state(["e@1"], 10).state is State.RUNNING
    run.record(1, "ended", {"outcome": "stopped", "message": ""})
    assert run.state(["e@1"], 10).state is State.QUEUED
    claim(run, 2, restarts=1)
    run.record(2, "ended", {"outcome": "failed", "message": "why"})
    assert run.state(["e@1"], 10).state is State.FAILED


def test_a_cell_that_somebody_else_has_is_not_claimed(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, "well-1")
    claimed = claim_start(job, 0, again=False)
    assert claimed is not None
    assert claimed.attempt == 1
    claim(job.run, 2, restarts=2)
    assert claim_start(job, 1, again=False) is None, "this start was thought lost"
    newer = claim_start(job, 3, again=False)
    assert newer is not None
    assert newer.attempt == 3
    claim(job.run, 4, token="bb")
    assert claim_start(job, 4, again=False) is None, "another launch has taken the cell over"
