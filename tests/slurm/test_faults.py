"""What a real Slurm, its users and its silence do to a study."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.slurm.test_slurm import CLUSTER, SlurmBench, call, nothing_left, own_cluster, pytestmark
from tests.small_study import wait_for

__all__ = ["nothing_left", "pytestmark"]  # this module is on Slurm, too, and leaves nothing there


def test_names_and_comments_are_anybodys(tmp_path: Path) -> None:
    bench = SlurmBench(tmp_path / "b", steps=1_000_000)  # trains until it is cancelled
    theirs = ["sbatch", "--parsable", "--hold", "--job-name=dit-small", "--wrap=true"]
    held = [call(*theirs, f"--comment={words}").strip() for words in ("x|y||", "two\nlines", "naïve ☃", "")]
    assert bench.submit().returncode == 0
    wait_for(bench.training("d1"))
    job = bench.job("d1")
    for change in (["comment=not|ours\n|"], ["name=other"]):
        call("scontrol", "update", f"jobid={job}", *change)
        assert bench.states() == {"d1": "running"}
        again = bench.submit()
        assert "submitted as" not in again.stdout, "nothing is submitted twice"
    cancelled = bench.run("cancel", str(bench.sweep))
    assert "1 cell asked to stop" in cancelled.stdout, cancelled.stderr
    wait_for(lambda: bench.states() == {"d1": "cancelled"}, 30)
    call("scancel", *held)
    assert bench.attempts() == {"d1": ["001.json"]}


def test_the_jobs_run_though_the_launcher_was_killed_before_it_heard_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ends of it: launch/test_slurm_faults.py."""
    bench = SlurmBench(tmp_path / "b", depth="[1, 2]", steps=10, checkpoint=60)
    real = call("sh", "-c", "command -v sbatch").strip()
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\n{real} "$@" >/dev/null\nkill -9 $PPID; sleep 1\n')
    sbatch.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        launcher = bench.start("launch", str(bench.sweep), "--executor", "slurm")
        launcher.communicate(timeout=120)
    assert launcher.returncode == -signal.SIGKILL
    done = bench.submit("--wait")
    assert done.returncode == 0, done.stderr
    assert "submitted as" not in done.stdout, "nothing is submitted twice"
    assert bench.outcomes() == {"d1": ["done"], "d2": ["done"]}


@own_cluster
@pytest.mark.parametrize("daemon", ["CTL"])  # without munge: launch/test_slurm_faults.py
def test_the_last_cell_ends_while_slurm_is_away(tmp_path: Path, daemon: str) -> None:
    bench = SlurmBench(tmp_path / "b", steps=300)
    launcher = bench.start("launch", str(bench.sweep), "--executor", "slurm", "--wait")
    try:
        wait_for(lambda: any(bench.folder.rglob("state-*.safetensors")))
        call(str(CLUSTER), "stop", daemon)
        wait_for(lambda: bench.outcomes() == {"d1": ["done"]}, 60)
        out, err = launcher.communicate(timeout=60)  # not only after Slurm has come back
        assert launcher.returncode == 0, err
        assert "submitted as" in out
    finally:
        launcher.kill()
        call(str(CLUSTER), "start", daemon)
