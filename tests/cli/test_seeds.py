"""What `plan` says of a sweep's seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.small_study import Bench, sweep_text


def said(bench: Bench) -> str:
    done = bench.run("plan", str(bench.sweep))
    assert done.returncode == 0, done.stderr
    lines = [" ".join(part.split()) for part in done.stdout.split("\n\n")]
    return " ".join(lines)


@pytest.mark.parametrize(
    ("grid", "line"),
    [
        ("depth = [1, 2]", "1 seed a model: no gap can be told from noise; 3 seeds show gaps from 4 % on, at 1.3 %"),
        ("depth = [1, 2]\nseed = [0, 1]", "2 seeds a model: gaps below 7.3 % cannot be told from noise, at 1.3 %"),
        ('"seeds.noise" = [0, 1, 2, 3, 4]\ndepth = [1]', "5 seeds a model: gaps below 2.6 % cannot be told from noise"),
    ],
)
def test_plan_says_what_the_seeds_show(tmp_path: Path, grid: str, line: str) -> None:
    text = said(Bench(tmp_path, sweep_text(grid)))
    assert line in text
    assert "between trainings (assumed, as FID in the literature; small models are noisier)." in text


def test_what_the_report_measured_counts(tmp_path: Path) -> None:
    bench = Bench(tmp_path, sweep_text("seed = [0, 1]", "depth = 1\nwidth = 16\npatch_size = 4"))
    bench.study.mkdir(parents=True)
    parts = {"training": {"sd": 0.03}, "sampling": {"sd": 0.04}}
    for noise, line in (
        ([{"column": "frechet", "together": parts}], "gaps below 28 % cannot be told from noise, at 5 %"),
        ([{"column": "frechet", "together": {**parts, "training": None}}], "at 1.3 % between trainings (assumed,"),
        ([{"column": "loss_heldout", "together": parts}], "at 1.3 % between trainings (assumed,"),
        ("a text", "at 1.3 % between trainings (assumed,"),
    ):
        (bench.study / "fits.json").write_text(json.dumps({"noise": noise}))
        assert line in said(bench)


def test_a_sweep_of_losses_has_no_line_without_a_report(tmp_path: Path) -> None:
    text = sweep_text("seed = [0, 1]", "depth = 1\nwidth = 16\npatch_size = 4")
    bench = Bench(tmp_path, text[: text.index("[[evaluation]]")])
    assert "seeds a model" not in said(bench)
