"""A launch trains the extractors that the sweep asks for, before its cells, and scores by them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from harness.errors import InputError
from harness.evaluation.trained import Wanted
from harness.launch.extractors import require_extractors, train_all, train_extractors, wanted_extractors
from harness.processes import exclusive
from harness.runs.study import Shared, Study
from harness.spec.evaluation import TrainedExtractor
from harness.training.hooks import Hooks, StoppedError
from sweeps.grid import Sweep, load_sweep
from tests.small_study import Bench, sweep_text

OWN = 'extractors = ["digits-cnn", {kind = "trained", name = "own", steps = 15, batch_size = 16}]'


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), sweep_text("depth = [1]", steps=4, evaluation=OWN))


@pytest.fixture
def sweep(bench: Bench) -> Sweep:
    return load_sweep(bench.sweep)


def test_a_launch_trains_it_first_and_scores_by_it(bench: Bench, sweep: Sweep) -> None:
    done = bench.launch()
    assert done.returncode == 0, done.stderr
    first, _, later = done.stdout.partition("d1-w16-p4: started")
    assert "extractor own@" in first
    assert "held-out accuracy" in first
    assert "FD-own" in later
    names = [row["extractor"].partition("@")[0] for row in bench.rows()]
    assert names == ["digits-cnn", "own"]
    (one,) = wanted_extractors(sweep)
    card = json.loads((one.folder(Shared(bench.study.parent)) / "card.json").read_text())
    assert bench.rows()[1]["extractor"] == f"own@{card['content_hash'][:8]}"
    records = [json.loads(path.read_text()) for path in bench.study.parent.glob("runs/*/evaluations/*.json")]
    said = {record["metrics"]["extractor"][:3]: record["metrics"]["warnings"] for record in records}
    fails = [check["what"] for check in card["checks"] if not check["rises"]]
    assert [line for line in said["own"] if "does not rise under" in line] == [
        f"FD-own does not rise under {what}" for what in fails
    ]
    again = bench.run("train-extractor", str(bench.sweep))
    assert again.returncode == 0
    assert "trained already; extractor own@" in again.stdout
    assert "extractor own@" not in bench.launch().stdout  # nothing is owed


def test_slurm_and_sweeps_without_one(tmp_path: Path, sweep: Sweep) -> None:
    study = Study(tmp_path, "small")
    there = sweep.with_resources({"executor": "slurm"})
    with pytest.raises(InputError, match=r"extractor own: not trained yet; first.*dit-harness train-extractor"):
        require_extractors(there, study, wanted_extractors(there))
    require_extractors(sweep, study, wanted_extractors(sweep))
    (tmp_path / "plain.toml").write_text(sweep_text())
    with pytest.raises(InputError, match="no extractor is to be trained"):
        train_all(load_sweep(tmp_path / "plain.toml"), study, Hooks(), print)


def test_stopped_while_it_trains_or_waits(tmp_path: Path, sweep: Sweep) -> None:
    study, (one,) = Study(tmp_path, "small"), wanted_extractors(sweep)
    with pytest.raises(StoppedError, match="from the beginning"):
        train_extractors(sweep, study, [one], Hooks(should_stop=lambda: True), print)
    assert not one.is_trained(Shared(tmp_path))
    told: list[str] = []
    with exclusive(one.folder(Shared(tmp_path)), "a test"), pytest.raises(StoppedError):
        train_extractors(sweep, study, [one], Hooks(should_stop=lambda: len(told) > 1), told.append)
    assert told[0] == "training extractor own on digits, 15 steps"
    assert told[1].startswith("waits for another")


def test_of_two_at_once_one_trains(tmp_path: Path, sweep: Sweep) -> None:
    study, (one,) = Study(tmp_path, "small"), wanted_extractors(sweep)
    shared, first, done = Shared(tmp_path), list[str](), list[str]()
    with exclusive(one.folder(shared), "a test"):
        second = threading.Thread(target=train_extractors, args=(sweep, study, [one], Hooks(), done.append))
        second.start()
        while len(done) < 2:
            second.join(0.02)
    second.join(60)
    assert not second.is_alive()
    assert done[1].startswith("waits for another")
    train_extractors(sweep, study, [one], Hooks(report=lambda _: pytest.fail("trained again")), first.append)
    assert "trained already" in first[0]


def test_one_of_several_recipes_each(bench: Bench, tmp_path: Path) -> None:
    text = bench.sweep.read_text().replace('"digits-cnn"', '{kind = "trained", name = "other"}')
    (tmp_path / "two.toml").write_text(text.replace("depth = [1]", "depth = [1]\nsubset = [0.5, 0.25]"))
    found = wanted_extractors(load_sweep(tmp_path / "two.toml"))
    assert {one.choice.name for one in found} == {"other", "own"}
    assert len(found) == 2
    assert isinstance(found[0], Wanted)
    assert isinstance(found[0].choice, TrainedExtractor)
