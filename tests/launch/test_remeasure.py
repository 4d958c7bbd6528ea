"""`dit-harness evaluate`: kept weights measured otherwise, beside a training too, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from harness.cli.tables import results_table, status_row
from harness.data.sources import load
from harness.errors import InputError
from harness.evaluation.generate import Generator, generate, load_weights
from harness.evaluation.metrics import score
from harness.files import read_json
from harness.launch.remeasure import at_work, cost, select, values, with_evaluations
from harness.processes import process_identity
from harness.runs.cellruns import cell_runs
from harness.runs.layout import EVALUATING
from harness.runs.state import Run
from harness.runs.study import Study
from harness.spec.evaluation import Evaluation
from harness.training.hooks import Hooks
from sweeps.grid import Sweep, load_sweep
from tests.small_study import Bench, sweep_text, wait_for

PROTOCOL = """
[protocol.mine]
samples = 60
sampling_steps = 2
"""


def one_cell(steps: int = 40, batch: int = 8) -> str:
    """The sweep of one cell, one evaluation at two steps and a protocol."""
    return sweep_text(
        "depth = [1]", more=PROTOCOL, steps=steps, batch_size=batch, evaluation="at = [20]", sampling_batch=20
    )


class OneCell(Bench):
    """As `Bench`, with one cell whose weights are kept at step 20 too."""

    def __init__(self, folder: Path, steps: int = 40, batch: int = 8) -> None:
        super().__init__(folder, one_cell(steps, batch))

    @property
    def cell(self) -> Run:
        """Its run."""
        return Run(next((self.study.parent / "runs").glob("[!.]*")))

    def evaluate(self, *options: str) -> Any:
        return self.run("evaluate", "small", *options)

    def evaluating(self) -> list[int]:
        return self.cell.on(EVALUATING).attempt_numbers()


def metrics(run: Run, evaluation: Evaluation, step: int) -> Any:
    record = read_json(run.evaluation_file(f"{evaluation.id}@{step}"))
    assert record is not None
    return record["metrics"]


def undisturbed(run: Run, evaluation: Evaluation, step: int, folder: Path) -> Any:
    """The metrics of sampling and scoring the kept weights at one go, in this process."""
    _, cell = run.cell()
    dit = load_weights(run, cell, step, ema=True, device="cpu")
    made = generate(Generator(dit, cell, evaluation, "cpu"), Run(folder / "aside"), "k", batch=20, hooks=Hooks())
    assert made is not None
    return json.loads(json.dumps(score(made[0], evaluation, cell.data, load(cell.data))))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> OneCell:
    """A finished study."""
    bench = OneCell(tmp_path_factory.mktemp("trained"))
    done = bench.launch()
    assert done.returncode == 0, done.stderr
    return bench


@pytest.fixture
def study(trained: OneCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Sweep, Study]:
    """A copy of the finished study, to be read in this process."""
    shutil.copytree(trained.folder, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return load_sweep(Path("small.toml")), Study(Path("results"), "small")


def test_a_grid_of_samplers_is_measured_once_and_nothing_is_trained(trained: OneCell) -> None:
    run = trained.cell
    before = {path: path.read_bytes() for path in (run.train_log, run.weights_file(20), run.weights_file(40))}
    options = ("--sampling-steps", "2,3", "--samples", "60", "--at", "20,40", "--labels", "training")
    both = [trained.start("evaluate", "small", *options, "--seed", seeds) for seeds in ("0,1", "1,2")]
    for process, seeds in zip(both, ("0, 1", "1, 2"), strict=True):
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
        assert "8 evaluations of 1 cell, 0 of them done already" in out
        assert f"sampling seeds {seeds}; after 20,40 steps" in " ".join(out.split())
        assert "±" in out
        assert "compare values of one protocol only" in " ".join(out.split())
        assert "d1-w16-p4: done (1/1 done)" in out
    assert (
        run.on(EVALUATING).log.read_text().count(": FD-digits-cnn ") == 12
    )  # the four that both ask for are made once
    assert trained.evaluating() == [1, 2]
    assert run.attempt_numbers() == [1]
    assert {path: path.read_bytes() for path in before} == before
    rows = [row for row in trained.rows() if row["samples"] == "60"]
    assert {(row["step"], row["sampling_steps"], row["sampling_seed"]) for row in rows} == {
        (step, sampling, seed) for step in ("20", "40") for sampling in ("2", "3") for seed in ("0", "1", "2")
    }
    assert [row["samples"] for row in trained.rows()].index("330") == 0  # the sweep's own comes first
    assert {row["labels"] for row in rows} == {"training"}
    assert {row["labels"] for row in trained.rows() if row["samples"] == "330"} == {"uniform"}
    assert len({row["protocol"] for row in rows}) == 2
    assert len({row["frechet"] for row in rows}) == 12
    assert len([row for row in trained.rows() if row["samples"] == "330"]) == 2
    again = trained.evaluate(*options, "--seed", "0,1,2")
    assert "12 evaluations of 1 cell, all of them done already" in again.stdout
    assert trained.evaluating() == [1, 2]


def test_it_runs_beside_a_training(tmp_path: Path) -> None:
    bench = OneCell(tmp_path / "b", steps=300, batch=256)
    training = bench.start("launch", str(bench.sweep))
    try:
        wait_for(lambda: list(bench.study.parent.glob("runs/*/checkpoints/weights-00000020.*")))
        job = wait_for(bench.processes)[0]["pid"]
        os.kill(job, signal.SIGSTOP)  # so that it cannot end first
        assert not bench.cell.weights_file(300).exists()
        done = bench.evaluate("--at", "20,300", "--sampling-steps", "3")
        assert done.returncode == 0, done.stderr
        assert "left out: d1-w16-p4: no weights at step 300; kept: 20" in done.stderr
        assert training.poll() is None
        os.kill(job, signal.SIGCONT)
        out, err = training.communicate(timeout=240)
        assert training.returncode == 0, out + err
    finally:
        training.kill()
    run = bench.cell
    assert (run.attempt_numbers(), bench.evaluating()) == ([1], [1])
    asked = Evaluation(samples=330, sampler="ddim", sampling_steps=3, extractor="digits-cnn")
    found = metrics(run, asked, 20)
    assert found | undisturbed(run, asked, 20, tmp_path) == found
    assert metrics(run, asked.model_copy(update={"sampling_steps": 4}), 300)["frechet"] > 0


def test_killed_sampling_goes_on_with_the_parts_it_had(trained: OneCell) -> None:
    asked = Evaluation(samples=120, sampler="ddim", sampling_steps=500, extractor="digits-cnn", seed=7)
    run, key = trained.cell, f"{asked.id}@40"
    process = trained.start("evaluate", "small", "--samples", "120", "--sampling-steps", "500", "--seed", "7")
    wait_for(lambda: run.samples_part(key, 20).exists())
    job = read_json(run.on(EVALUATING).attempts_folder / f"{trained.evaluating()[-1]:03d}.started.json")
    assert job is not None
    os.kill(job["process"]["pid"], signal.SIGKILL)
    parts = {path: path.stat().st_mtime_ns for path in run.samples_folder(key).glob("part-*")}
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert "starting it again" in out
    assert 2 <= len(parts) < 6
    assert {path: path.stat().st_mtime_ns for path in parts} == parts  # not made again
    found = metrics(run, asked, 40)
    assert found | undisturbed(run, asked, 40, trained.folder) == found


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("16,,32", "sampling_steps", "--sampling-steps: '16,,32'; allowed: whole numbers with commas between"),
        ("abc", "sampling_steps", "--sampling-steps: 'abc'"),
        ("1.5", "samples", "--samples: '1.5'; allowed: whole numbers"),
        ("", "guidance", "--guidance: ''; allowed: numbers"),
        ("ddpm,", "sampler", "--sampler: 'ddpm,'; allowed: names"),
        ("x", "at", "--at: 'x'; allowed: whole numbers"),
    ],
)
def test_malformed_lists(text: str, field: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        values(text, field)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        ("papr", {}, "--protocol: unknown protocol 'papr'; allowed: paper, paper-guided, sit, fast, small, mine"),
        ("paper", {}, "command line, evaluation.extractor: inception-v3-compat does not read digits"),
        (None, {"sampling_steps": "16,2000"}, "command line, evaluation.sampling_steps: 2000 exceeds"),
        (None, {"samples": "1"}, "command line, evaluation.samples: should be greater"),
        (None, {"seed": "0,0"}, "command line, evaluation.seed: a value stands twice"),
        (None, {"labels": "even"}, "command line, evaluation.labels: should be 'uniform', 'balanced'"),
        (None, {"guidance": "nan"}, "command line, evaluation.guidance: should be a finite number"),
        (
            None,
            {"extractor": "vgg"},
            "command line, evaluation.extractor: unknown extractor 'vgg'; allowed: digits-cnn",
        ),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, protocol: str | None, options: dict[str, str], message: str) -> None:
    path = tmp_path / "small.toml"
    path.write_text(one_cell())
    with pytest.raises(InputError) as caught:
        with_evaluations(load_sweep(path), protocol, options)
    assert str(caught.value).startswith(message)


def test_without_classes_there_is_nothing_to_guide(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(one_cell() + "[data]\nlabels = false\n")
    with pytest.raises(InputError, match=r"command line, evaluation.guidance: 1.5 needs labels"):
        with_evaluations(load_sweep(path), None, {"guidance": "1,1.5"})


def test_what_is_asked_starts_from_the_sweep_or_a_protocol(study: tuple[Sweep, Study]) -> None:
    sweep, _ = study
    asked = with_evaluations(sweep, None, {"sampler": "ddpm,ddim", "guidance": "1,4", "ema": False}).evaluations
    assert [(e.samples, e.sampler, e.guidance, e.ema, e.sampling_steps, e.at) for e in asked] == [
        (330, sampler, guidance, False, 4, ()) for sampler in ("ddpm", "ddim") for guidance in (1.0, 4.0)
    ]
    mine = with_evaluations(sweep, "mine", {"seed": "3"}).evaluations
    assert mine == (Evaluation(samples=60, sampling_steps=2, seed=3),)


def test_only_kept_weights_are_measured(study: tuple[Sweep, Study]) -> None:
    sweep, folder = study
    everything = cell_runs(sweep, folder)
    asked = with_evaluations(sweep, None, {"seed": "1,2"})
    found = select(asked, everything, [40, 30, 20])
    assert found.skipped == ["d1-w16-p4: no weights at step 30; kept: 20, 40"]
    assert [item.steps for item in found.items] == [(20, 40)]
    told = cost(found.items, everything)
    assert (told.total, told.done, told.measured) == (4, 0, True)
    assert told.sampling_gmacs == pytest.approx(4 * 330 * 4 * 2.227e-05, rel=1e-2)
    with pytest.raises(InputError, match=r"nothing can be measured: d1-w16-p4: no weights at step 7; kept: 20, 40"):
        select(asked, everything, [7])
    # records of a clone without weights count, and nothing else can be had there
    shutil.rmtree(everything[0].run.folder / "checkpoints")
    (there,) = select(with_evaluations(sweep, None, {}), everything, [20]).items
    assert cost([there], everything).done == 1
    with pytest.raises(InputError, match="kept: none"):
        select(asked, everything, None)


def test_status_and_cancel_know_what_is_being_measured(study: tuple[Sweep, Study]) -> None:
    (item,) = cell_runs(*study)
    assert (status_row(item)["message"], at_work([item])) == ("", [])
    evaluating = item.run.on(EVALUATING)
    assert evaluating.claim(9, {"process": process_identity()})
    evaluating.write_progress({"stage": "sample", "done": 3, "total": 8})
    row = status_row(item)
    assert (row["state"], row["message"]) == ("done", "evaluating: sample 3/8")
    assert [found.run.track for found in at_work([item])] == [EVALUATING]


def printed(rows: list[dict[str, Any]]) -> str:
    """The table's text, every run of white space one blank: captions are wrapped."""
    console = Console(width=250, file=io.StringIO(), record=True)
    console.print(results_table("t", rows))
    return " ".join(console.export_text().split())


