"""A step before the end of a falling learning rate is no end of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.answers import answers
from analysis.frontier import Frontier, checkpoints, find_frontier
from analysis.horizon import horizon_warning
from analysis.page import Page
from analysis.report import _begin
from analysis.slices import LOSS, per_shape, scaling_slices
from analysis.table import load_study
from harness.errors import InputError

from .conftest import SHAPES, result_row, write_results


def row(depth: int, width: int, patch: int, step: int, horizon: int | str, **changes: Any) -> dict[str, Any]:
    cell = f"{depth}-{width}-{patch}-{horizon}"
    recipe = "schedule=cosine" if horizon else ""
    return result_row(depth, width, patch, step=step, cell=cell, horizon=horizon, recipe=recipe, **changes)


def cosine(folder: Path) -> pd.DataFrame:
    """Nine shapes, each trained to its end in 500 and in 1,000 steps; the longer one was measured at 500, too."""
    steps = ((500, 500), (500, 1000), (1000, 1000))
    return load_study(write_results(folder, [row(*shape, *pair) for shape in SHAPES for pair in steps]))


def frontier_of(table: pd.DataFrame) -> Frontier:
    (piece,) = scaling_slices(table)
    return find_frontier(checkpoints(piece), piece.column)


def test_fits_and_frontier_take_ends_alone(tmp_path: Path) -> None:
    table = cosine(tmp_path)
    for column in ("frechet", LOSS):
        (piece,) = scaling_slices(table, column)
        assert set(zip(piece.checkpoints["step"], piece.checkpoints["horizon"], strict=True)) == {
            (500, 500), (1000, 1000)
        }  # fmt: skip
        assert len(per_shape(piece.checkpoints, column)) == 2 * len(SHAPES)
    assert frontier_of(table).checkpoints == 2 * len(SHAPES)


def test_steps_of_two_horizons_are_no_seeds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"differ in horizon \(1000, 500\).*analysis\.horizon\.ends first"):
        per_shape(cosine(tmp_path))


def test_the_report_says_what_is_left_out(tmp_path: Path) -> None:
    table = cosine(tmp_path)
    warning = horizon_warning(table) or ""
    assert warning.startswith("9 rows of 9 cells are from before the end of a training whose learning rate falls to 0")
    told = {answer.question: answer.said for answer in answers(table, pd.DataFrame())}
    assert "the learning rate falls to 0" in told["Is it converged?"]
    page = Page(tmp_path, "title", "lead", fits={})
    _begin(page, table)
    assert page.warnings == [warning]


def test_with_a_constant_rate_every_step_is_an_end(tmp_path: Path) -> None:
    rows = [row(*shape, step, "") for shape in SHAPES for step in (500, 1000)]
    table = load_study(write_results(tmp_path, rows))
    assert horizon_warning(table) is None
    assert horizon_warning(table.drop(columns="horizon")) is None  # of an older version
    assert frontier_of(table).checkpoints == 2 * len(SHAPES)
