"""One cell on two nodes of a real Slurm, preempted once, against the same cell on one rank here."""

from __future__ import annotations

import json
from pathlib import Path

from harness.data.sources import load
from harness.runs.state import Run
from harness.spec.resources import Recording
from harness.training import checkpoint
from harness.training.hooks import Hooks
from harness.training.loop import Options, train
from tests.slurm.test_slurm import SlurmBench, call, nothing_left, pytestmark
from tests.small_study import wait_for

__all__ = ["nothing_left", "pytestmark"]  # this module is on Slurm, too, and leaves nothing there

#: Of weights after 600 steps whose gradients were summed in another order: 3e-5 was seen.
TOLERANCE = 1e-3

STEPS = 600


def test_a_cell_on_two_nodes_is_preempted_and_equals_the_local_one(tmp_path: Path) -> None:
    bench = SlurmBench(tmp_path / "b", steps=STEPS)
    submitted = bench.submit("--ranks", "1", "--nodes", "2")
    assert submitted.returncode == 0, submitted.stderr
    wait_for(bench.training("d1"))
    nodes = call("squeue", "-h", "-j", bench.job("d1"), "-o", "%D %N").split()
    assert nodes[0] == "2"
    call("scancel", "--signal=USR2", bench.job("d1"))  # to all tasks; the first rank alone requeues
    wait_for(lambda: bench.outcomes()["d1"] == ["stopped"], 30)
    assert bench.states()["d1"] in ("queued", "running")
    done = bench.submit("--ranks", "1", "--nodes", "2", "--wait")
    assert done.returncode == 0, done.stderr
    assert bench.outcomes() == {"d1": ["stopped", "done"]}
    folder = bench.runs()["d1"]
    for number in (1, 2):
        started = json.loads((folder / "attempts" / f"{number:03d}.started.json").read_text())
        assert started["conditions"]["ranks"] == 2

    local = Run(tmp_path / "local")
    local.folder.mkdir()
    _, cell = Run(folder).cell()
    train(
        cell,
        load(cell.data),
        local,
        Options("cpu", [STEPS], Recording(loss_images=16), checkpoint_seconds=1e9),
        Hooks(),
    )
    one, two = (checkpoint.load(run.weights_file(STEPS))[0] for run in (local, Run(folder)))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < TOLERANCE