@pytest.fixture
def make_row() -> Callable[..., dict[str, Any]]:
    base = {
        "cell": "abc", "name": "d1", "step": 10, "data": "digits", "vae": None, "objective": "ddpm-hybrid",
        "samples": 60, "sampler": "ddim", "sampling_passes": 4,
        "sampling_steps": 4, "guidance": 1.0, "guidance_channels": None, "labels": "uniform", "ema": True,
        "extractor": "digits-cnn@01", "reference": "digits/train(1500)@02", "protocol": "p1", "sampling_seed": 0,
        "params_m": 1.0, "gmacs": 1.0, "frechet": 10.0, "kid": None, "precision": 0.5, "recall": 0.5,
        "loss_train": 1.0, "loss_heldout": 1.0, "train_seconds": 1.0, "sample_seconds": 1.0, "seed": 0,
    }  # fmt: skip
    return lambda **changes: {**base, **changes}


def test_seeds_are_averaged(make_row: Callable[..., dict[str, Any]]) -> None:
    text = printed([make_row(sampling_seed=i, frechet=value) for i, value in enumerate((10.0, 12.0, 14.0))])
    assert "12 ± 2" in text
    assert "mean ± standard deviation over up to 3 sampling seeds" in text
    assert "warning" not in text
    assert "60 samples, against digits/train(1500)@02, features of digits-cnn@01" in text


