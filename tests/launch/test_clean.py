"""What `clean` removes, and what it never removes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli import main as cli
from harness.launch import clean
from harness.processes import process_identity
from harness.runs.layout import EVALUATING
from harness.runs.state import Run
from harness.runs.study import Shared, Study
from harness.spec.cell import Cell
from sweeps.grid import load_sweep
from tests.commands import ROOT
from tests.runs.test_old_folders import OLD

GRID = "[grid]\nseed = {seeds}\n[model]\ndepth = 1\nwidth = 8\npatch_size = 4\n"
LATENTS = '[data]\nname = "fashion-mnist"\nvae = {{ kind = "trained", steps = {steps} }}\n'


class Lab:
    """Studies whose cells were launched, without training anything."""

    root = Path("results")

    def launched(self, name: str, seeds: list[int], more: str = "") -> dict[int, Run]:
        """Launch a sweep of these seeds as the study `name`; returns the runs by seed."""
        path = Path(f"{name}.toml")
        path.write_text(GRID.format(seeds=seeds) + more)
        study, runs = Study(self.root, name), {}
        cells = list(load_sweep(path).cells())
        study.save_sweep(path, {cell.id: label for label, cell in cells})
        for label, cell in cells:
            run = runs[cell.seed] = study.run(cell)
            run.write_cell(label, cell)
            if run.newest_attempt() is None:
                assert run.claim(1, {"process": process_identity(), "study": name}) is not None
                run.record(1, "ended", {"outcome": "done", "message": ""})
            run.train_log.write_text("x" * 1000)
        return runs

    def command(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["dit-harness", "clean", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.chdir(tmp_path)
    return Lab()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that lives, as a job does."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def there(runs: dict[int, Run]) -> list[int]:
    return [seed for seed, run in runs.items() if run.folder.exists()]


def test_what_no_study_lists_goes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = lab.launched("one", [0, 1, 2, 3])
    lab.launched("two", [3])
    lab.launched("one", [0])  # made smaller
    assert clean.leftovers(lab.root).size > 2000
    assert lab.command(monkeypatch, "--yes") == 0
    assert there(runs) == [0, 3]
    said = capsys.readouterr().out
    assert "2 cells that no study lists" in said
    assert "removed 2 cells" in said
    assert lab.command(monkeypatch) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_a_study_that_nobody_knows_is_bad_input(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.launched("one", [0])
    assert lab.command(monkeypatch, "nosuch") == 2
    assert capsys.readouterr().err.startswith("error: nosuch: no study of this name in results")
    assert lab.command(monkeypatch, "one") == 0


def test_nothing_goes_without_a_yes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = lab.launched("one", [0, 1])
    shutil.rmtree("results/one")
    monkeypatch.setattr("typer.confirm", lambda _: False)
    assert lab.command(monkeypatch, "one") == 0
    assert "nothing was removed" in capsys.readouterr().out
    assert there(runs) == [0, 1]


def test_nobody_answers(lab: Lab) -> None:
    runs = lab.launched("one", [0])
    shutil.rmtree("results/one")
    asked = [sys.executable, "-m", "harness.cli", "clean", "one"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("--yes removes without a question")
    assert there(runs) == [0]


def test_only_what_the_named_study_launched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = lab.launched("one", [0]) | lab.launched("two", [1])
    shutil.rmtree("results/one")
    shutil.rmtree("results/two")
    assert lab.command(monkeypatch, "two", "--yes") == 0
    assert there(runs) == [0]
    assert lab.command(monkeypatch, "one.toml", "--yes") == 0  # the sweep itself still lists it
    assert there(runs) == [0]


@pytest.mark.parametrize("track", ["attempts", EVALUATING])
def test_what_a_job_works_on_stays(
    track: str, lab: Lab, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = lab.launched("one", [0, 1])
    shutil.rmtree("results/one")
    claim = {"process": process_identity(process.pid), "study": "one"}
    assert runs[1].on(track).claim(2, claim) is not None  # type: ignore[arg-type]
    assert lab.command(monkeypatch, "--yes") == 0
    assert there(runs) == [1]


def test_what_is_claimed_or_listed_after_the_question_stays(
    lab: Lab, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = lab.launched("one", [0, 1, 2])
    shutil.rmtree("results/one")
    found = clean.leftovers(lab.root)
    assert runs[0].claim(2, {"process": process_identity(process.pid)}) is not None
    lab.launched("two", [1])
    removed = clean.remove(found, lab.root)
    assert there(runs) == [0, 1]
    assert removed.cells == 1
    assert len(removed.left) == 2


def test_studies_of_the_old_layout_keep_their_cells(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(OLD, "results")
    runs = list(Path("results/tiny/runs").iterdir())
    assert lab.command(monkeypatch, "--yes") == 0
    Path("results/tiny/sweep.toml").unlink()  # now nothing says what it lists
    assert lab.command(monkeypatch, "--yes") == 0
    assert all(run.exists() for run in runs)
    lab.launched("tiny", [7])  # another grid of that name
    assert lab.command(monkeypatch, "tiny", "--yes") == 0
    assert not any(run.exists() for run in runs)


def test_a_damaged_list_stops_it(lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs = lab.launched("one", [0]) | lab.launched("two", [1])
    shutil.rmtree("results/one")
    Path("results/two/cells.json").write_text("{")
    Path("results/two/sweep.toml").unlink()
    assert lab.command(monkeypatch, "--yes") == 2
    assert "results/two/cells.json: not valid JSON, so nothing can be removed" in capsys.readouterr().err
    assert there(runs) == [0, 1]


def test_latents_go_with_the_last_cell_that_reads_them(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.launched("one", [0], LATENTS.format(steps=10))
    lab.launched("two", [1], LATENTS.format(steps=20))
    lab.launched("three", [2], LATENTS.format(steps=20))

    def folders(name: str) -> list[Path]:
        cell: Cell = next(load_sweep(Path(f"{name}.toml")).cells()).cell
        shared, data = Shared(lab.root), cell.data.encoding_name
        return [shared.vae_folder(data), shared.latents_folder(data), shared.encoding_folder(data)]

    for folder in (*folders("one"), *folders("two")):
        folder.mkdir(parents=True)
    shutil.rmtree("results/one")
    shutil.rmtree("results/two")
    assert lab.command(monkeypatch, "--yes") == 0
    assert not any(folder.exists() for folder in folders("one"))
    assert all(folder.exists() for folder in folders("two"))  # three reads them, too


def test_an_interrupted_removal_is_ended(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = lab.launched("one", [0])
    shutil.copytree(runs[0].folder, torn := runs[0].folder.with_name(f".removed-{runs[0].cell_id}"))
    assert lab.command(monkeypatch, "--yes") == 0
    assert not torn.exists()
    assert there(runs) == [0]
