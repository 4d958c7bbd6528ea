"""Images encoded on two nodes of a real Slurm, requeued once in the middle of a shard: the bytes of one rank here."""

from __future__ import annotations

from pathlib import Path

from tests.launch.test_encode import GatedBench, Here
from tests.slurm.test_slurm import call, nothing_left, pytestmark
from tests.small_study import wait_for

__all__ = ["nothing_left", "pytestmark"]  # this module is on Slurm, too, and leaves nothing there


def test_images_are_encoded_on_two_nodes_and_requeued(tmp_path: Path, users_files: None) -> None:
    bench = GatedBench(tmp_path / "bench")
    on_slurm, closed = Here(bench, executor="slurm", nodes=2), bench.gate / "closed"
    closed.touch()
    on_slurm()
    name = f"dit-encode-{on_slurm.record('').name}"
    (number,) = call("squeue", "-h", f"--name={name}", "-o", "%A").split()
    wait_for(lambda: "train-00000.npy" in bench.latents())
    assert f"Slurm job {number} is running: encode " in on_slurm()
    call("scancel", "--signal=USR2", number)  # to all tasks; the first rank alone requeues
    closed.unlink()
    wait_for(lambda: bench.listed() == ["train-00000.npy"], 30)
    assert "2120 images, each both ways" in on_slurm(wait=True)
    assert ": stopped: " in bench.log().read_text()
    here = GatedBench(tmp_path / "here", bench)
    Here(here)()
    assert bench.latents() == here.latents()
