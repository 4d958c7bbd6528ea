"""A sweep without an evaluation: it trains, records its losses, and needs no extractor."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from harness.launch.executor import Schedulers
from harness.launch.launch import launch
from harness.launch.remeasure import with_evaluations
from harness.runs.cellruns import cell_runs, losses_key
from harness.runs.collect import collect
from harness.runs.state import State
from harness.runs.study import Study
from harness.spec.evaluation import Evaluation
from sweeps.grid import load_sweep
from tests.launch.test_own_executor import STUB, SWEEP, Quiet, in_process

__all__ = ["in_process"]

LOSSES = SWEEP.replace('[[evaluation]]\nsamples = 30\nsampler = "ddim"\nsampling_steps = 2\n', "")


@pytest.mark.usefixtures("in_process")
def test_it_trains_and_records_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "losses.toml").write_text(LOSSES)
    (tmp_path / "scored.toml").write_text(SWEEP)
    sweep, study = load_sweep(tmp_path / "losses.toml"), Study(tmp_path / "results", "losses", Schedulers("losses"))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "harness.evaluation.classifier", None)  # the extractor's file
        items = launch(sweep, study, Quiet())
    assert [item.now.state for item in items] == [State.DONE] * 2
    for item in items:
        assert item.owed == [losses_key(item.cell)] == ["losses@2"]
        assert item.run.weights_steps() == [2]
        assert not item.run.samples_keys()
        assert not item.run.evaluation_files()
        assert not item.run.state_files()
    collect(study, items)
    with study.table("results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["step"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "1"), ("1", "2")]
    assert all(float(row["loss_heldout"]) > float(row["loss_optimal_heldout"]) > 0 for row in rows)
    assert {row[column] for row in rows for column in ("evaluation", "protocol", "extractor", "frechet")} == {""}
    assert all(float(row["gmacs"]) > 0 and int(row["params"]) > 0 for row in rows)
    assert [item.run.attempt_numbers() for item in launch(sweep, study, Quiet())] == [[1], [1]]
    assert with_evaluations(sweep, None, {}).evaluations == (Evaluation(),)  # what `evaluate` starts from

    # another study scores the same cells, and trains none
    before = [item.run.weights_file(2).stat().st_mtime_ns for item in items]
    scored = launch(load_sweep(tmp_path / "scored.toml"), Study(study.root, "scored", Schedulers("scored")), Quiet())
    assert [item.now.state for item in scored] == [State.DONE] * 2
    assert [item.run.weights_file(2).stat().st_mtime_ns for item in items] == before

    for item in items:  # the record of an evaluation tells the losses, too, as in a clone without weights
        item.run.evaluation_file("losses@2").unlink()
        item.run.weights_file(2).unlink()
    assert [item.now.state for item in cell_runs(sweep, study)] == [State.DONE] * 2
    collect(study, cell_runs(sweep, study))
    with study.table("results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["extractor"] != "") for row in rows] == [("1", False), ("2", True)] * 2


def test_a_record_of_other_weights_or_of_another_cell_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "losses.toml"
    path.write_text(LOSSES.replace('extend = ["stub.py"]\n', "").replace('executor = "stub"\n', ""))
    item = cell_runs(load_sweep(path), Study(tmp_path / "results", "losses"))[0]
    assert item.now.state is State.MISSING
    record = item.run.evaluation_file("losses@2")
    record.parent.mkdir(parents=True)
    good = {"cell": item.cell.id, "step": 2, "metrics": {}}
    for odd in ({"cell": "0" * 12}, {"step": 1}, {"metrics": None}):
        record.write_text(json.dumps(good | odd))
        assert item.refresh().state is State.MISSING
    record.write_text(json.dumps(good))
    assert item.refresh().state is State.DONE