def test_values_that_do_not_compare_are_warned_about(make_row: Callable[..., dict[str, Any]]) -> None:
    text = printed([make_row(), make_row(samples=6000, protocol="p2", reference="adm@03", frechet=8.0)])
    assert "warning: measured in different ways (N and reference); compare values of one protocol only" in text
    for part in ("p1", "p2", "6000", "adm@03"):
        assert part in text
    assert "samples," not in text


def test_the_name_fid_is_the_published_weights(make_row: Callable[..., dict[str, Any]]) -> None:
    assert " FID " in printed([make_row(extractor="inception-v3-compat@6726825d")])
    assert "FD-inception-v3-compat" in printed([make_row(extractor="inception-v3-compat@00000000")])


@pytest.mark.parametrize("rule", ["balanced", "training"])
def test_samples_have_the_classes_asked_for(study: tuple[Sweep, Study], tmp_path: Path, rule: Any) -> None:
    (item,) = cell_runs(*study)
    asked = Evaluation(samples=50, sampler="ddim", sampling_steps=1, labels=rule)
    dit = load_weights(item.run, item.cell, 40, ema=True, device="cpu")
    counts = np.array([0, 0, 10, 0, 0, 0, 0, 30, 0, 0])
    generator = Generator(dit, item.cell, asked, "cpu", class_counts=counts)
    made = generate(generator, Run(tmp_path / "r"), "k", batch=20, hooks=Hooks())
    assert made is not None
    labels = made.labels
    if rule == "balanced":
        assert labels.tolist() == [i % 10 for i in range(50)]
    else:
        assert set(labels.tolist()) == {2, 7}
        assert 25 < (labels == 7).sum() < 48
