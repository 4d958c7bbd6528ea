"""A compiled network learns what an eager one learns, and a resumed one ends with the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.data.sources import load
from harness.errors import CellFailedError
from harness.launch import compiling
from harness.launch.payload import Payload
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Recording, Resources
from harness.training import checkpoint
from harness.training.hooks import Hooks, Report, StoppedError
from harness.training.loop import Options, train

needs_compiler = pytest.mark.skipif(bool(compiling.missing_compiler("cpu")), reason="no C++ compiler here")


def cell(steps: int = 4, **model: object) -> Cell:
    recipe = {"steps": steps, "batch_size": 8, "learning_rate": 1e-3, "ema_window": 0.2}
    shape = {"depth": 2, "width": 16, "patch_size": 4, **model}
    return Cell.model_validate({"model": shape, "training": recipe})


def weights(
    folder: Path, *, compiled: bool, recompute: bool = False, stop_at: int | None = None
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
def test_it_agrees_with_the_eager_one_and_with_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    eager = weights(tmp_path / "eager", compiled=False)
    whole = weights(tmp_path / "whole", compiled=True)
    broken = weights(tmp_path / "broken", compiled=True, stop_at=2)
    again = weights(tmp_path / "again", compiled=True, recompute=True)
    assert list((tmp_path / "cache").iterdir()), "nothing was compiled"
    assert whole.keys() == eager.keys(), "names of weights stay"
    for name, value in whole.items():
        assert torch.equal(value, broken[name]), name
        assert torch.equal(value, again[name]), f"{name} of a network that keeps no activations"
        torch.testing.assert_close(value, eager[name], rtol=1e-4, atol=1e-5)


def job(folder: Path, asked: str, steps: int = 100, **model: object) -> Payload:
    resources = Resources.model_validate({"compile": asked})
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
    compiling.record_compiled(between)
    assert compiling.choose(between, "cpu").compiled, "its code is there already"
    assert compiling.choose(job(tmp_path, "on", 1), "cpu").compiled
    assert not compiling.choose(job(tmp_path, "off", 1_000_000), "cpu").compiled


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
