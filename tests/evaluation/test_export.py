"""The verbs export and import, on a cell that was trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline
from safetensors import safe_open

from harness.cli import main as cli
from harness.data.sources import load
from harness.evaluation.generate import Generator, generate, load_weights
from harness.evaluation.metrics import score
from harness.model.dit import DiT
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.training import checkpoint
from harness.training.hooks import Hooks
from sweeps.grid import load_sweep
from tests.cells import dit_spec
from tests.evaluation.samples import read_samples
from tests.records import write_record

ZERO = "d1-w16-p4-adaln-zero"

SWEEP = """
[grid]
block = ["adaln-zero", "adaln"]
[model]
depth = 1
width = 16
heads = 2
patch_size = 4
[training]
steps = 7
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of two cells with made-up weights."""
    monkeypatch.chdir(tmp_path)
    path = Path("study.toml")
    path.write_text(SWEEP)
    study = Study(Path("results"), "study")
    for _, cell in load_sweep(path).cells():
        tensors: dict[str, torch.Tensor] = {}
        for part, seed in (("model", 1), ("ema", 2)):
            generator = torch.Generator().manual_seed(seed)
            state = DiT(dit_spec(cell), cell.data.shape).state_dict()
            tensors |= {f"{part}.{key}": torch.randn(value.shape, generator=generator) for key, value in state.items()}
        checkpoint.save(study.run(cell).weights_file(7), tensors, {"step": 7, "cell": cell.id})
    return path


def run(*arguments: object) -> int:
    """Exit code of the command."""
    sys.argv = ["dit-harness", *map(str, arguments)]
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def cell_of(path: Path) -> tuple[str, Cell, Any]:
    name, cell = next(load_sweep(path).cells())
    return name, cell, Study(Path("results"), "study").run(cell)


@pytest.mark.parametrize("format", ["official", "diffusers"])
@pytest.mark.parametrize("raw", [False, True])
def test_export_then_import_gives_the_weights_back(
    sweep: Path, format: str, raw: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    name, cell, source = cell_of(sweep)
    flags = ["--raw"] if raw else []
    assert run("export", sweep, name, "--format", format, "--output", "new/out", *flags) == 0
    heads = ["--heads", 2] if format == "official" else []
    assert run("import", "new/out", "--output", "imported.safetensors", *heads) == 0
    assert "depth 1, width 16, heads 2, patch_size 4, input 8x8x1, 10 classes" in capsys.readouterr().out
    # the file stands in for the weights of a run
    Path("imported.safetensors").rename(source.weights_file(3))
    for ema in (True, False):
        found = load_weights(source, cell, 3, ema=ema, device="cpu").state_dict()
        wanted = load_weights(source, cell, 7, ema=not raw, device="cpu").state_dict()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with safe_open(source.weights_file(3), "pt") as file:
        assert '"source": "out"' in file.metadata()["harness"]
    assert not list(Path("new").glob(".*"))


LATENT_SWEEP = """
[grid]
block = ["adaln-zero"]
[model]
depth = 1
width = 16
heads = 2
patch_size = 2
[data.vae]
kind = "pretrained"
name = "my-vae"
factor = 2
channels = 2
[training]
steps = 7
"""


def test_the_autoencoder_of_a_latent_cell_goes_with_it(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.write_text(LATENT_SWEEP)
    name, cell, source = cell_of(sweep)
    state = DiT(dit_spec(cell), cell.data.shape).state_dict()
    checkpoint.save(source.weights_file(7), {f"ema.{key}": value for key, value in state.items()}, {})
    assert run("export", sweep, name, "--format", "diffusers", "-o", "without") == 0
    assert "note: the folder has no VAE (data.vae.name my-vae: not here" in capsys.readouterr().err
    vae: Any = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=1.0,
    )  # fmt: skip
    vae.save_pretrained("my-vae")
    assert run("export", sweep, name, "--format", "diffusers", "-o", "with") == 0
    pipeline: Any = DiTPipeline.from_pretrained("with")
    assert pipeline.vae.config.scaling_factor == 0.18215  # the run's, not the folder's
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline([3], guidance_scale=1.0, num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["export", "study.toml", "d1-w16-p4-adaln", "-o", "x"], "adaln blocks cannot be exported"),
        (["export", "study.toml", ZERO, "-o", "study.toml"], "study.toml: exists already"),
        (["export", "study.toml", "nothing", "-o", "x"], f"no cell of this name in study; allowed: {ZERO}"),
        (["export", "study.toml", ZERO, "-o", "x", "--step", "5"], "no weights of step 5; allowed: 7"),
        (["export", "study.toml", ZERO, "-o", "x", "--format", "onnx"], "allowed: official, diffusers, npz"),
        (["export", "study.toml", ZERO, "-o", "x", "--vae", "y"], "an official checkpoint holds no VAE"),
        (["export", "study.toml", ZERO, "-o", "x", "--format", "diffusers", "--vae", "y"], "the cell learns pixels"),
        (["export", "study.toml", ZERO, "-o", "x", "--samples", "3"], "--samples: allowed with --format npz"),
        (["export", "study.toml", ZERO, "-o", "x", "--format", "npz"], "no samples of step 7 here; there are: none"),
        (["export", "study.toml", ZERO, "-o", "x", "--format", "npz", "--raw"], "--raw: is about weights"),
        (["import", "none.pt", "-o", "x"], "none.pt: no such file"),
        (["import", "study.toml", "-o", "x"], "study.toml: no readable PyTorch checkpoint"),
        (["import", "results", "-o", "x"], "results: no config.json"),
        (["import", "results", "-o", "x", "--heads", "2"], "tells the number of heads itself"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(
    sweep: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not Path("x").exists()


def test_samples_go_out_and_read_back_to_the_same_metrics(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, cell, source = cell_of(sweep)
    evaluation = Evaluation(samples=7, sampling_steps=2)
    key = f"{evaluation.id}@7"
    dit = load_weights(source, cell, 7, ema=True, device="cpu")
    for parameter in dit.parameters():
        parameter.mul_(0.1)  # so that not every pixel is clipped
    made = generate(Generator(dit, cell, evaluation, "cpu"), source, key, batch=3, hooks=Hooks())
    assert made is not None
    images, labels, _ = made
    export = ("export", sweep, name, "--format", "npz", "-o")

    assert run(*export, "early.npz") == 2  # as long as there is no record, there may be more to come
    assert f"{key}: sampling has not ended, 7 are there; --samples 7 exports these" in capsys.readouterr().err
    write_record(source, cell, evaluation, 7)
    assert run(*export, "all.npz") == 0
    assert f"7 samples of {key}, 8x8x1; evaluators that rest on Inception want three" in capsys.readouterr().out
    with np.load("all.npz", allow_pickle=False) as plain:
        assert np.array_equal(plain["arr_0"], images[np.arange(len(images))])
        assert np.array_equal(plain["arr_1"], labels)
    dataset = load(cell.data)
    read = read_samples(Path("all.npz"))[0]
    assert score(read, evaluation, cell.data, dataset) == score(images, evaluation, cell.data, dataset)

    assert run(*export, "few.npz", "--samples", "4", "--evaluation", evaluation.id[:5]) == 0
    assert np.array_equal(read_samples(Path("few.npz"))[0], images[np.arange(4)])
    capsys.readouterr()
    assert run(*export, "x", "--samples", "8") == 2
    assert f"--samples: 8, but 7 were generated ({key}); allowed: 1 to 7" in capsys.readouterr().err
    source.samples_part("other@7", 0).parent.mkdir()
    assert run(*export, "x") == 2
    assert f"several have samples of step 7; allowed: {evaluation.id}, other" in capsys.readouterr().err
    source.samples_part(key, 3).unlink()
    assert run(*export, "x", "--evaluation", evaluation.id) == 2
    assert "the part before it is missing, from sample 3 on" in capsys.readouterr().err
    assert not Path("x").exists()


def test_a_damaged_weights_file_is_said(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, _, source = cell_of(sweep)
    data = bytearray(source.weights_file(7).read_bytes())
    data[-5] ^= 1
    source.weights_file(7).write_bytes(data)
    assert run("export", sweep, name, "-o", "x") == 2
    assert "checksum differs; the file is damaged" in capsys.readouterr().err


def test_weights_that_are_not_finite_go_neither_out_nor_in(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, _, source = cell_of(sweep)
    assert run("export", sweep, name, "-o", "good.pt") == 0
    state = torch.load("good.pt", weights_only=True)
    torch.save({key: value.fill_(float("nan")) for key, value in state.items()}, "nan.pt")
    total = sum(value.numel() for value in state.values())
    assert run("import", "nan.pt", "-o", "x", "--heads", 2) == 2
    assert f"error: nan.pt: {total} of {total} values are not finite" in capsys.readouterr().err
    tensors, meta = checkpoint.load(source.weights_file(7))
    tensors["ema.blocks.0.mlp.0.bias"][2] = float("inf")
    with pytest.MonkeyPatch.context() as older:
        older.setattr(checkpoint, "require_finite", lambda _: None)
        checkpoint.save(source.weights_file(7), tensors, meta)
    for format in ("official", "diffusers"):
        assert run("export", sweep, name, "-o", "x", "--format", format) == 2
        assert "weights-00000007.safetensors: 1 of" in (line := capsys.readouterr().err)
        assert "in blocks.0.mlp.0.bias" in line
    assert run("export", sweep, name, "-o", "x", "--raw") == 0  # the plain ones are whole
    assert not list(Path().glob(".*"))


def test_home_folders_are_meant_by_a_tilde(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    Path("home").mkdir()
    sweep.rename("home/study.toml")
    Path("results").rename("home/results")
    assert run("export", "~/study.toml", ZERO, "--results=~/results", "--output=~/dit.pt") == 0
    assert run("import", "~/dit.pt", "-o", "~/in.safetensors", "--heads", 2) == 0
    assert {path.name for path in Path("home").iterdir()} == {"study.toml", "results", "dit.pt", "in.safetensors"}
    monkeypatch.setenv("DIT_HARNESS_RESULTS", "~/results")
    assert run("export", "~/study.toml", ZERO, "-o", "~nobody-of-this-name/x.pt", "--step", 5) == 2
    assert f"{ZERO}: no weights of step 5; allowed: 7" in capsys.readouterr().err  # the run is found
    assert not Path("~").exists()
