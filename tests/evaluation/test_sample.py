"""The verb sample, on a cell with made-up weights and on the same weights imported."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.cli import main as cli
from harness.model.dit import DiT
from harness.runs.study import Study
from harness.spec.data import InputShape
from harness.spec.model import DiTSpec
from harness.training import checkpoint
from sweeps.grid import load_sweep
from tests.cells import dit_spec

CELL = "d1-w16-p4"

SWEEP = """
[grid]
depth = [1]
[model]
width = 16
heads = 2
patch_size = 4
[training]
steps = 7
[[evaluation]]
samples = 1500
sampler = "ddim"
sampling_steps = 3
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study of one cell; plain and averaged weights differ."""
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text(SWEEP)
    cell = next(load_sweep(Path("study.toml")).cells()).cell
    tensors: dict[str, torch.Tensor] = {}
    for part, seed in (("model", 1), ("ema", 2)):
        generator = torch.Generator().manual_seed(seed)
        state = DiT(dit_spec(cell), cell.data.shape).state_dict()
        tensors |= {f"{part}.{k}": 0.2 * torch.randn(v.shape, generator=generator) for k, v in state.items()}
    run = Study(Path("results"), "study").run(cell)
    checkpoint.save(run.weights_file(7), tensors, {"step": 7, "cell": cell.id})
    return tmp_path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dit-harness", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def picture(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> bytes:
    """What `sample` writes with these arguments."""
    Path("grid.png").unlink(missing_ok=True)
    assert command(monkeypatch, "sample", *arguments, "-o", "grid.png") == 0
    return Path("grid.png").read_bytes()


def test_the_same_seed_gives_the_same_picture(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("study.toml", CELL, "--class", "3", "--count", "7", "--guidance", "2")
    first = picture(monkeypatch, *asked)
    assert "7 images, class 3, DDIM 3 steps, guidance 2, seed 0: grid.png" in capsys.readouterr().out
    with Image.open("grid.png") as image:
        assert image.size == (4 * (3 * 9 + 1), 4 * (3 * 9 + 1))  # three rows of three, the last with one
        pixels = np.asarray(image)
    assert {0, 255} < set(np.unique(pixels).tolist())  # noise that a network without training blows up
    assert picture(monkeypatch, *asked) == first
    for other in (["--seed", "1"], ["--class", "4"], ["--guidance", "1"], ["--raw"], ["--sampling-steps", "4"]):
        assert picture(monkeypatch, *asked, *other) != first, other
    balanced = picture(monkeypatch, "study.toml", CELL, "--count", "20")
    assert balanced != picture(monkeypatch, "study.toml", CELL, "--count", "20", "--class", "0")


def test_imported_weights_give_the_same_picture(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, "export", "study.toml", CELL, "-o", "w.pt") == 0
    assert command(monkeypatch, "import", "w.pt", "--heads", "2", "-o", "w.safetensors") == 0
    asked = ("--class", "3", "--count", "4", "--guidance", "2", "--sampler", "ddpm", "--sampling-steps", "3")
    assert picture(monkeypatch, "w.safetensors", *asked) == picture(monkeypatch, "study.toml", CELL, *asked)


def write_odd_files() -> None:
    """Files that are no imported checkpoints, one of latents, and the weights of a cell without labels."""
    checkpoint.save(Path("odd.safetensors"), {"x": torch.zeros(2)}, {"step": 1})
    Path("torn.safetensors").write_bytes(b"torn")
    model, shape = DiTSpec(depth=1, width=16, patch_size=4), InputShape(4, 8, 10)
    Path("young.toml").write_text(SWEEP.replace("steps = 7", "steps = 99"))
    young = next(load_sweep(Path("young.toml")).cells()).cell
    file = Study(Path("results"), "young").run(young).weights_file(7)
    checkpoint.save(file, averaged(dit_spec(young), young.data.shape), {"step": 7, "cell": young.id})
    meta = {"model": model.model_dump(mode="json"), "input": shape._asdict()}
    checkpoint.save(Path("latents.safetensors"), averaged(model, shape), meta)
    Path("nolabels.toml").write_text(SWEEP + "[data]\nlabels = false\n")
    cell = next(load_sweep(Path("nolabels.toml")).cells()).cell
    file = Study(Path("results"), "nolabels").run(cell).weights_file(7)
    checkpoint.save(file, averaged(dit_spec(cell), cell.data.shape), {"step": 7, "cell": cell.id})


def averaged(model: DiTSpec, shape: InputShape) -> dict[str, torch.Tensor]:
    return {f"ema.{name}": value.clone() for name, value in DiT(model, shape).state_dict().items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study.toml", CELL, "--class", "10"], "--class: 10; allowed: 0 to 9"),
        (["study.toml", "d9"], "d9: no cell of this name in study; allowed: d1-w16-p4"),
        (["study.toml"], "CELL: is missing; allowed: d1-w16-p4"),
        (["study.toml", CELL, "--step", "5"], f"{CELL}: no weights of step 5; allowed: 7"),
        (["young.toml", CELL], "no weights of step 99; allowed: 7; the cell is at step 7 of 99, and --step 7 works"),
        (["study.toml", CELL, "--sampler", "ode"], "unknown sampler 'ode'"),
        (["study.toml", CELL, "--sampling-steps", "1001"], "sampling_steps: 1001 exceeds diffusion.timesteps"),
        (["study.toml", CELL, "--guidance", "inf"], "--guidance: inf; allowed: a finite number"),
        (["study.toml", CELL, "--vae", "x"], "--vae: a cell names its own autoencoder"),
        (["none.safetensors"], "none.safetensors: no such file"),
        (["none.safetensors", CELL], "CELL: is about the cell of a study"),
        (["odd.safetensors"], "odd.safetensors: does not say its model"),
        (["torn.safetensors"], "the file is damaged"),
        (["latents.safetensors"], "--vae: the model makes latents of 4 channels"),
        (["nolabels.toml", CELL, "--guidance", "2"], "--guidance: 2; allowed: 1, since the model has no classes"),
        (["nolabels.toml", CELL, "--class", "0"], "--class: 0; allowed: none: the model has no classes"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    lab: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_odd_files()
    assert command(monkeypatch, "sample", *arguments, "-o", "grid.png") == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("grid.png").exists()


def test_nothing_is_overwritten(lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (("study.toml", "allowed: a .png file"), ("mine.png", "exists already")):
        Path("mine.png").write_text("mine")
        assert command(monkeypatch, "sample", "study.toml", CELL, "-o", name) == 2
        assert message in capsys.readouterr().err
    assert Path("mine.png").read_text() == "mine"
