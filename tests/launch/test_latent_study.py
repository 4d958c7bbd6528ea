"""A latent study from a sweep file to the report by the command itself, and what happens when it is disturbed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.data.latents import open_latents
from harness.runs.state import Run
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.resources import Recording
from harness.training.hooks import Hooks, StoppedError
from harness.training.loop import Options, train
from tests.small_study import Bench, sweep_text, wait_for

VAE = """
[data]
name = "digits"
horizontal_flips = true
[data.vae]
kind = "trained"
factor = 2
channels = 2
width = 4
steps = 300
batch_size = 16
learning_rate = 5e-3
"""


class LatentBench(Bench):
    """As `Bench`, with a sweep on latents of an autoencoder that it trains."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sweep_text(model="width = 16\npatch_size = 2", more=VAE, checkpoint=0.2))

    def do(self, verb: str) -> subprocess.CompletedProcess[str]:
        return self.run(verb, str(self.sweep))

    def one(self, what: str) -> Path:
        (folder,) = (self.folder / "results" / what).glob("[!.]*")
        return folder

    def bytes_of(self, what: str, pattern: str) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(self.one(what).glob(pattern))}


def begun(process: subprocess.Popen[str], bench: LatentBench, pattern: str) -> bool:
    """Whether it has written a file like this, or ended."""
    return bool(list(bench.folder.glob(f"results/{pattern}"))) or process.poll() is not None


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> LatentBench:
    """A study run through without disturbance; at every stage, what comes too early is refused."""
    bench = LatentBench(tmp_path_factory.mktemp("quiet"))
    for verb, wanted in (
        ("launch", "not trained yet; first: dit-harness train-vae"),
        ("encode", "not trained yet; first: dit-harness train-vae"),
        ("train-vae", ""),
        ("launch", "not encoded yet; first: dit-harness encode"),
        ("encode", ""),
        ("launch", ""),
    ):
        done = bench.do(verb)
        assert done.returncode == (2 if wanted else 0), done.stderr + done.stdout
        assert wanted in done.stderr
        if wanted:
            assert done.stderr.startswith("error: ")
            assert done.stderr.count("\n") == 1
            assert not bench.study.exists()  # nothing was started
    return bench


def test_a_latent_study_ends_with_a_table_and_a_report(quiet: LatentBench) -> None:
    rows = quiet.rows()
    assert [row["name"] for row in rows] == ["d1-w16-p2", "d2-w16-p2"]
    measured = json.loads((quiet.one("_latents") / "reconstruction.json").read_text())
    for row in rows:
        assert float(row["frechet"]) > 0
        assert row["tokens"] == "4"
        assert row["reference"].startswith("digits/train(1500)@")
        assert row["loss_heldout"]
        assert float(row["reconstruction_frechet"]) == measured["distances"][row["extractor"]]["held-out"]
    done = quiet.do("report")
    assert done.returncode == 0, done.stderr
    assert (quiet.study / "report.html").exists()


def test_samples_are_images(quiet: LatentBench) -> None:
    for picture in (quiet.study / "samples").glob("*.png"):
        assert np.asarray(Image.open(picture)).std() > 5
        assert Image.open(picture).width == (10 * 9 + 1) * 4  # ten 8x8 images with gaps, four times as large


def test_what_is_there_is_not_made_again(quiet: LatentBench) -> None:
    before = {**quiet.bytes_of("_vae", "[!.]*"), **quiet.bytes_of("_latents", "[!.]*")}
    for verb, said in (("train-vae", "trained already"), ("encode", "encoded already")):
        done = quiet.do(verb)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert "psnr" not in done.stdout
        assert "dB" in done.stdout
    assert {**quiet.bytes_of("_vae", "[!.]*"), **quiet.bytes_of("_latents", "[!.]*")} == before


def test_killed_and_stopped_the_same_bytes_come_out(quiet: LatentBench, tmp_path: Path) -> None:
    """The trainer by a signal and by kill -9, two at once, then the encoder by kill -9: against undisturbed ones."""
    wild = LatentBench(tmp_path / "wild")
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = wild.start("train-vae", str(wild.sweep))
        wait_for(partial(begun, process, wild, "_vae/*/state*"))
        if number is signal.SIGINT:
            other = wild.do("train-vae")
            assert other.returncode == 2
            assert "is at work on it" in other.stderr
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (code, 0), err
    assert wild.do("train-vae").returncode == 0
    assert wild.bytes_of("_vae", "*.safetensors") == quiet.bytes_of("_vae", "*.safetensors")
    process = wild.start("encode", str(wild.sweep))
    wait_for(partial(begun, process, wild, "_latents/*/train-00000.npy"))
    process.kill()
    process.communicate(timeout=60)
    assert wild.do("encode").returncode == 0
    assert wild.bytes_of("_latents", "*.npy") == quiet.bytes_of("_latents", "*.npy")
    assert wild.bytes_of("_latents", "manifest.json") == quiet.bytes_of("_latents", "manifest.json")


def test_an_interrupted_latent_cell_ends_with_the_same_bits(quiet: LatentBench, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = next((quiet.study.parent / "runs").glob("[!.]*"))
    _, cell = Run(run).cell()
    cell = Cell.model_validate({**cell.model_dump(), "training": {"steps": 12, "batch_size": 8, "ema_window": 0.2}})
    latents = open_latents(cell.data, Shared(quiet.folder / "results"))
    whole, broken = Run(tmp_path / "whole"), Run(tmp_path / "broken")

    def go(target: Run, stop_at: int | None) -> None:
        seen = {"step": 0}
        target.folder.mkdir(exist_ok=True)
        hooks = Hooks(
            should_stop=lambda: stop_at is not None and seen["step"] + 1 >= stop_at,
            report=lambda value: seen.update(step=value["done"]),
        )
        recording = Recording(loss_steps=(3,), loss_images=16)
        train(cell, latents, target, Options("cpu", [12], recording, checkpoint_seconds=1e9), hooks)

    go(whole, None)
    for stop_at in (1, 5, 11):
        with pytest.raises(StoppedError):
            go(broken, stop_at)
    go(broken, None)
    assert whole.weights_file(12).read_bytes() == broken.weights_file(12).read_bytes()


def test_a_damaged_shard_fails_the_launch_and_is_mended(quiet: LatentBench, tmp_path: Path) -> None:
    bench = LatentBench(tmp_path / "damaged")
    shutil.copytree(quiet.folder / "results", bench.folder / "results")
    for folder in (bench.study, bench.study.parent / "runs"):
        shutil.rmtree(folder)
    shard = bench.one("_latents") / "train-00000.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    done = bench.do("launch")
    assert done.returncode == 2
    assert "train-00000.npy: missing or cut off; make it again: dit-harness encode" in done.stderr
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = bench.do("launch")
    assert done.returncode == 2, "the size is right: it is found by the checksum, before anything starts"
    assert "train-00000.npy: missing or damaged (its checksum differs); make it again" in done.stderr
    assert not (bench.study.parent / "runs").exists()
    assert bench.do("encode").returncode == 0
    assert shard.read_bytes() == whole


def test_a_sweep_on_pixels_has_nothing_to_encode(tmp_path: Path) -> None:
    bench = LatentBench(tmp_path)
    text = bench.sweep.read_text()
    bench.sweep.write_text(text[: text.index("[data.vae]")] + text[text.index("[training]") :])
    for verb in ("train-vae", "encode"):
        done = bench.do(verb)
        assert done.returncode == 2
        assert "this sweep learns pixels" in done.stderr
