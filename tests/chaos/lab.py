"""A small sweep whose launcher and jobs are forks of one warm process, so that a kill costs a second, not ten.

All else is the harness's own: claims, attempts, the loop over the slots, the job, the tables. In the place of submitit,
which starts a new interpreter for each job, a job is forked; `tests/launch/test_launch.py` kills the real thing.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from harness.data.sources import load
from harness.errors import DiskFullError
from harness.files import read_json
from harness.launch import launch, local
from harness.launch.job import Job
from harness.processes import is_alive
from harness.runs import state as runs
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.collect import collect
from harness.runs.state import State
from harness.runs.study import Study
from harness.spec.data import Data
from harness.training import checkpoint
from harness.training.hooks import Report
from sweeps.grid import load_sweep
from tests.chaos.killer import Killer
from tests.small_study import TIMINGS

SWEEP = """
title = "two tiny cells"
[grid]
depth = [1, 2]
[model]
width = 8
patch_size = 4
[training]
steps = 8
batch_size = 8
learning_rate = 1e-2
[recording]
loss_images = 8
[[evaluation]]
samples = 30
sampler = "ddim"
sampling_steps = 2
at = [4]
[resources]
slots = 2
device = "cpu"
checkpoint_seconds = 0
sampling_batch = 20
"""

#: Longest life of one launch.
SECONDS = 120

#: What happens at a write point: a signal, or 0. Told its name, and how many came before in this process.
Decide = Callable[[str, int], int]


def never(name: str, count: int) -> int:
    """Kill nowhere."""
    return 0


class Notes:
    """A view that records its calls."""

    def started(self, item: CellRun) -> None:
        """Nothing to show."""

    def finished(self, item: CellRun) -> None:
        """Print the end of a cell, for the one who looks for a failure."""
        print(f"{item.name}: {item.now.state} {item.now.message}", flush=True)

    def tick(self, items: list[CellRun]) -> None:
        """Nothing to draw."""

    def work(self, value: Report) -> None:
        """Nothing to draw."""

    def note(self, text: str) -> None:
        """Print it."""
        print(text, flush=True)


class Lab:
    """A folder with the sweep and its study."""

    def __init__(self, folder: Path, sweep: str = SWEEP, name: str = "tiny") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.sweep = folder / f"{name}.toml"
        self.sweep.write_text(sweep)
        self.study = Study(folder / "results", name)
        self.killed = folder / "killed"  # a line for every kill
        self.stopped = folder / "stopped"  # the process that stopped itself

    def start(self, decide: Decide = never, *, retry: bool = False) -> int:
        """Begin a launch in a fork; returns its process id."""
        if pid := os.fork():
            return pid
        with _forked(self.folder / "output"):
            killer = Killer(self.study.root, self._recording(decide))
            os.chdir(self.folder)
            vars(local)["submitit"] = SimpleNamespace(LocalExecutor=_executor(killer))
            local.LocalExecutor.poll_seconds = 0.02
            killer.watch()
            sweep = load_sweep(self.sweep)
            items = launch.launch(sweep, self.study, Notes(), retry=retry)
            try:
                collect(self.study, cell_runs(sweep, self.study))
            except DiskFullError as error:  # as the command does
                print(error, flush=True)
                os._exit(1)
            os._exit(int(any(item.now.state is not State.DONE for item in items)))

    def launch(self, decide: Decide = never, *, retry: bool = False) -> int:
        """Launch and wait; returns the exit code, -9 after a kill."""
        return wait_for(self.start(decide, retry=retry))

    def _recording(self, decide: Decide) -> Decide:
        def decided(name: str, count: int) -> int:
            if not (number := decide(name, count)):
                return 0
            stops = number == signal.SIGSTOP
            descriptor = os.open(self.stopped if stops else self.killed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(descriptor, f"{os.getpid() if stops else name}\n".encode())
            os.close(descriptor)
            return signal.SIGKILL if number is True else number

        return decided

    def kills(self) -> list[str]:
        """The write points at which processes were killed, in order."""
        return self.killed.read_text().splitlines() if self.killed.exists() else []

    def output(self) -> str:
        """What the launchers and jobs printed, for the one who looks for a failure."""
        logs = (path.read_text(errors="replace") for path in self.study.runs_folder.glob("*/log"))
        return "\n".join([(self.folder / "output").read_text(errors="replace"), *logs])

    def runs(self) -> list[runs.Run]:
        """All runs that are there."""
        return [runs.Run(folder) for folder in sorted(self.study.runs_folder.glob("[!.]*"))]

    # what must hold

    def check_whole(self) -> None:
        """After any kill: what is there under its name is whole."""
        for path in self.study.root.rglob("*.json"):
            if not path.name.startswith("."):
                assert read_json(path) is not None, f"{path} is torn"
        for path in self.study.root.rglob("*.safetensors"):
            if not path.name.startswith("."):
                checkpoint.load(path)
        for folder in self.study.runs_folder.glob("*/attempts"):
            numbers = sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())
            assert numbers == list(range(1, len(numbers) + 1)), f"{folder}: {numbers}"

    def check_over(self) -> None:
        """After the last launch: nothing runs, nothing is left half-written, the attempts tell one story."""
        for run in self.runs():
            folder, attempts = run.folder, run.attempts()
            assert not any(is_alive((a.started or {}).get("process")) for a in attempts if a.ended is None)
            ends = [attempt.outcome for attempt in attempts]
            assert set(ends[:-1]) <= {"lost", "stopped", "failed", "done"}, ends
            assert not list(folder.glob("checkpoints/state-*")), "states are needed no more"
        runs_left = [p for p in self.study.runs_folder.rglob(".*.tmp") if p.parent.name != "attempts"]
        assert runs_left == []
        for leftover in self.study.root.rglob(".*.tmp"):
            os.utime(leftover, (0, 0))  # as if the killed launchers were of last week
        self.study.remove_leftovers(self.runs())
        assert list(self.study.root.rglob(".*.tmp")) == []

    def science(self) -> dict[str, Any]:
        """All that must not depend on disturbances."""
        found: dict[str, Any] = {}
        for folder in (run.folder for run in self.runs()):
            kept = ("cell.json", "checkpoints/weights-*", "samples/*/part-*", "samples/*.png")
            for path in (path for pattern in kept for path in folder.glob(pattern)):
                found[f"{folder.name}/{path.relative_to(folder)}"] = path.read_bytes()
            for path in folder.glob("evaluations/*.json"):
                record = json.loads(path.read_text())
                found[path.name] = {k: record[k] for k in ("cell", "step", "evaluation", "params", "macs", "metrics")}
        for name in ("results.csv", "curves.csv"):
            with self.study.table(name).open() as file:
                rows = list(csv.DictReader(file))
            found[name] = [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]
        return found


def _executor(killer: Killer) -> type:
    """What stands for submitit's local executor: a job is a fork of the launcher, with a session of its own."""

    class Executor:
        def __init__(self, folder: Path, **_: object) -> None:
            self.folder = folder

        def update_parameters(self, **_: object) -> None:
            """Nothing to set."""

        def submit(self, job: Job) -> SimpleNamespace:
            if pid := os.fork():
                return SimpleNamespace(job_id=str(pid))
            killer.role, killer.count = "job", 0
            with _forked(None):
                os.setsid()
                torch.set_num_threads(1)
                os._exit(int(job() != "done"))

    return Executor


@contextlib.contextmanager
def _forked(output: Path | None) -> Iterator[None]:
    """A forked process must never come back into pytest, whatever happens."""
    try:
        if output is not None:
            descriptor = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            sys.stdout = os.fdopen(1, "w", closefd=False)
            sys.stderr = os.fdopen(2, "w", closefd=False)
        yield
    except BaseException:  # pytest's and Ctrl-C too
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(70)


def wait_for(pid: int) -> int:
    """Exit code of a launch, negative after a signal; one that hangs is killed and is an error."""
    deadline = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"the launch hung for {SECONDS} s")
        time.sleep(0.005)


def warm() -> None:
    """Import and read what every job needs, once; no thread may be started, for threads do not survive a fork."""
    import harness.evaluation.generate
    import harness.training.loop  # noqa: F401

    torch.set_num_threads(1)
    load(Data())
