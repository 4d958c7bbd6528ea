"""The harness on a real Slurm: tests/slurm/cluster up, and SLURM_CONF as `tests/slurm/cluster env` prints it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.small_study import TIMINGS, Bench, sweep_text, wait_for

CLUSTER = Path(__file__).with_name("cluster")


def call(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def reachable() -> bool:
    try:
        return shutil.which("sbatch") is not None and bool(call("sinfo", "-h"))
    except (subprocess.SubprocessError, OSError):
        return False


pytestmark = [
    pytest.mark.timeout(600),  # a requeued job waits, and the machine may be busy
    pytest.mark.slurm,
    pytest.mark.skipif(not reachable(), reason="no Slurm answers here (tests/slurm/cluster up; SLURM_CONF)"),
]

own_cluster = pytest.mark.skipif(
    not Path(os.environ.get("SLURM_CONF", "/nowhere/slurm.conf")).with_name("run").joinpath("slurmctld.pid").exists(),
    reason="stops slurmctld: only on the cluster of tests/slurm/cluster",
)


class SlurmBench(Bench):
    """A sweep of small cells, by default of 1500 steps that each write a state."""

    def __init__(
        self, folder: Path, depth: str = "[1]", width: str = "[16]", steps: int = 1500, checkpoint: float = 0.2
    ) -> None:
        grid = f"depth = {depth}\nwidth = {width}"
        super().__init__(folder, sweep_text(grid, "patch_size = 4", steps=steps, rate="1e-4", checkpoint=checkpoint))

    def submit(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.launch("--executor", "slurm", *options)

    def states(self) -> dict[str, str]:
        return {name[:2]: row["state"] for name, row in self.status().items()}

    def job(self, cell: str) -> str:
        """Slurm's number of a cell's job."""
        submitted = sorted((self.runs()[cell] / "attempts").glob("*.submitted.json"))[-1]
        return str(json.loads(submitted.read_text())["job_id"])

    def process(self, cell: str) -> int:
        started = sorted((self.runs()[cell] / "attempts").glob("*.started.json"))[-1]
        return int(json.loads(started.read_text())["process"]["pid"])

    def outcomes(self) -> dict[str, list[str]]:
        """Of each cell, how its attempts ended."""
        found = {}
        for cell, run in self.runs().items():
            numbers = sorted(path for path in (run / "attempts").iterdir() if path.stem.isdigit())
            ended = [path.with_suffix(".ended.json") for path in numbers]
            found[cell] = [json.loads(path.read_text())["outcome"] if path.exists() else "" for path in ended]
        return found

    def training(self, cell: str) -> Callable[[], bool]:
        """Whether a cell has written a state of its training."""
        return lambda: any((self.runs()[cell] / "checkpoints").glob("state-*.safetensors"))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> SlurmBench:
    """The cells that are disturbed below, by the local executor and undisturbed."""
    bench = SlurmBench(tmp_path_factory.mktemp("local"), depth="[1, 2, 3]", checkpoint=60)
    done = bench.launch()
    assert done.returncode == 0, done.stderr
    return bench


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    subprocess.run(["scancel", "--user", str(os.getuid())], capture_output=True, timeout=30, check=False)


def running_at_once(study: str) -> int:
    return len(call("squeue", "-h", "-r", f"--name=dit-{study}", "--states=RUNNING").splitlines())


def test_a_sweep_of_six_cells_equals_the_local_one(tmp_path: Path) -> None:
    grid: dict[str, Any] = {"depth": "[1, 2, 3]", "width": "[16, 32]", "steps": 30, "checkpoint": 60}
    bench = SlurmBench(tmp_path / "slurm", **grid)
    launcher = bench.start("launch", str(bench.sweep), "--executor", "slurm", "--max-parallel", "3", "--wait")
    seen = []
    while launcher.poll() is None:
        seen.append(running_at_once("small"))
        time.sleep(0.5)
    out, err = launcher.communicate()
    assert launcher.returncode == 0, err
    assert "6 cells submitted as Slurm job" in out
    assert 1 < max(seen) <= 3
    assert set(map(len, bench.attempts().values())) == {1}
    other = SlurmBench(tmp_path / "local", **grid)
    assert other.launch().returncode == 0
    for mine, theirs in zip(bench.rows(), other.rows(), strict=True):
        assert {k: v for k, v in mine.items() if k not in TIMINGS} == {
            k: v for k, v in theirs.items() if k not in TIMINGS
        }


def test_signal_requeue_and_kill_end_with_the_same_bits(local: SlurmBench, tmp_path: Path) -> None:
    bench = SlurmBench(tmp_path / "b", depth="[1, 2, 3]")
    submitted = bench.submit()
    assert submitted.returncode == 0, submitted.stderr
    assert "3 queued" in submitted.stdout
    again = bench.submit()  # at once: nothing is submitted twice
    assert again.returncode == 0
    assert "submitted as" not in again.stdout
    wait_for(bench.training("d3"))
    os.kill(bench.process("d3"), 9)
    wait_for(bench.training("d2"))
    call("scontrol", "requeue", bench.job("d2"))
    wait_for(bench.training("d1"))
    call("scancel", "--signal=USR2", bench.job("d1"))
    wait_for(lambda: bench.outcomes()["d1"] == ["stopped"] and bench.outcomes()["d2"] == ["stopped"], 30)
    states = bench.states()
    assert {states["d1"], states["d2"]} <= {"queued", "running"}, "a requeued cell is neither failed nor lost"
    wait_for(lambda: bench.states()["d3"] == "interrupted", 30)
    done = bench.submit("--wait")
    assert done.returncode == 0, done.stderr
    assert "1 cell submitted as" in done.stdout
    assert bench.outcomes() == {"d1": ["stopped", "done"], "d2": ["stopped", "done"], "d3": ["", "done"]}
    assert bench.weights() == local.weights()
    assert bench.metrics() == local.metrics()


def test_a_node_goes_down_and_comes_back(local: SlurmBench, tmp_path: Path) -> None:
    bench = SlurmBench(tmp_path / "b")
    assert bench.submit().returncode == 0
    wait_for(bench.training("d1"))
    first = bench.process("d1")
    node = call("squeue", "-h", "-j", bench.job("d1"), "-o", "%N").strip()
    call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        wait_for(lambda: len(bench.attempts()["d1"]) == 2, 60)  # on the other node
        wait_for(lambda: not psutil.pid_exists(first), 60)  # Slurm drains a node on which it finds the job's old start
    finally:
        call("scontrol", "update", f"nodename={node}", "state=resume")
    done = bench.submit("--wait")
    assert done.returncode == 0, done.stderr
    assert len(bench.attempts()["d1"]) == 2
    assert bench.outcomes()["d1"][-1] == "done"
    assert bench.weights()["d1"] == local.weights()["d1"]


def test_a_time_limit_is_passed_over(local: SlurmBench, tmp_path: Path) -> None:
    bench = SlurmBench(tmp_path / "limited")
    assert bench.submit("--time", "1").returncode == 0
    wait_for(bench.training("d1"))
    os.kill(
        bench.process("d1"), signal.SIGSTOP
    )  # so it lasts, on any machine, until Slurm signals it; Slurm wakes what it signals
    wait_for(lambda: bench.outcomes()["d1"][0] == "stopped", 150)
    done = bench.submit("--time", "1", "--wait")
    assert done.returncode == 0, done.stderr
    *earlier, last = bench.outcomes()["d1"]
    assert (set(earlier), last) == ({"stopped"}, "done")  # a slow machine needs the limit again
    assert bench.weights()["d1"] == local.weights()["d1"]


def test_cancelled_stays_cancelled_until_retried(local: SlurmBench, tmp_path: Path) -> None:
    bench = SlurmBench(tmp_path / "b", depth="[1, 2]")
    assert bench.submit().returncode == 0
    for cell in bench.runs():
        wait_for(bench.training(cell))
    cancelled = bench.run("cancel", str(bench.sweep), "d1-w16-p4")
    assert cancelled.returncode == 0, cancelled.stderr
    assert "1 cell asked to stop" in cancelled.stdout
    call("scancel", bench.job("d2"))
    wait_for(lambda: set(bench.states().values()) == {"cancelled"}, 30)
    again = bench.submit()
    assert "submitted as" not in again.stdout
    assert "2 cancelled" in again.stdout
    done = bench.submit("--retry", "--wait")
    assert done.returncode == 0, done.stderr
    assert bench.outcomes() == {"d1": ["stopped", "done"], "d2": ["stopped", "done"]}
    assert bench.weights() == {cell: local.weights()[cell] for cell in ("d1", "d2")}


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--partition", "nowhere"], "partition"), (["--mem-gb", "9000"], "node configuration")],
)
def test_refused_in_the_words_of_slurm(tmp_path: Path, options: list[str], words: str) -> None:
    bench = SlurmBench(tmp_path / "b")
    done = bench.submit(*options)
    assert done.returncode == 2, done.stdout
    assert re.fullmatch(rf"error: .*Slurm refused: .*{words}.*\n", done.stderr, re.IGNORECASE), done.stderr
    assert not list(bench.study.parent.glob("runs/[!.]*")), "the cells stay unclaimed"
    assert bench.states() == {"d1": "missing"}


@own_cluster
def test_without_accounting_the_states_come_out_right(local: SlurmBench, tmp_path: Path) -> None:
    call(str(CLUSTER), "stop", "DBD")
    try:
        assert subprocess.run(["sacct"], capture_output=True, timeout=60, check=False).returncode, "sacct still answers"
        bench = SlurmBench(tmp_path / "b", depth="[1, 2, 3]")
        assert bench.submit().returncode == 0
        for cell in bench.runs():
            wait_for(bench.training(cell))
        os.kill(bench.process("d3"), 9)
        call("scancel", bench.job("d2"))
        call("scancel", "--signal=USR2", bench.job("d1"))
        wait_for(lambda: bench.outcomes() == {"d1": ["stopped"], "d2": ["stopped"], "d3": [""]}, 60)
        wait_for(lambda: {**bench.states(), "d1": ""} == {"d1": "", "d2": "cancelled", "d3": "interrupted"}, 60)
        done = bench.submit("--wait")
        assert done.returncode == 1, "d2 is cancelled"
        assert "1 cell submitted as" in done.stdout
        assert bench.states() == {"d1": "done", "d2": "cancelled", "d3": "done"}
        assert bench.outcomes() == {"d1": ["stopped", "done"], "d2": ["stopped"], "d3": ["", "done"]}
    finally:
        call(str(CLUSTER), "start", "DBD")


@own_cluster
def test_slurmctld_is_away_and_comes_back(local: SlurmBench, tmp_path: Path) -> None:
    bench = SlurmBench(tmp_path / "b")
    call(str(CLUSTER), "stop", "CTL")
    try:
        refused = bench.submit()
        assert refused.returncode == 2
        assert "Slurm does not answer" in refused.stderr
        assert "the same command goes on later" in refused.stderr
        assert not list(bench.study.parent.glob("runs/[!.]*"))
        call(str(CLUSTER), "start", "CTL")
        assert bench.submit().returncode == 0
        wait_for(bench.training("d1"))
        call(str(CLUSTER), "stop", "CTL")
        told = bench.run("status", str(bench.sweep), "--json")
        assert told.returncode == 0
        assert "Slurm does not answer" in told.stderr
        assert json.loads(told.stdout)[0]["state"] in ("running", "done")
        assert bench.submit().returncode == 2
    finally:
        call(str(CLUSTER), "start", "CTL")
    done = bench.submit("--wait")
    assert done.returncode == 0, done.stderr
    assert bench.attempts() == {"d1": ["001.json"]}
    assert bench.weights()["d1"] == local.weights()["d1"]


def test_kept_weights_are_measured_by_a_pool(local: SlurmBench, tmp_path: Path) -> None:
    bench = SlurmBench(tmp_path / "b", depth="[1, 2, 3]", checkpoint=60)
    shutil.copytree(local.study.parent, bench.study.parent)
    options = ("--executor", "slurm", "--cells-per-job", "2", "--wait")
    done = bench.run("evaluate", "small", "--sampling-steps", "2", "--seed", "0,1", *options)
    assert done.returncode == 0, done.stderr
    assert len([row for row in bench.rows() if row["sampling_steps"] == "2"]) == 6
    for run in bench.runs().values():
        assert "slurm" in json.loads((run / "evaluating" / "001.json").read_text())
        assert not (run / "attempts" / "002.json").exists()
