"""`dit-harness recommend`: what a budget buys, by every law, as a sweep that `plan` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.spec.model import DiTSpec
from sweeps.grid import load_sweep
from tests.analysis.conftest import SHAPES, result_row, write_results
from tests.commands import ROOT, run_here

PAPER, SWEEP = str(ROOT / "results" / "paper"), str(ROOT / "sweeps" / "dit-paper.toml")
ASK = ("recommend", PAPER, "--budget", "7.3e19")


def test_the_published_numbers_recommend_the_largest_model_and_its_sweep(tmp_path: Path) -> None:
    done = run_here(tmp_path, *ASK, "--without", "DiT-XL/2", "--from", SWEEP, "-o", "next.toml")
    assert done.returncode == 0, done.stderr
    for text in ("XL-2, 400,000 steps", "params and tokens", "15.5 to 23.9", "power law", "Which run tells most"):
        assert text in done.stdout
    ((_, cell),) = load_sweep(tmp_path / "next.toml").cells()
    wanted = {c.id for name, c in load_sweep(Path(SWEEP)).cells() if name == "XL-2"}
    assert {cell.id} == wanted
    assert load_sweep(tmp_path / "next.toml").evaluations == load_sweep(Path(SWEEP)).evaluations
    again = run_here(tmp_path, *ASK, "--from", SWEEP, "-o", "next.toml")
    assert (again.returncode, "it exists" in again.stderr) == (2, True)


def test_a_time_is_what_the_largest_model_needed(tmp_path: Path) -> None:
    rows = [result_row(*shape, train_seconds=100.0) for shape in SHAPES]
    write_results(tmp_path / "theirs", rows)
    done = run_here(tmp_path, "recommend", "theirs", "--budget", "200s")
    assert done.returncode == 0, done.stderr
    most = max(rows, key=lambda row: row["gmacs"])
    assert f"What {2 * 2e9 * most['train_gmacs']:.3g} operations" in done.stdout
    assert f"{2 * most['gmacs']:.3g} GMACs" in done.stdout  # twice as large a model for as long


def test_new_models_have_the_proportions_of_the_sweep(tmp_path: Path) -> None:
    write_results(tmp_path / "theirs", [result_row(*shape) for shape in SHAPES])
    quick = str(ROOT / "sweeps" / "quickstart.toml")
    arguments = ("recommend", "theirs", "--budget", "2e14", "--from", quick, "-o", "next.toml")
    done = run_here(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    for _, cell in load_sweep(tmp_path / "next.toml").cells():
        assert isinstance(cell.model, DiTSpec)
        assert cell.model.width / cell.model.heads == 16
        assert cell.model.depth == pytest.approx(cell.model.width / 16, abs=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "4h"), "--budget: 4h: the study has no times of training; allowed: operations, such as 1e18"),
        (("--budget", "nan"), "--budget: 'nan'; allowed: operations such as 1e18, or a time"),
        (("--budget", "1e40"), "allowed: up to 1e+30"),
        (("--budget", "1e19", "--without", "XXL"), "--without XXL: no such model; allowed: DiT-"),
        (("--budget", "1e19", "-o", "next.toml"), "--output: next.toml: needs --from"),
        (("--budget", "1e3", "--from", SWEEP), "less than the smallest DiT"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run_here(tmp_path, "recommend", PAPER, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
