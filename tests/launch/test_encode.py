"""Images encoded on one rank, on two, and as a job of Slurm, whose commands are small scripts: the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.data.latents import check_ready
from harness.errors import CellFailedError, InputError
from harness.launch.encode import encode_all
from harness.launch.encoding import Encoding
from harness.launch.local import LOCAL, Child
from harness.launch.prepare import train_vaes
from harness.launch.work import device_of
from harness.processes import exclusive
from harness.runs.study import Shared, Study
from harness.training.hooks import Hooks
from harness.training.ranks import Group
from sweeps.grid import load_sweep
from tests.conftest import forget_users_files
from tests.launch.test_slurm import Command, command, listing
from tests.small_study import Bench, sweep_text, wait_for

__all__ = ["command"]

#: 2100 images to learn from are three shards, 20 held out are one. A file in the data folder holds up the second
#: shard, or breaks it.
GATED = """
import time
import numpy as np
from harness.data.dataset import DataSet, Images, LoadedData
from harness.launch.executor import Executor
from harness.spec.data import InputShape

class Gate:
    def __init__(self, images, folder):
        self.images, self.folder, self.shape, self.dtype = images, folder, images.shape, images.dtype

    def __len__(self):
        return len(self.images)

    def __getitem__(self, chosen):
        batch = len(chosen) <= 32
        while batch and 1024 <= chosen[0] < 2048 and (self.folder / "closed").exists():
            time.sleep(0.05)
        if batch and 1024 <= chosen[0] < 2048 and (self.folder / "broken").exists():
            raise ValueError("an image is torn")
        return self.images[chosen]

class Gated(DataSet):
    shape, extractor = InputShape(channels=1, size=8, classes=2), "digits-cnn"

    def load(self, data, source):
        images = np.random.RandomState(0).randint(0, 256, (2120, 8, 8, 1)).astype(np.uint8)
        labels, whole = np.arange(2120) % 2, Images(images, np.arange(2120) % 2)
        return LoadedData("gated", Images(Gate(images[:2100], source.folder), labels[:2100]),
                          Images(images[2100:], labels[2100:]), "0" * 12)

class Own(Executor):
    detached = True

DATA_SETS, EXECUTORS = {"gated": Gated()}, {"own": Own()}
"""

VAE = """
[data]
name = "gated"
[data.vae]
kind = "trained"
factor = 2
channels = 2
width = 4
steps = 3
batch_size = 8
"""


torch.set_num_threads(1)


class GatedBench(Bench):
    """A sweep on latents of a user's own data set, with a trained autoencoder; `of` has one like it."""

    def __init__(self, folder: Path, of: GatedBench | None = None) -> None:
        more = f"{VAE}\n"
        super().__init__(folder, 'extend = ["gated.py"]\n' + sweep_text("depth = [1]", more=more).lstrip())
        (folder / "gated.py").write_text(GATED)
        self.gate = folder / "gate"
        self.gate.mkdir()
        if of is None:
            train_vaes(Here(self).sweep, Study(self.study.parent, "small"), Hooks(), print)
        else:
            shutil.copytree(of.study.parent / "_vae", self.study.parent / "_vae")

    def options(self, *options: str) -> list[str]:
        return [str(self.sweep), "--data-folder", str(self.gate), *options]

    def encode(self, verb: str = "encode", *options: str) -> subprocess.CompletedProcess[str]:
        return self.run(verb, *self.options(*options))

    def latents(self) -> dict[str, bytes]:
        """All files of the latents, without the time of day in any."""
        return {path.name: path.read_bytes() for path in self.study.parent.glob("_latents/gated-*/*")}

    def listed(self) -> list[str]:
        """The shards of the manifest."""
        manifest = json.loads(self.latents().get("manifest.json", b'{"splits": {}}'))
        return [shard["file"] for split in manifest["splits"].values() for shard in split["shards"]]

    def log(self) -> Path:
        (path,) = self.study.parent.glob("_latents/.encoding/*/log")
        return path


