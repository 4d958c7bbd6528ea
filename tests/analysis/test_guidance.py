"""The scale that is chosen on one sampling seed, and what the report shows of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.figures.guidance import chosen_scales
from analysis.figures.style import CannotDrawError
from analysis.guidance import choices, without_searches
from analysis.printed_guidance import choice_table
from analysis.report import write_report
from analysis.table import load_study
from harness.runs.columns import RESULT_COLUMNS
from tests.analysis.conftest import SHAPES, result_row, write_csv

SCALES = (1.0, 2.146, 1.708, 1.5, 1.466)


def measured(shape: tuple[int, int, int], scale: float, seed: int, shift: float = 0.0) -> dict[str, Any]:
    """A row; the best scale is 1.5, and another seed scores a little more."""
    return result_row(
        *shape,
        guidance=scale,
        guidance_channels="all" if scale != 1 else "",
        sampling_seed=seed,
        evaluation=f"{seed}-{scale}",
        frechet=10 + 20 * (scale - 1.5) ** 2 + seed + shift,
    )


def searched(shapes: Any = SHAPES) -> list[dict[str, Any]]:
    """Rows of a search: seed 0 chooses, 1 and 2 report."""
    found = []
    for at, shape in enumerate(shapes):
        found += [measured(shape, scale, 0, at) for scale in SCALES]
        found += [measured(shape, scale, seed, at) for seed in (1, 2) for scale in (1.0, 1.5)]
    return found


def loaded(folder: Path, rows: list[dict[str, Any]]) -> pd.DataFrame:
    write_csv(folder / "results.csv", list(RESULT_COLUMNS), rows)
    return load_study(folder)


def test_the_seed_with_most_scales_chooses_and_others_report(tmp_path: Path) -> None:
    table = loaded(tmp_path, searched(SHAPES[:1]))
    (found,) = choices(table)
    assert (found.scale, found.seed, found.flag, found.is_search) == (1.5, 0, "", True)
    assert found.reports == ((16.0, 11.0), (17.0, 12.0))
    (row,) = choice_table([found]).rows
    assert row == ("d2-w32-p4", "1.5", "16.5", "0.71", "11.5", "0.71")
    assert without_searches(table, [found])["guidance"].tolist() == [1.0, 1.0, 1.0]


def test_a_scale_at_an_end_is_flagged(tmp_path: Path) -> None:
    rows = [measured(SHAPES[0], scale, seed) for scale in (1.0, 1.2, 1.4) for seed in (0, 1)]
    (found,) = choices(loaded(tmp_path, rows))
    assert found.flag == "the largest tried: the best may lie beyond"
    assert not found.is_search, "a grid, whose rows stay"
    table = load_study(tmp_path)
    assert len(without_searches(table, [found])) == len(table)
    rows = [{**row, "frechet": 10 + row["guidance"]} for row in rows]
    (found,) = choices(loaded(tmp_path, rows))
    assert (found.scale, found.flag) == (1.0, "no guidance is best")
    assert found.reports == ((11.0, 11.0),)


@pytest.mark.parametrize(
    "rows",
    [
        [measured(SHAPES[0], scale, 0) for scale in SCALES],  # nothing reports
        [measured(SHAPES[0], scale, seed) for scale in (1.0, 1.5) for seed in (0, 1)],  # two scales
        [measured(SHAPES[0], scale, 0) for scale in SCALES] + [measured(SHAPES[0], 1.5, 1)],  # not without guidance
    ],
)
def test_where_nothing_is_chosen(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert not choices(loaded(tmp_path, rows))
    with pytest.raises(CannotDrawError):
        chosen_scales([], "")


def test_the_figure_marks_the_chosen_scale(tmp_path: Path) -> None:
    found = choices(loaded(tmp_path, searched(SHAPES[:2])))
    axes = chosen_scales(found, "").axes[0]
    curves = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == len(SCALES)]
    rings = [line for line in axes.lines if np.asarray(line.get_xdata()).tolist() == [1.5]]
    assert (
        [np.asarray(line.get_ydata()).min() for line in curves]
        == [float(np.asarray(line.get_ydata())[0]) for line in rings]
        == [10.0, 11.0]
    )


def test_the_report_shows_the_choice_and_fits_without_the_search(tmp_path: Path) -> None:
    table = loaded(tmp_path, searched())
    write_report(tmp_path)
    fits = json.loads((tmp_path / "fits.json").read_text())
    assert [one["scale"] for one in fits["guidance"]] == [1.5] * len(SHAPES)
    assert "guidance-best" in fits["figures"]
    assert len(fits["slices"]) == 1
    assert not fits["warnings"], "one way of measuring is left"
    page = (tmp_path / "report.html").read_text()
    assert "At best scale" in page
    assert len(table) == 9 * len(SHAPES)
