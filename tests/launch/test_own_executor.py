"""An executor from a user's own file, used like a built-in one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.files import read_json
from harness.launch.executor import Schedulers
from harness.launch.job import Job
from harness.launch.launch import launch
from harness.processes import process_identity
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.state import Run, State
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.extension import Extension
from harness.spec.model import DiTSpec
from harness.spec.resources import Recording, Resources
from harness.training.hooks import Report
from sweeps.grid import load_sweep
from tests.conftest import forget_users_files

STUB = """
from harness.launch.executor import Executor

class StubExecutor(Executor):
    def submit(self, launch, waiting):
        for item in waiting:
            if job := launch.claim(item):
                job()
            item.refresh()
        return waiting

EXECUTORS = {"stub": StubExecutor()}
"""

SWEEP = """
extend = ["stub.py"]
[grid]
seed = [0, 1]
[model]
depth = 1
width = 8
heads = 1
patch_size = 4
[training]
steps = 2
batch_size = 8
[recording]
loss_images = 8
[[evaluation]]
samples = 30
sampler = "ddim"
sampling_steps = 2
[resources]
executor = "stub"
sampling_batch = 20
"""


class Quiet:
    """A view that remembers which cells ended, and how."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def started(self, item: CellRun) -> None:
        pass

    def finished(self, item: CellRun) -> None:
        self.ended.append(f"{item.name}: {item.now.state}")

    def tick(self, items: list[CellRun]) -> None:
        pass

    def work(self, value: Report) -> None:
        pass

    def note(self, text: str) -> None:
        pass


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, users_files: None) -> Iterator[None]:
    """What a job changes in its process is put back."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr("harness.launch.executor.Executor.poll_seconds", 0.01)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("in_process")
def test_it_runs_the_cells_and_stands_in_the_claim(tmp_path: Path) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "tiny.toml").write_text(SWEEP)
    sweep = load_sweep(tmp_path / "tiny.toml")
    study, view = Study(tmp_path / "results", "tiny", Schedulers("tiny")), Quiet()
    items = launch(sweep, study, view)
    assert [item.now.state for item in items] == [State.DONE] * 2
    assert len(view.ended) == 2
    for item in cell_runs(sweep, study):
        claim = json.loads((item.run.folder / "attempts" / "001.json").read_text())
        assert claim["executor"] == "stub"
        (extension,) = sweep.extensions
        started = read_json(item.run.attempt_file(1, "started"))
        assert started is not None
        assert started["extend"] == {"stub.py": extension.content_hash}
        assert item.run.extension_file(extension.content_hash).read_text() == STUB
    assert launch(sweep, study, view)[0].run.attempt_numbers() == [1], "what is done is not run again"


@pytest.mark.usefixtures("users_files")
def test_the_cell_of_a_run_is_read_with_the_copies_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text("BLOCKS = {'mine': object}\n")
    (tmp_path / "s.toml").write_text(
        'extend = ["block.py"]\n[grid]\ndepth = [1]\n[model]\nwidth = 8\npatch_size = 4\nblock = "mine"\n'
    )
    sweep = load_sweep(tmp_path / "s.toml")
    ((name, cell),) = sweep.cells()
    run, identity = Run(tmp_path / cell.id), cell.id
    run.write_cell(name, cell)
    copy = run.extension_file(sweep.extensions[0].content_hash)
    copy.parent.mkdir()
    copy.write_text(sweep.extensions[0].text)
    forget_users_files()
    assert run.cell()[1].id == identity


@pytest.mark.usefixtures("in_process")
def test_a_file_that_does_not_run_where_the_job_is_is_said_on_record(tmp_path: Path) -> None:
    bad = Extension("stub.py", "import no_such_package")
    cell = Cell(model=DiTSpec(depth=1, width=8, patch_size=4))
    job = Job(
        folder=str(tmp_path / "run"),
        attempt=1,
        token="",
        study="s",
        cell=cell,
        evaluations=(),
        recording=Recording(),
        resources=Resources(),
        extensions=(bad,),
    )
    hold = job.run.claim(1, {"process": process_identity()})
    assert hold is not None
    job = replace(job, token=hold.token)
    assert job() == "failed"
    ended = job.run.attempt(1).ended
    assert ended is not None
    assert ended["message"].startswith("extend: stub.py, line 1: ModuleNotFoundError")
    assert ended["cause"] == "bad input"