class Here:
    """`encode` in this process, on Slurm or not; what it says."""

    def __init__(self, bench: GatedBench, **resources: Any) -> None:
        self.results = bench.study.parent
        self.sweep = load_sweep(bench.sweep).with_resources({"data_folder": str(bench.gate), **resources})

    def __call__(self, *, wait: bool = False) -> str:
        said: list[str] = []
        encode_all(self.sweep, Study(self.results, "small"), Hooks(), said.append, wait=wait)
        return "\n".join(said)

    def check(self) -> None:
        """What a launch checks."""
        ((_, cell),) = self.sweep.cells()
        check_ready(cell.data, Shared(self.results), "s.toml")

    def record(self, name: str) -> Path:
        """A file that jobs leave."""
        (folder,) = self.results.glob("_latents/.encoding/gated-*")
        return folder / name

    def token(self) -> str:
        """Of the job that was submitted."""
        return str(json.loads(self.record("submitted.json").read_text())["token"])

    def list(self, command: Command, state: str, number: str = "17") -> None:
        """Let squeue list the job."""
        job = f"dit-encode-{self.record('').name}"
        command("squeue", listing(f"{self.token()}|{number}|{state}|Resources", name=job))

    def end(self, outcome: str, message: str) -> None:
        """As the job records its end."""
        ended = {"token": self.token(), "outcome": outcome, "message": message, "time": "now"}
        self.record("ended.json").write_text(json.dumps(ended))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> GatedBench:
    """Encoded on one rank, undisturbed."""
    bench = GatedBench(tmp_path_factory.mktemp("encode") / "whole")
    Here(bench)()
    forget_users_files()
    assert bench.listed() == ["train-00000.npy", "train-00001.npy", "train-00002.npy", "heldout-00000.npy"]
    return bench


@pytest.fixture
def bench(whole: GatedBench, tmp_path: Path) -> GatedBench:
    return GatedBench(tmp_path / "bench", whole)


def test_an_error_of_one_rank_ends_both_with_one_line_and_then_they_make_the_same_bytes(
    whole: GatedBench, bench: GatedBench
) -> None:
    (bench.gate / "broken").touch()
    done = bench.encode("encode", "--ranks", "2")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"rank 1: ValueError: an image is torn (log: {bench.log().relative_to(bench.folder)})" in done.stderr
    assert bench.listed() == []
    (bench.gate / "broken").unlink()
    done = bench.encode("encode", "--ranks", "2")
    assert done.returncode == 0, done.stderr
    assert "2120 images, each both ways" in done.stdout
    assert bench.latents() == whole.latents()


def test_begun_on_one_rank_killed_stopped_on_two_and_ended_on_one_it_is_the_same(
    whole: GatedBench, bench: GatedBench, users_files: None
) -> None:
    closed, here = bench.gate / "closed", Here(bench)
    closed.touch()
    process = bench.start("encode", *bench.options())
    wait_for(lambda: bench.listed() == ["train-00000.npy"] or process.poll() is not None)
    process.kill()
    process.communicate(timeout=60)
    with pytest.raises(InputError, match="only 1024 images are encoded; go on with: dit-harness encode"):
        here.check()
    process = bench.start("encode", *bench.options("--ranks", "2"))
    wait_for(lambda: "train-00002.npy" in bench.latents() or process.poll() is not None)
    with pytest.raises(InputError, match="is at work on it; wait for it"):
        here()
    with pytest.raises(InputError, match="another dit-harness encode is at work on it; wait for it"):
        Here(bench, executor="slurm")()
    with pytest.raises(InputError, match=r"the images are being encoded just now \(encode 1024/2120\); then the same"):
        here.check()
    process.send_signal(signal.SIGINT)
    closed.unlink()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on after the last whole shard" in err
    assert bench.listed() == ["train-00000.npy", "train-00002.npy"]
    assert "2120 images, each both ways" in here()
    assert bench.latents() == whole.latents()
    here.check()


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"nodes": 2}, 'resources.nodes: 2 need executor = "slurm"; allowed here: 1'),
        ({"ranks": 2, "device": "cuda"}, 'resources.device: "cuda", but no GPU is visible here'),
        ({"executor": "own"}, 'resources.executor: "own" runs cells only; allowed: "local", "slurm"'),
    ],
)
def test_what_cannot_be_given_is_refused(
    bench: GatedBench, monkeypatch: pytest.MonkeyPatch, users_files: None, resources: dict[str, Any], message: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match=message):
        Here(bench, **resources)()
    assert not list(bench.study.parent.glob("_latents/gated-*"))


