"""The disk fills up while cells train: they fail clearly, what was written stays good, and --retry goes on from it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import SafetensorError
from safetensors.torch import save_file

from harness.cli.tables import troubles
from harness.runs.cellruns import cell_runs
from harness.runs.state import Run, State
from harness.training import checkpoint
from sweeps.grid import load_sweep
from tests.chaos.lab import SWEEP, Decide, Lab, warm
from tests.chaos.rounds import check_equal, quiet

pytestmark = pytest.mark.xdist_group("chaos")

ONE_CELL = SWEEP.replace("depth = [1, 2]", "depth = [1]")

#: The state after this step is the last that fits.
LAST_GOOD = 3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    warm()
    return quiet(tmp_path_factory.mktemp("undisturbed"), ONE_CELL)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 16 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def filling(disk: Path, room: int) -> Decide:
    """Fill the disk up to `room` bytes once a state is written; never kills."""

    def decide(name: str, count: int) -> bool:
        done = any(disk.rglob(f"state-{LAST_GOOD:08d}.safetensors"))
        if name == "job state renamed" and done and not (disk / "ballast").exists():
            descriptor = os.open(disk / "ballast", os.O_WRONLY | os.O_CREAT)
            with contextlib.suppress(OSError):
                while True:
                    os.write(descriptor, bytes(4096))
            os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - room))
            os.close(descriptor)
        return False

    return decide


def check_failed_clearly(lab: Lab) -> None:
    """Every cell that met the full disk says so, and has a good state to go on from."""
    lab.check_whole()
    items = cell_runs(load_sweep(lab.sweep), lab.study)
    assert {item.now.state for item in items} == {State.FAILED}, lab.output()
    for item in items:
        assert "cannot be written: the disk is full (" in item.now.message
        assert "MB free" in item.now.message
        (attempt,) = item.run.attempts()
        assert attempt.ended is not None
        assert attempt.ended["cause"] == "disk"
        newest = item.run.state_files()[0]
        assert checkpoint.load(newest)[1]["step"] == LAST_GOOD
        assert not list((item.run.folder / "checkpoints").glob(".*")), "no half file"
    (trouble,) = troubles(items)
    assert str(trouble).startswith("1 cell: disk (")
    assert "make room; then --retry" in str(trouble)


@pytest.mark.parametrize("room", [0, 20_000])
def test_a_disk_that_is_really_full(undisturbed: Lab, small_disk: Path, room: int) -> None:
    lab = Lab(small_disk, ONE_CELL)
    assert lab.launch(filling(small_disk, room)) == 1, lab.output()
    check_failed_clearly(lab)
    (small_disk / "ballast").unlink()
    assert lab.launch() == 1, "what failed is not run again unless asked to"
    assert lab.launch(retry=True) == 0, lab.output()
    check_equal(lab, undisturbed)
    for folder in (run.folder for run in lab.runs()):
        assert [attempt.outcome for attempt in Run(folder).attempts()] == ["failed", "done"]


def test_no_space_for_a_checkpoint(undisturbed: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same wherever nothing can be mounted: the write of a state breaks off after half of it."""

    def full(tensors: object, path: Path, metadata: object) -> None:
        save_file(tensors, path, metadata=metadata)  # type: ignore[arg-type]
        if f"state-{LAST_GOOD + 1:08d}" in path.name:
            os.truncate(path, path.stat().st_size // 2)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)  # the forks inherit it
    lab = Lab(tmp_path, ONE_CELL)
    assert lab.launch() == 1
    check_failed_clearly(lab)
    monkeypatch.undo()
    assert lab.launch(retry=True) == 0, lab.output()
    check_equal(lab, undisturbed)


def test_a_launcher_on_a_full_disk_says_so_in_one_line(small_disk: Path) -> None:
    lab = Lab(small_disk)
    (small_disk / "ballast").write_bytes(bytes(4096))
    with contextlib.suppress(OSError), (small_disk / "ballast").open("ab", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "launch", str(lab.sweep), "--results", str(lab.study.root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "sweep.toml: cannot be written: the disk is full (" in last
    assert "Traceback" not in done.stderr
