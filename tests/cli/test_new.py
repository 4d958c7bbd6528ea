"""The verb new: from a folder to a sweep file that runs as it is. Speeds are made up, so that nothing is timed."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import sweeps.proposal
from harness.launch import probe
from harness.launch.probe import ProbeJob
from harness.model.cost import count_cell
from harness.runs.probes import Probe, Spread, write_probe
from tests.commands import run_here
from tests.data.test_survey import odd_pictures, pictures
from tests.launch.test_own_executor import STUB

pytestmark = pytest.mark.usefixtures("users_files")


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Multiply-adds a second that probes find, in 1e9; to be changed by a test."""
    rate = [20.0]

    def run_probes(jobs: Iterable[ProbeJob]) -> Iterator[Probe]:
        for job in jobs:
            image = count_cell(job.cell).macs / 1e9 / rate[0]
            step = 3 * job.cell.training.batch_size * image
            found = Probe(Spread(step, step, step), Spread(image, image, image), 1)
            write_probe(job.shared, job.shape, found, "")
            yield found

    monkeypatch.setattr(probe, "run_probes", run_probes)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return rate


@pytest.mark.usefixtures("speed")
def test_a_folder_becomes_a_sweep_that_the_plan_prices_alike(tmp_path: Path) -> None:
    pictures(tmp_path / "my birds" / "owl", 300)
    pictures(tmp_path / "my birds" / "wren", 60, seed=1)
    odd_pictures(tmp_path / "my birds" / "owl")
    (tmp_path / "sweeps").mkdir()
    done = run_here(tmp_path, "new", "my birds", "--hours", "0.25")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    for part in (
        "366: 330 to learn from, 36 held out",
        "2: owl 306, wren 60",
        "5.1 to 1",
        "half of them 10 or less",
        "1 no readable image (owl/broken.png)",
        "1 pixel mode F",
        "note: 330 images are few",
        "note: samples have classes as frequent",
        "dit-harness plan sweeps/my-birds.toml dit-harness launch sweeps/my-birds.toml dit-harness report my-birds",
    ):
        assert part in said
    document = tomllib.loads((tmp_path / "sweeps" / "my-birds.toml").read_text())
    assert document["data"]["resolution"] == 8
    planned = run_here(tmp_path, "plan", "my-birds")
    assert planned.returncode == 0
    assert "measured by a probe" in planned.stdout
    assert "a probe and assumed" not in planned.stdout
    again = run_here(tmp_path, "new", "my birds", "--hours", "1")
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("error: sweeps/my-birds.toml: is there already")


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize("classes", [(), ("--classes", "0")])
def test_a_proposal_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...]) -> None:
    monkeypatch.setattr(sweeps.proposal, "MOST_EPOCHS", 1)
    for kind in ("a", "b"):
        pictures(tmp_path / "own" / kind, 20, seed=ord(kind))
    assert run_here(tmp_path, "new", "own", "--hours", "100", *classes).returncode == 0
    text = (tmp_path / "own.toml").read_text()
    assert ("labels = false" in text) == bool(classes)
    (tmp_path / "stub.py").write_text(STUB)  # in this process; without it the file runs in local slots
    here = text.replace("title =", 'extend = ["stub.py"]\ntitle =').replace(
        "[resources]", '[resources]\nexecutor = "stub"'
    )
    here = here.replace('kind = "trained"', 'kind = "trained", steps = 2').replace("samples = 320", "samples = 40")
    (tmp_path / "own.toml").write_text(here + "[recording]\nloss_images = 4\n")
    done = run_here(tmp_path, "launch", "own.toml", "--cell", "d2-w64-p?-seed0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "results" / "own" / "results.csv").exists()


def _classes_of_one(folder: Path) -> None:
    pictures(folder / "a", 3)
    pictures(folder / "b", 1)


def _junk(folder: Path) -> None:
    folder.mkdir()
    (folder / "1.png").write_bytes(b"junk")
    (folder / "2.png").write_bytes(b"more")


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda f: None, (), "x: no such folder"),
        (lambda f: f.mkdir(), (), "x: no images; it should hold one subfolder a class, with the images inside, or"),
        (lambda f: pictures(f, 1), (), "x: one image; needed: two at least"),
        (_classes_of_one, (), "1 of 2 classes have no held-out image: b; without train/ and val/ a class needs two"),
        (lambda f: pictures(f / "y" / "a", 2), (), "give the folder whose subfolders hold the images, such as x/y"),
        (_junk, (), "2 of 2 files are no readable images"),
        (lambda f: pictures(f, 40), ("--hours", "1e-5"), "--hours 1e-05: the smallest study takes about"),
        (lambda f: pictures(f, 40), ("--hours", "nan"), "--hours: nan; allowed"),
        (lambda f: pictures(f, 40), ("--hours", "1", "--gpu-hours", "1"), "give one of them"),
        (lambda f: pictures(f, 40), ("--classes", "3"), "--classes: 3; allowed: 0, or the 1 of the folder"),
        (lambda f: pictures(f, 40), ("-o", "x"), "--output: x; allowed: a name that ends in .toml"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, make: Callable[[Path], object], options: tuple[str, ...], message: str
) -> None:
    make(tmp_path / "x")
    done = run_here(tmp_path, "new", "x", *options)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("read ", "probes "))]
    assert len(errors) == 1
    assert message in errors[0]
    assert not (tmp_path / "x.toml").exists()


def test_gpu_hours_are_of_a_gpu_that_need_not_be_here(tmp_path: Path, speed: list[float]) -> None:
    speed[0] = 1e-9  # nothing of this machine counts
    pictures(tmp_path / "x", 40)
    done = run_here(tmp_path, "new", "x", "--gpu-hours", "0.1")
    assert done.returncode == 0, done.stderr
    assert "of one GPU (assumed)" in " ".join(done.stdout.split())