def test_each_rank_takes_a_gpu(bench: GatedBench, monkeypatch: pytest.MonkeyPatch, users_files: None) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,5")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    started: list[Encoding] = []
    taken: list[int] = []
    monkeypatch.setattr("torch.cuda.set_device", taken.append)

    def start(job: Encoding, folder: Path, token: str, ranks: int) -> Child:
        assert ranks == 2
        started.append(job)
        return Child("1", None)

    monkeypatch.setattr("harness.launch.encode.start", start)
    with pytest.raises(CellFailedError, match="the ranks ended without a word"):
        Here(bench, ranks=2)()
    LOCAL.set_gpus(started[0])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,4"
    assert [device_of(started[0], Group(rank, 2, rank)) for rank in range(2)] == ["cuda", "cuda"]
    assert taken == [0, 1]


@pytest.fixture
def call(bench: GatedBench, command: Command, users_files: None) -> Here:
    command("srun")
    command("sacct")
    command("squeue", listing())
    command("scontrol", "MaxArraySize = 101\n")
    return Here(bench, executor="slurm")


def test_a_job_is_submitted_once(call: Here, command: Command) -> None:
    sbatch = command("sbatch", "Submitted batch job 17\n")
    assert "Slurm job 17" in call()
    script = (call.record("submitit") / "17_submission.sh").read_text()
    for line in (f"job-name=dit-encode-{call.record('').name}", f"comment={call.token()}", "nodes=1", "requeue"):
        assert f"#SBATCH --{line}\n" in script
    call.list(command, "PENDING")
    assert "Slurm job 17 is queued (Resources); how far it is: the same command; to follow: with --wait" in call()
    call.list(command, "RUNNING")
    progress = {"process": {}, "stage": "encode", "done": 1024, "total": 2120}
    call.record("progress.json").write_text(json.dumps(progress))
    assert "Slurm job 17 is running: encode 1024/2120" in call()
    assert len(sbatch.read_text().splitlines()) == 1


def test_a_failed_job_is_told_once_and_then_submitted_again(call: Here, command: Command) -> None:
    sbatch = command("sbatch", "Submitted batch job 17\n")
    call()
    call.list(command, "FAILED")
    call.end("failed", "rank 1: ValueError: no good")
    with pytest.raises(CellFailedError, match=r"Slurm job 17 failed: rank 1: ValueError: no good \(log: .*/log\)"):
        call()
    command("sbatch", "Submitted batch job 18\n")
    assert "Slurm job 18" in call()
    call.list(command, "OUT_OF_MEMORY", "18")
    with pytest.raises(CellFailedError, match=r"job 18 ended early \(OUT_OF_MEMORY\) \(log: .*\); the same command"):
        call(wait=True)
    assert len(sbatch.read_text().splitlines()) == 2


def test_what_slurm_refuses_leaves_nothing(call: Here, command: Command) -> None:
    command("sbatch", err="sbatch: error: invalid partition specified: x\n", code=1)
    with pytest.raises(InputError, match=r"small.toml: Slurm refused: invalid partition .*; nothing was submitted"):
        call()
    assert not call.record("submitted.json").exists()
    assert not list(call.record("submitit").glob("*_0.pkl"))


@pytest.mark.parametrize("arrived", [False, True])
def test_slurm_goes_silent(call: Here, command: Command, arrived: bool) -> None:
    silence: dict[str, object] = {"err": "sbatch: error: Unable to contact slurm controller\n", "code": 1}
    sbatch = command("sbatch", **silence)
    with pytest.raises(InputError, match="whether it took the job is not known"):
        call()
    token = call.token()
    command("squeue", **silence)
    with pytest.raises(InputError, match=r"Slurm does not answer: .*; the same command asks later"):
        call()
    assert len(sbatch.read_text().splitlines()) == 1
    command("squeue", listing())
    command("sbatch", "Submitted batch job 18\n")
    if arrived:
        call.list(command, "RUNNING")
    assert f"Slurm job {17 if arrived else 18}" in call()
    assert (call.token() == token) is arrived, "nothing is submitted twice"


def test_a_folder_that_another_process_has_is_not_touched(bench: GatedBench, users_files: None) -> None:
    here = Here(bench, ranks=2)
    ((_, cell),) = here.sweep.cells()
    with (
        exclusive(Shared(here.results).latents_folder(cell.data.encoding_name), "another one"),
        pytest.raises(InputError, match=r"another one, process .* is at work on it; wait for it"),
    ):
        here()
