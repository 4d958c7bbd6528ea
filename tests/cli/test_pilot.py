"""The verb pilot, on cells of two steps that are trained in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.main import app
from tests.launch.test_own_executor import STUB

pytestmark = pytest.mark.usefixtures("users_files")

SWEEP = """
extend = ["here.py"]
[grid]
width = [8, 16]
[model]
depth = 1
heads = 1
patch_size = 4
[training]
steps = 32
batch_size = 8
learning_rate = 1e-2
ema_window = 1.0
[recording]
loss_images = 8
[[evaluation]]
samples = 330
[resources]
executor = "stub"
"""


def pilot(folder: Path, *options: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["pilot", str(folder / "s.toml"), "--results", str(folder / "r"), *options])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")  # no cell of a table is wrapped
    (tmp_path / "s.toml").write_text(SWEEP)
    (tmp_path / "here.py").write_text(STUB)
    return tmp_path


def test_a_pilot_is_a_study_that_ends_with_the_law(folder: Path) -> None:
    code, out, _ = pilot(folder, "--rates", "1e-4,1e-2,1e35")
    assert code == 0
    assert "pilot s-pilot: widths 8, 16, 12 trainings, about" in out
    assert out.count("diverged") == 2
    assert "the next higher rate diverges: no parabola" in out
    assert "no law: the best rate is the same at every width, 0.01" in out
    study = folder / "r" / "s-pilot"
    assert {path.name for path in study.iterdir()} >= {"sweep.toml", "here.py", "cells.json", "results.csv"}
    before = sorted((folder / "r" / "runs").rglob("attempts/*.json"))
    code, out, _ = pilot(folder, "--rates", "1e-4,1e-3,1e-2")  # of which two are done
    assert code == 0
    assert "no law: the highest tried is the best at width 8" in " ".join(out.split())
    assert "again with: --rates 0.0001,0.001,0.01,0.03,0.09" in out
    assert len(list((folder / "r" / "runs").glob("*/cell.json"))) == 16
    assert set(before) <= set((folder / "r" / "runs").rglob("attempts/*.json"))
