"""TF32 holds inside the steps of a training that asks for it, and nowhere else; what a device cannot do is said."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.data.sources import load
from harness.errors import CellFailedError, InputError
from harness.launch import checks
from harness.model.dit import DiT
from harness.runs.cellruns import cell_runs
from harness.runs.state import Run
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.resources import Recording, Resources
from harness.spec.training import Precision
from harness.training import precision
from harness.training.conditions import be_deterministic
from harness.training.gemm import gemm_tflops
from harness.training.hooks import Hooks
from harness.training.loop import Options, train
from sweeps.grid import load_sweep
from tests.small_study import Bench, sweep_text


def switches() -> tuple[bool, bool]:
    """Whether products and convolutions are rounded to TF32 on a GPU."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def torch_as_before() -> Iterator[None]:
    before, exact = switches(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(exact)


@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16"])
def test_each_precision_has_its_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Precision) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as an environment may have it
    be_deterministic(compiled=False)
    assert switches() == (False, False)
    training, measuring, backward = set[tuple[bool, ...]](), set[tuple[bool, ...]](), set[tuple[bool, ...]]()
    forward = DiT.forward

    def seen(self: DiT, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        (training if torch.is_grad_enabled() else measuring).add((*switches(), torch.is_autocast_enabled("cpu")))
        output = forward(self, x, t, y)
        if output.requires_grad:
            output.register_hook(lambda _: backward.add(switches()))
        return output

    monkeypatch.setattr(DiT, "forward", seen)
    recipe = {"steps": 1, "batch_size": 8, "precision": name}
    cell = Cell.model_validate({"model": {"depth": 1, "width": 8, "patch_size": 4}, "training": recipe})
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    train(cell, load(Data()), run, Options("cpu", [1], Recording(loss_images=8), None), Hooks())
    rounded = name == "tf32"
    assert training == {(rounded, rounded, name == "bf16")}
    assert backward == {(rounded, rounded)}
    assert measuring == {(False, False, False)}, "losses are measured in fp32"
    assert switches() == (False, False)


def test_mfu_is_against_a_product_of_the_same_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, product = [], torch.Tensor.__matmul__

    def noted(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a.dtype, switches()[0]))
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    for name, wanted in (("tf32", (torch.float32, True)), ("fp32", (torch.float32, False))):
        seen.clear()
        assert gemm_tflops("cpu", name) > 0  # type: ignore[arg-type]
        assert set(seen) == {wanted}


def test_a_device_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    precision.require("fp32", "cpu")
    precision.require("bf16", "cpu")
    with pytest.raises(CellFailedError, match=r'^training.precision "tf32": the CPU, .*; allowed here: fp32, bf16$'):
        precision.require("tf32", "cpu")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    precision.require("fp32", "cuda")
    said = r'"(tf32|bf16)": Tesla T4 has compute capability 7.5, and it takes 8.0; allowed here: fp32$'
    for name in ("tf32", "bf16"):
        with pytest.raises(CellFailedError, match=said):
            precision.require(name, "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for name in ("tf32", "bf16"):
        precision.require(name, "cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("resources", "gpus", "refused"),
    [
        ({}, [], True),
        ({"device": "cpu"}, ["0"], True),
        ({}, ["0"], False),
        ({"executor": "slurm"}, [], True),
        ({"executor": "slurm", "device": "cuda"}, [], False),
    ],
)
def test_a_launch_says_it_where_it_is_known(
    tmp_path: Path, resources: dict[str, Any], gpus: list[str], refused: bool
) -> None:
    bench = Bench(tmp_path / "b", sweep_text().replace("[training]", '[training]\nprecision = "tf32"'))
    sweep = load_sweep(bench.sweep)
    object.__setattr__(sweep, "resources", Resources.model_validate(resources))
    study = Study(tmp_path / "results", "small")
    check = list(islice(checks.checks(sweep, study, cell_runs(sweep, study), gpus), 2))[1]
    if not refused:
        check()
        return
    with pytest.raises(InputError, match=r'small.toml: d1-.*: training.precision "tf32" needs a GPU.*: fp32, bf16$'):
        check()
