"""The paper's sweeps: its models, its recipe, its numbers, planned in seconds with nothing but the files."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.model import cost as flops
from harness.spec.cell import Cell
from harness.spec.diffusion import Diffusion
from sweeps.grid import load_sweep, warnings
from tests.cells import dit_spec

ROOT = Path(__file__).parents[2]
STUDIES = ("dit-paper", "dit-blocks", "dit-512")


def cells(study: str) -> dict[str, Cell]:
    return dict(load_sweep(ROOT / "sweeps" / f"{study}.toml").cells())


def published() -> dict[tuple[Any, ...], tuple[float, int]]:
    """Gflops and millions of parameters by (depth, width, heads, patch size, block, latent side)."""
    found = {}
    with (ROOT / "results/paper/published.csv").open() as file:
        for row in csv.DictReader(file):
            sizes = tuple(int(row[name]) for name in ("depth", "width", "heads", "patch_size"))
            found[(*sizes, row["block"], int(row["resolution"]) // 8)] = float(row["gflops"]), int(row["params_m"])
    return found


def key(cell: Cell) -> tuple[Any, ...]:
    model = dit_spec(cell)
    return model.depth, model.width, model.heads, model.patch_size, model.block, cell.data.shape.size


def test_they_are_the_papers_models() -> None:
    assert list(cells("dit-paper")) == [f"{size}-{patch}" for size in ("S", "B", "L", "XL") for patch in (8, 4, 2)]
    assert {dit_spec(cell).block for cell in cells("dit-blocks").values()} == {
        "in-context", "cross-attention", "adaln", "adaln-zero"
    }  # fmt: skip
    assert {name for study in STUDIES for name in map(key, cells(study).values())} == set(published())
    assert cells("dit-blocks")["XL-2-adaln-zero"].id == cells("dit-paper")["XL-2"].id  # trained once, found by both


@pytest.mark.parametrize("study", STUDIES)
def test_they_are_the_papers_recipe(study: str) -> None:
    sweep = load_sweep(ROOT / "sweeps" / f"{study}.toml")
    for _, cell in sweep.cells():
        recipe, shape = cell.training, cell.data.shape
        assert recipe.steps == (3_000_000 if study == "dit-512" else 400_000)
        assert (recipe.batch_size, recipe.learning_rate, recipe.weight_decay) == (256, 1e-4, 0)
        assert (recipe.ema_decay, recipe.ema_window, recipe.label_dropout) == (0.9999, None, 0.1)
        assert cell.data.horizontal_flips
        assert shape == (4, 64 if study == "dit-512" else 32, 1000)
        assert cell.data.vae is not None
        assert (cell.data.vae.kind, cell.data.vae.name, cell.data.vae.scaling) == (  # type: ignore[union-attr]
            "pretrained", "stabilityai/sd-vae-ft-mse", 0.18215
        )  # fmt: skip
        (evaluation,) = sweep.evaluations_of(cell)
        assert (evaluation.samples, evaluation.sampler, evaluation.sampling_steps) == (50_000, "ddpm", 250)
        assert (evaluation.guidance, evaluation.extractor, evaluation.ema) == (1.0, "inception-v3-compat", True)
        assert (evaluation.reference, evaluation.labels) == ("adm", "uniform")
        diffusion = cell.diffusion
        assert isinstance(diffusion, Diffusion)
        assert (diffusion.timesteps, diffusion.beta_start, diffusion.beta_end) == (1000, 1e-4, 0.02)
    assert warnings(sweep) == []


def test_published_gflops_and_parameters() -> None:
    flops._traced.cache_clear()
    flops._count.cache_clear()
    known = published()
    for study, tolerance in (("dit-paper", 0.02), ("dit-blocks", 0.05), ("dit-512", 0.1)):
        for cell in cells(study).values():
            gflops, millions = known[key(cell)]
            cost = flops.count(cell.model, cell.data.shape)
            allowed = 0.02 if dit_spec(cell).block == "adaln-zero" and study != "dit-512" else tolerance
            assert cost.macs / 1e9 == pytest.approx(gflops, abs=allowed)
            assert round(cost.params / 1e6) == millions


def run_plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`plan` in an empty folder, with no GPU; the last line on stderr is the peak of its memory in kB.

    From /proc: what getrusage tells of a new process is not less than what its parent had.
    """
    code = (
        "import re, sys; from pathlib import Path; from harness.cli.main import main\n"
        "sys.argv[0] = 'dit-harness'\n"
        "try: main()\n"
        "finally: print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1], file=sys.stderr)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "plan", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": "", "HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def peak_kilobytes(done: subprocess.CompletedProcess[str]) -> int:
    return int(done.stderr.splitlines()[-1])


def test_the_whole_study_is_priced_without_data_vae_or_gpu(tmp_path: Path) -> None:
    done = run_plan(tmp_path, str(ROOT / "sweeps/dit-paper.toml"), "--json", "--tflops", "200")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    xl = rows["XL-2"]
    assert sum(row["train_gmacs"] for row in rows.values()) == pytest.approx(9.16e10, rel=1e-3)
    assert xl["train_gmacs"] == pytest.approx(3.64e10, rel=2e-3)  # 3 * Gflops * batch * steps
    assert xl["train_gmacs"] == 3 * xl["gmacs"] * 256 * 400_000
    assert xl["sampling_gmacs"] == xl["gmacs"] * 250 * 50_000
    assert xl["decoding_gmacs"] == pytest.approx(50_000 * 311.09, rel=1e-4)
    assert xl["scoring_gmacs"] == pytest.approx(50_000 * 5.7)
    parts = ("train_gmacs", "sampling_gmacs", "decoding_gmacs", "scoring_gmacs")
    assert xl["gpu_hours"] == pytest.approx(2e9 * sum(xl[part] for part in parts) / 200e12 / 3600)
    assert (xl["tflops"], xl["throughput"]) == (200.0, "given")
    # mean and deviation of 1,331,167 images and their mirror images; weights and averages, in fp32
    assert {(row["latents"], row["latents_bytes"]) for row in rows.values()} == {
        (xl["latents"], 1_331_167 * 2 * 2 * 4 * 32 * 32 * 4)
    }
    assert xl["weights_bytes"] == 2 * 4 * xl["params"]
    assert xl["states_bytes"] == 2 * 16 * xl["params"]
    assert xl["samples_bytes"] == 50_000 * 256 * 256 * 3
    assert {row["state"] for row in rows.values()} == {"missing"}
    assert peak_kilobytes(done) < 1_000_000  # all of torch included; XL/2's weights alone would be 2,700,000
    assert list(tmp_path.iterdir()) == []


def test_the_plan_says_what_it_assumes(tmp_path: Path) -> None:
    done = run_plan(tmp_path, str(ROOT / "sweeps/dit-512.toml"))
    assert peak_kilobytes(done) < 1_000_000
    text = " ".join(done.stdout.split())
    assert "6,833 GPU hours at 100 TFLOP/s a GPU (assumed; --tflops N to state another)" in text
    assert "weights 16.2 GB, samples 118.0 GB, states while training 21.6 GB, latents 349.0 GB" in text
    for bad in ("0", "-1", "nan", "inf"):
        done = run_plan(tmp_path, str(ROOT / "sweeps/dit-512.toml"), "--tflops", bad)
        assert done.returncode == 2
        assert "--tflops" in done.stderr
