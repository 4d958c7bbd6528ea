"""A record, weights, a state or a sample counts only where it says that it is what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data.sources import load
from harness.errors import CellFailedError, InputError
from harness.evaluation.generate import Generator, generate, load_weights
from harness.files import write_json
from harness.runs.cellruns import evaluation_key
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Recording
from harness.training import checkpoint
from harness.training.hooks import Hooks
from harness.training.loop import Options, train
from harness.training.state import TrainState
from tests.records import write_record


def cell(seed: int = 0) -> Cell:
    recipe = {"steps": 4, "batch_size": 8}
    return Cell.model_validate({"model": {"depth": 1, "width": 8, "patch_size": 4}, "training": recipe, "seed": seed})


MINE, OTHER = cell(), cell(seed=1)
EVALUATION = Evaluation(samples=40, sampler="ddim", sampling_steps=2)
KEY = evaluation_key(EVALUATION, 4)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / MINE.id)


def put_weights(run: Run, owner: Cell = MINE, step: int = 4, add: float = 0.0, name: int = 4) -> None:
    state = TrainState.initial(owner, "cpu")
    tensors = {key: value + add for key, value in state.weights().items()}
    checkpoint.save(run.weights_file(name), tensors, {"step": step, "cell": owner.id})


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"metrics": {}},
        {"cell": OTHER.id},
        {"cell": None},
        {"step": 3},
        {"step": "four"},
        {"evaluation": {}},
        {"evaluation": [1]},
        {"evaluation": EVALUATION.model_dump(mode="json", exclude={"at"}) | {"seed": 5}},
        {"evaluation": EVALUATION.model_dump(mode="json", exclude={"at"}) | {"no_such": 5}},
        {"metrics": None},
        {"weights": 17},
    ],
    ids=str,
)
def test_a_record_of_something_else_does_not_count(run: Run, record: dict[str, Any]) -> None:
    put_weights(run)
    write_record(run, MINE, EVALUATION, 4, weights=run.weights_checksum(4))
    assert run.missing_evaluations([KEY]) == []
    if record and record != {"metrics": {}}:
        write_record(run, MINE, EVALUATION, 4, **record)
    else:
        write_json(run.evaluation_file(KEY), record)
    assert run.missing_evaluations([KEY]) == [KEY]
    assert run.all_measured() == {}


def test_a_record_of_before_and_one_whose_weights_are_gone_count(run: Run) -> None:
    put_weights(run)
    write_record(run, MINE, EVALUATION, 4)
    assert run.missing_evaluations([KEY]) == []
    write_record(run, MINE, EVALUATION, 4, weights=17)
    run.weights_file(4).unlink()
    assert run.missing_evaluations([KEY]) == [], "a clone has no weights"


@pytest.mark.parametrize(("owner", "step"), [(OTHER, 4), (MINE, 3)], ids=["cell", "step"])
def test_weights_of_something_else_are_not_this_cells(run: Run, owner: Cell, step: int) -> None:
    put_weights(run, owner, step)
    assert not run.has_weights(4)
    assert run.weights_steps() == []
    with pytest.raises(
        CellFailedError, match=rf"weights of cell {owner.id} at step {step}; allowed: {MINE.id} at step 4"
    ):
        load_weights(run, MINE, 4, ema=True, device="cpu")


def test_a_training_goes_on_from_its_own_state_only(run: Run, tmp_path: Path) -> None:
    options = Options("cpu", [4], Recording(loss_images=8), checkpoint_seconds=1e9)
    whole = Run(tmp_path / "whole" / MINE.id)
    for each in (whole, run):
        each.folder.mkdir(parents=True)
    train(MINE, load(Data()), whole, options, Hooks())
    for owner, name, step in ((OTHER, 2, 2), (MINE, 3, 1)):
        state = TrainState.initial(owner, "cpu")
        state.step = step
        state.save(run.state_file(name))
    put_weights(run, OTHER)
    train(MINE, load(Data()), run, options, Hooks())
    assert run.weights_file(4).read_bytes() == whole.weights_file(4).read_bytes()


def test_samples_of_other_weights_are_made_again(run: Run) -> None:
    def images() -> Any:
        network = load_weights(run, MINE, 4, ema=True, device="cpu")
        generator = Generator(network, MINE, EVALUATION, "cpu", weights=run.weights_checksum(4))
        made = generate(generator, run, KEY, batch=20, hooks=Hooks())
        assert made is not None
        return made[0][np.arange(40)]

    put_weights(run)
    first, part = images(), run.samples_part(KEY, 0)
    stamp = part.stat().st_mtime_ns
    assert np.array_equal(images(), first)
    assert part.stat().st_mtime_ns == stamp, "its own are used again"
    checkpoint.save(run.features_part(KEY, 0), {"pool": torch.zeros(1)}, {})
    put_weights(run, add=0.1)
    assert not np.array_equal(images(), first)
    assert not run.features_part(KEY, 0).exists()


@pytest.mark.parametrize("text", ["[]", "{}", '{"name": "x"}', '{"name": "x", "cell": {}}'])
def test_a_cell_file_that_is_none_is_refused_and_written_anew(run: Run, text: str) -> None:
    run.folder.mkdir()
    run.cell_file.write_text(text)
    with pytest.raises((InputError, ValueError)):
        run.cell()
    run.write_cell("mine", MINE)
    assert run.cell() == ("mine", MINE)


def test_the_cell_file_of_another_cell_is_refused_and_written_anew(run: Run) -> None:
    Run(run.folder).write_cell("other", OTHER)
    with pytest.raises(InputError, match=f"cell {OTHER.id}; allowed in this folder: {MINE.id}"):
        run.cell()
    run.write_cell("mine", MINE)
    assert json.loads(run.cell_file.read_text())["id"] == MINE.id
