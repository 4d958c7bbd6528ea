"""A job's evaluations fail one by one: what can be measured is measured, and only the others are tried again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.errors import DiskFullError, NonFiniteError
from harness.launch.job import Job
from harness.launch.signals import StopFlag
from harness.launch.work import _of_one_evaluation, attempt
from harness.processes import process_identity
from harness.runs.cellruns import CellRun, owed_evaluations
from harness.runs.claims import SupersededError
from harness.runs.collect import collect
from harness.runs.state import State
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Recording, Resources
from harness.training.hooks import StoppedError
from tests.commands import ROOT


@pytest.fixture
def quiet_torch() -> Iterator[None]:
    """Put back what a job sets for its whole process."""
    threads, exact = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(exact)


class NoStop(StopFlag):
    """No signal ever comes."""

    def __init__(self) -> None:
        self._set, self._parent = False, None


def claimed(results: Path, cell: Cell, asked: tuple[Evaluation, ...], number: int = 1) -> Job:
    """An attempt at a cell, to be made in this process."""
    run = Study(results, "s").run(cell)
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    hold = run.claim(number, {"process": process_identity()})
    assert hold is not None
    run.write_cell("tiny", cell)
    more = (Recording(loss_images=8), Resources(), str(results))
    return Job(str(run.folder), number, hold.token, "s", cell, asked, *more)


def test_a_training_imports_nothing_heavy_but_torch(tmp_path: Path) -> None:
    """What a small cell waits for. Each of these takes longer than its first hundred steps."""
    heavy = {"torch._dynamo", "torch._inductor", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "diffusers"}
    code = (
        "import pathlib, sys; from harness.spec.cell import Cell\n"
        "from tests.launch.test_work import NoStop, claimed\n"
        "model, recipe = {'depth': 1, 'width': 8, 'patch_size': 4}, {'steps': 2, 'batch_size': 8}\n"
        "cell = Cell.model_validate({'model': model, 'training': recipe})\n"
        "job = claimed(pathlib.Path(sys.argv[1]), cell, ())\n"
        "from harness.launch.work import attempt; assert attempt(job, NoStop()) == ('done', '')\n"
        f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("quiet_torch")
def test_an_undefined_evaluation_leaves_the_others_alone(tmp_path: Path) -> None:
    recipe = {"steps": 3, "batch_size": 8, "learning_rate": 10.0, "ema_window": 1.0}
    cell = Cell.model_validate({"model": {"depth": 1, "width": 8, "patch_size": 4}, "training": recipe})
    # the first two give the same image 40 times, or nothing finite
    asked = tuple(
        Evaluation(samples=40, sampler=sampler, sampling_steps=4, seed=seed)
        for sampler, seed in (("ddpm", 0), ("ddpm", 1), ("ddim", 0))
    )
    study = Study(tmp_path, "s")
    item = CellRun("tiny", cell, study.run(cell), list(owed_evaluations(cell, asked)), asked)

    def again(number: int) -> str:
        outcome, message = attempt(claimed(tmp_path, cell, asked, number), NoStop())
        assert outcome == "failed"
        return message

    first = again(1)
    assert first.startswith("2 of 3 evaluations failed: ddpm ")
    assert all(evaluation.id in first for evaluation in asked[:2])
    assert asked[2].id not in first
    assert item.refresh().state is State.FAILED
    assert [row["evaluation"] for row in collect(study, [item])] == [asked[2].id]
    record = item.run.evaluation_file(f"{asked[2].id}@3")
    before = record.stat().st_mtime_ns, item.run.weights_file(3).stat().st_mtime_ns
    assert again(2) == first
    assert before == (record.stat().st_mtime_ns, item.run.weights_file(3).stat().st_mtime_ns)

    def state_for(*evaluations: Evaluation) -> State:
        """Of a study that asks for these."""
        return item.run.state(list(owed_evaluations(cell, evaluations)), 3).state

    assert state_for(asked[2]) is State.DONE
    assert state_for(asked[2], Evaluation(samples=50)) is State.PARTIAL, "nobody has tried this one"
    assert state_for(asked[0], Evaluation(samples=50)) is State.FAILED


@pytest.mark.usefixtures("quiet_torch")
def test_a_precision_that_the_device_has_not_fails_the_cell(tmp_path: Path) -> None:
    recipe = {"steps": 3, "batch_size": 8, "precision": "tf32"}
    cell = Cell.model_validate({"model": {"depth": 1, "width": 8, "patch_size": 4}, "training": recipe})
    study = Study(tmp_path, "s")
    study.runs_folder.mkdir(parents=True)
    run = study.run(cell)
    hold = run.claim(1, {"process": process_identity()})
    assert hold is not None
    job = Job(str(run.folder), 1, hold.token, "s", cell, (), Recording(), Resources(), str(tmp_path))
    outcome, message = attempt(job, NoStop())
    said = 'training.precision "tf32": the CPU, on which the cell runs, cannot do it; allowed here: fp32, bf16'
    assert (outcome, message) == ("failed", said)
    assert not run.train_log.exists()


@pytest.mark.parametrize(
    ("error", "others_may_do_better"),
    [
        (NonFiniteError("nan"), True),
        (ValueError("a fault in the code of one metric"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (StoppedError("asked to"), False),
        (SupersededError("another's"), False),
        (DiskFullError("f: cannot be written"), False),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), False),
    ],
)
def test_which_errors_end_all_evaluations(error: Exception, others_may_do_better: bool) -> None:
    assert _of_one_evaluation(error) is others_may_do_better
