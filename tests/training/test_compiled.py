"""A compiled network learns what an eager one learns, and a resumed one ends with the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from harness.data.sources import load
from harness.errors import CellFailedError
from harness.launch import compiling
from harness.launch.conditions import conditions_of
from harness.launch.payload import Payload
from harness.processes import process_identity
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Compilation, Recording, Resources
from harness.training import checkpoint
from harness.training.conditions import numeric_conditions
from harness.training.hooks import Hooks, Report, StoppedError
from harness.training.loop import Options, train

needs_compiler = pytest.mark.skipif(bool(compiling.missing_compiler("cpu")), reason="no C++ compiler here")


def cell(steps: int = 4, **model: object) -> Cell:
    recipe = {"steps": steps, "batch_size": 8, "learning_rate": 1e-3, "ema_window": 0.2}
    shape = {"depth": 2, "width": 16, "patch_size": 4, **model}
    return Cell.model_validate({"model": shape, "training": recipe})


def weights(
    folder: Path, compiled: Compilation, *, recompute: bool = False, stop_at: int | None = None
) -> dict[str, torch.Tensor]:
    run, seen, c = Run(folder), {"step": 0}, cell()
    run.folder.mkdir()

    def report(value: Report) -> None:
        seen["step"] = value["done"]

    options = Options("cpu", [4], Recording(loss_images=8), 1e9, look_seconds=0, compiled=compiled, recompute=recompute)
    if stop_at is not None:
        hooks = Hooks(should_stop=lambda: seen["step"] + 1 >= stop_at, report=report)
        with pytest.raises(StoppedError):
            train(c, load(c.data), run, options, hooks)
    train(c, load(c.data), run, options, Hooks())
    return checkpoint.load(run.weights_file(4)).tensors


@needs_compiler
@pytest.mark.parametrize("way", ["on", "whole"])
def test_it_agrees_with_the_eager_one_and_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Compilation
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    eager = weights(tmp_path / "eager", "off")
    undisturbed = weights(tmp_path / "undisturbed", way)
    broken = weights(tmp_path / "broken", way, stop_at=2)
    assert list((tmp_path / "cache").iterdir()), "nothing was compiled"
    assert undisturbed.keys() == eager.keys(), "names of weights stay"
    for name, value in undisturbed.items():
        assert torch.equal(value, broken[name]), name
        torch.testing.assert_close(value, eager[name], rtol=1e-4, atol=1e-5)
    again = weights(tmp_path / "again", way, recompute=True)
    for name, value in undisturbed.items():
        torch.testing.assert_close(value, again[name], rtol=1e-4, atol=1e-5)
    if way == "on":
        assert all(torch.equal(value, again[name]) for name, value in undisturbed.items()), "activations computed again"


def job(
    folder: Path, asked: str, steps: int = 100, more: Mapping[str, object] | None = None, **model: object
) -> Payload:
    resources = Resources.model_validate({"compile": asked, **(more or {})})
    return Payload(str(folder / "run"), 1, "t", "s", cell(steps, **model), (), Recording(), resources, str(folder))


@needs_compiler
def test_auto_compiles_what_is_long_enough(tmp_path: Path) -> None:
    assert not compiling.choose(job(tmp_path, "auto", 100), "cpu").compiled
    long = compiling.choose(job(tmp_path, "auto", 1_000_000), "cpu")
    assert long.compiled
    assert "would save about" in long.why
    assert not compiling.choose(job(tmp_path, "auto", 1_000_000, width=384, heads=6), "cpu").compiled
    between = job(tmp_path, "auto", 10_000)
    assert not compiling.choose(between, "cpu").compiled
    compiling.record_compiled(compiling.training_code(between, "whole"))
    assert compiling.choose(between, "cpu").compiled, "its code is there already"
    assert compiling.choose(job(tmp_path, "on", 1), "cpu").compiled
    assert not compiling.choose(job(tmp_path, "off", 1_000_000), "cpu").compiled


@needs_compiler
@pytest.mark.parametrize(
    ("more", "way"), [({}, "whole"), ({"recompute": True}, "on"), ({"executor": "slurm", "nodes": 2}, "on")]
)
def test_one_rank_on_a_cpu_compiles_one_graph(tmp_path: Path, more: dict[str, object], way: str) -> None:
    assert compiling.choose(job(tmp_path, "on", more=more), "cpu").how == way


@needs_compiler
@pytest.mark.parametrize(
    ("first", "asked", "recompute", "noted"),
    [
        ("off", "auto", True, ""),
        ("on", "on", True, ""),
        ("whole", "on", False, ""),
        ("whole", "off", False, "compile is whole, as in the first attempt, though off was asked for"),
        ("off", "on", False, "compile is off, as in the first attempt, though on was asked for"),
        ("whole", "auto", True, "recompute was False in the first attempt and is True now; results agree within"),
    ],
)
def test_later_attempts_keep_the_choice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, first: str, asked: str, recompute: bool, noted: str
) -> None:
    given = job(tmp_path, asked, more={"recompute": recompute})
    given.run.folder.mkdir()
    hold = given.run.claim(1, {"process": process_identity()})
    assert hold is not None
    before = {**numeric_conditions(1, 250, "cpu"), "ranks": 1, "micro_batch": None, "recompute": False}
    hold.record("started", {"conditions": {**before, "compile": first}})
    with caplog.at_level("INFO"):
        now = conditions_of(given, "cpu")
    assert (now["compile"], now["recompute"]) == (first, recompute)
    assert [noted in record.message for record in caplog.records] == ([True] if noted else [])


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    choice = compiling.choose(job(tmp_path, "auto", 1_000_000), "cpu")
    assert (choice.compiled, choice.why) == (False, "no C++ compiler (no-such-compiler) is here")
    with pytest.raises(CellFailedError, match=r'"on" \(allowed: auto, off\), and no C\+\+ compiler'):
        compiling.choose(job(tmp_path, "on"), "cpu")


def test_a_gpu_saves_less_time_where_it_is_quicker(tmp_path: Path) -> None:
    precise = [
        Cell.model_validate({"model": cell().model, "training": {"precision": name}})
        for name in ("fp32", "tf32", "bf16")
    ]
    saved = [compiling.saved_seconds(each, "cuda", 1) for each in precise]
    assert sorted(saved, reverse=True) == saved
    assert compiling.saved_in_sampling(job(tmp_path, "auto"), Evaluation(samples=400), "cuda") > 0
