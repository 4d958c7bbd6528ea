"""What docs/extend.md adds is taken from the page: from a user's own files, and built into a copy of the project."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text()
FILES = re.findall(r"<!-- file: (\S+)(?: \| (\S+))? -->\n```python\n(.*?)```", PAGE, re.DOTALL)
LINES = re.findall(r"<!-- line: (\S+) \| (.+?) -->\n```python\n(.*?)```", PAGE, re.DOTALL)
TABLE = re.compile(r"^[A-Z_]+ = \{\".*\}\n", re.MULTILINE)

SWEEP = """
[grid]
seed = [0]
[diffusion]
objective = "straight"
[data]
name = "stripes"
[training]
steps = 2
batch_size = 8
ema_window = 1.0
[recording]
loss_images = 8
[[evaluation]]
samples = 40
sampler = "euler"
sampling_steps = 2
extractor = "quarters"
[resources]
executor = "here"
"""
BLOCK = '[model]\ndepth = 1\nwidth = 8\npatch_size = 4\nblock = "parallel"\n'
NETWORK = '[model]\nnetwork = "mixer"\nhidden = 4\n'


def command(folder: Path, code: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run(folder: Path, code: Path) -> dict[str, str]:
    """Plan, launch and report; the one row of results.csv."""
    (plan,) = json.loads(command(folder, code, "plan", "s.toml", "--json"))
    assert plan["state"] == "missing"
    command(folder, code, "launch", "s.toml")
    study = folder / "results" / "s"
    (row,) = csv.DictReader((study / "results.csv").open())
    assert plan["id"] == row["cell"]
    assert plan["gmacs"] == pytest.approx(float(row["gmacs"]))
    assert row["data"] == "stripes"
    assert row["sampler"] == "euler"
    assert row["extractor"].startswith("quarters@")
    assert float(row["frechet"]) > 0
    assert next(folder.glob("results/runs/*/attempts/001.json")).read_text().count('"here"') == 1
    command(folder, code, "report", "s")
    assert "FD-quarters" in (study / "report.html").read_text()
    return row


def test_the_page_has_all_of_them() -> None:
    tables = {name for _, _, code in FILES for name in re.findall(r"^([A-Z_]+) = \{", code, re.MULTILINE)}
    assert tables == {"BLOCKS", "NETWORKS", "OBJECTIVES", "DATA_SETS", "EXTRACTORS", "EXECUTORS"}
    assert {where for _, where, _ in LINES} >= {"BLOCKS", "OBJECTIVES", "DATA_SETS", "EXTRACTORS", "EXECUTORS"}


@pytest.mark.parametrize("model", [BLOCK, NETWORK], ids=["block", "network"])
def test_from_files_beside_the_sweep(tmp_path: Path, model: str) -> None:
    for name, _, code in FILES:
        (tmp_path / name).write_text(code)
    (tmp_path / "s.toml").write_text(f"extend = {json.dumps([name for name, _, _ in FILES])}\n{model}{SWEEP}")
    row = run(tmp_path, ROOT)
    assert row["block"] == ("parallel" if model == BLOCK else "mixer")
    started = json.loads(next(tmp_path.glob("results/runs/*/attempts/001.started.json")).read_text())
    kept = {
        name: next(tmp_path.glob(f"results/runs/*/extend/{content}.py")) for name, content in started["extend"].items()
    }
    assert {name: path.read_text() for name, path in kept.items()} == {name: code for name, _, code in FILES}


def test_built_into_a_copy_of_the_project(tmp_path: Path) -> None:
    code = tmp_path / "project"
    for package in ("harness", "sweeps", "analysis"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    for _, place, text in FILES:
        if place:
            assert not (code / place).exists()
            (code / place).write_text(TABLE.sub("", text))
    for place, where, line in LINES:
        text = (code / place).read_text()
        name = re.escape(where)
        start = re.compile(rf"^{name} = (?:Kind\(\s*\"{name}\",\s*\{{|_table\()", re.MULTILINE)
        found = start.search(text) or re.search(rf"^.*{name}.*\n", text, re.MULTILINE)
        assert found, where
        before, after = text[: found.end()], text[found.end() :]
        (code / place).write_text(before.rstrip("\n") + "\n" + line + after.lstrip("\n"))
    (tmp_path / "s.toml").write_text(BLOCK + SWEEP)
    row = run(tmp_path, code)
    assert row["block"] == "parallel"
    assert 0 < float(row["sample_mean"]) < 255
    assert "Mean level" in (tmp_path / "results" / "s" / "report.html").read_text()
