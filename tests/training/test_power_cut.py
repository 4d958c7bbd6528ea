"""After a power cut: what makes work "not needed again" is never on the disk before what it rests on.

A real file system in a file, copied while it is in use and mounted again: its journal is replayed, as after a power
cut. Needs root and loop devices.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.data.sources import load
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.data import Data
from harness.spec.resources import Recording
from harness.training.hooks import Hooks, Report, StoppedError
from harness.training.loop import Options, train

CELL = Cell.model_validate(
    {"model": {"depth": 1, "width": 8, "patch_size": 4}, "training": {"steps": 6, "batch_size": 8}}
)
LOGGED = [1, 1, 2, 3, 3, 4, 5, 6, 6]  # the training loss of every step, the denoising loss at the first and kept ones


@contextmanager
def mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A file system in a file, and where it is mounted."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", image], check=True, capture_output=True)
        with mounted(image, tmp_path / "disk") as folder:
            yield image, folder
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system in a file can be made here: {error}")


def go(run: Run, after: Callable[[int], None] = lambda step: None, stop_at: int | None = None) -> None:
    seen, lock = {"step": 0}, threading.Lock()

    @contextmanager
    def writing() -> Iterator[None]:
        with lock:
            yield

    def report(value: Report) -> None:
        seen["step"] = value["done"]
        with lock:  # a copy of an image that changes meanwhile is no moment of it
            after(value["done"])

    options = Options("cpu", [3, 6], Recording(loss_images=8), checkpoint_seconds=0)
    hooks = Hooks(writing=writing, should_stop=lambda: seen["step"] == stop_at, report=report)
    train(CELL, load(Data()), run, options, hooks)


def test_what_is_on_the_disk_after_a_power_cut_is_enough(disk: tuple[Path, Path], tmp_path: Path) -> None:
    image, folder = disk
    run = Run(folder / CELL.id)
    run.folder.mkdir()
    cuts: list[Path] = []

    def cut(step: int) -> None:
        cuts.append(tmp_path / f"cut-{step}")
        shutil.copyfile(image, cuts[-1])

    go(run, cut)
    cut(7)
    for number, copy in enumerate(cuts, 1):
        with mounted(copy, tmp_path / "replayed") as replayed:
            found = Run(replayed / CELL.id)
            states = [int(path.stem[-8:]) for path in found.state_files()]
            reached = max([0, *states, *found.weights_steps()])
            steps = [row["step"] for row in TrainLog(found).rows()]
            assert [step for step in steps if step <= reached] == [step for step in LOGGED if step <= reached]
            assert reached >= number - 1, "each step wrote a state or weights, that of the last one may be under way"
            found.folder.mkdir(exist_ok=True)
            go(found)
            assert [row["step"] for row in TrainLog(found).rows()] == LOGGED
            assert found.weights_file(6).read_bytes() == run.weights_file(6).read_bytes()


@pytest.mark.parametrize("damage", ["removed", "cut short", "emptied"])
def test_a_log_that_does_not_reach_the_state_is_made_whole(tmp_path: Path, damage: str) -> None:
    run = Run(tmp_path / CELL.id)
    run.folder.mkdir()
    with pytest.raises(StoppedError):
        go(run, stop_at=4)
    text = run.train_log.read_text()
    run.train_log.write_text({"cut short": text[: len(text) // 3]}.get(damage, ""))
    if damage == "removed":
        run.train_log.unlink()
    go(run)
    assert [row["step"] for row in TrainLog(run).rows()] == LOGGED
