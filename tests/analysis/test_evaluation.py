"""What the distances are worth, and memorisation: drawn where it was measured, left out with its reason elsewhere."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.figures.evaluation import distance_against_samples
from analysis.figures.scaling import bubbles, metric_against_gflops, sampling_compute
from analysis.page import Page
from analysis.printed import seed_table
from analysis.sections.evaluation import evaluation
from analysis.slices import scaling_slices
from analysis.study import fit_slice
from analysis.table import load_nested, load_study
from harness.runs.columns import NESTED_COLUMNS

from .conftest import SHAPES, result_row, write_csv, write_results

COUNTS = (150, 300, 600, 900, 1200, 1500)


def measured_row(shape: tuple[int, int, int], **changes: Any) -> dict[str, Any]:
    row = result_row(*shape, **changes)
    distance = row["frechet"]
    return row | {
        "frechet_mean_term": distance / 3, "frechet_cov_term": distance / 1.5, "frechet_bias": 0.5,
        "frechet_infinity": distance - 0.5, "frechet_infinity_se": 0.01, "frechet_folds_mean": distance + 2,
        "frechet_folds_sd": 0.2, "frechet_fold_samples": 300, "frechet_floor": 1.25, "frechet_train": distance,
        "frechet_heldout": distance * 1.1,
    }  # fmt: skip


def write_measured(folder: Path) -> pd.DataFrame:
    rows = [measured_row(shape) for shape in SHAPES]
    nested = [
        {**{k: row[k] for k in ("study", "cell", "name", "step", "evaluation")}, "samples": n,
         "frechet": row["frechet"] - 0.5 + 0.5 * 1500 / n}
        for row in rows for n in COUNTS
    ]  # fmt: skip
    write_csv(folder / "nested.csv", list(NESTED_COLUMNS), nested)
    return load_study(write_results(folder, rows))


def points_of(line: Line2D) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where it goes: x and y."""
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def page_of(folder: Path, table: pd.DataFrame) -> Page:
    page = Page(folder, "", "")
    evaluation(page, table, load_nested(folder))
    page.finish()
    return page


def test_what_was_measured_is_drawn(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_measured(tmp_path))
    (section,) = page.sections
    assert [picture.name for picture in section.pictures] == ["samples-n", "memorisation"]
    worth, memory = section.tables
    assert {"Bias at N", "At N = ∞", "SD of folds", "N of a fold", "Floor"} <= set(worth.columns)
    assert memory.columns[2:4] == ("To train", "To held-out")
    assert ("Memorisation: the share of copies", "it was not measured") in page.omitted
    text = (tmp_path / "figures" / "samples-n.svg").read_text()
    for what in ("Samples N (the axis is 1/N)", "∞", "1,500", "limit"):
        assert what in text


def test_what_was_not_measured_is_left_out_with_its_reason(make_study: Callable[..., Path]) -> None:
    folder = make_study(extras=False)
    page = page_of(folder, load_study(folder))
    section = page.sections[0]
    assert [section.paragraphs, section.pictures, section.tables] == [[], [], []]
    reasons = dict(page.omitted)
    assert reasons["The FD-digits-cnn against the number of samples"] == "there is no nested.csv, or it has no rows"
    assert reasons["Bias, spread and floor of the distance"] == "they were not measured"


def test_the_limit_is_where_the_line_meets_infinity(tmp_path: Path) -> None:
    table = write_measured(tmp_path)
    about = table[["cell", "size", "depth", "width", "patch_size", "frechet_infinity"]]
    figure = distance_against_samples(load_nested(tmp_path).merge(about, on="cell"), "FD", "")
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert len(dashed) == len(SHAPES)
    for line, row in zip(dashed, table.sort_values("name").itertuples(), strict=False):
        x, y = points_of(line)
        assert x[0] == 0
        assert y[0] in set(table["frechet_infinity"])
        assert (y[1] - y[0]) / (x[1] - x[0]) == pytest.approx(0.5 * 1500), row  # the law the counts were made by


def test_the_floor_is_drawn_with_the_distance(tmp_path: Path) -> None:
    table = write_measured(tmp_path)
    figure = metric_against_gflops(table, "FD", "")
    assert "floor 1.25: as many real images against other real ones" in figure.axes[0].get_title(loc="left")
    assert [points_of(line)[1][0] for line in figure.axes[0].lines if line.get_label() == "floor"] == [1.25]


def test_sampling_seeds_are_averaged_never_chosen(tmp_path: Path) -> None:
    rows = [
        result_row(*shape, evaluation=f"{n} {seed}", sampling_steps=n, sampling_seed=seed, frechet=100 / n + seed)
        for shape in SHAPES[:4] for n in (10, 50) for seed in (0, 4)
    ]  # fmt: skip
    table = load_study(write_results(tmp_path, rows))
    figure = sampling_compute(table, "FD", "")
    lines = [line for line in figure.axes[0].lines if len(points_of(line)[1]) == 2 and line.get_linestyle() == "-"]
    assert len(lines) == 4
    assert all(list(points_of(line)[1]) == [12, 4] for line in lines)
    assert len(figure.axes[0].collections) == 4  # bars
    guided = sampling_compute(table.assign(guidance=4.0, guidance_channels="all"), "FD", "")
    twice = [line for line in guided.axes[0].lines if len(points_of(line)[1]) == 2 and line.get_linestyle() == "-"]
    for plain, line in zip(lines, twice, strict=True):  # a step of a guided sample is two passes
        assert list(points_of(line)[0]) == pytest.approx([2 * x for x in points_of(plain)[0]])
    found = fit_slice(scaling_slices(table)[0])
    printed = seed_table(found)
    assert printed.rows[0][1:] == ("1", "2", "12", "", "2.828")
    assert list(found.rows["spread"]) == pytest.approx([8**0.5] * 4)
    (points,) = metric_against_gflops(found.rows, "FD", "").axes[0].containers
    assert isinstance(points, ErrorbarContainer)
    assert points.has_yerr


def test_two_processes_draw_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load_study(write_results(tmp_path, [result_row(*shape) for shape in SHAPES]))
    seen = {}
    for cores in (1, 2):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        page = Page(tmp_path / str(cores), "", "")
        section = page.section("a", "a")
        for index in range(5):
            page.draw(section, f"f{index}", "", "", partial(metric_against_gflops, rows, f"FD{index}", ""))
        page.draw(section, "none", "", "", lambda: bubbles(rows.head(1), "FD", ""))
        page.finish()
        assert page.omitted == [("Figure “none”", "a bubble chart of one model shows nothing")]
        seen[cores] = [path.read_bytes() for path in page.paths]
        assert [path.name for path in page.paths][:3] == ["f0.png", "f0.svg", "f0.pdf"]
    assert seen[1] == seen[2]


def test_what_is_measured_later_does_not_become_the_studys_own_fit(tmp_path: Path) -> None:
    own = [result_row(*shape, sampling_steps=250, evaluation="z") for shape in SHAPES]
    later = [
        result_row(*shape, sampling_steps=16, evaluation=f"a{seed}", sampling_seed=seed, frechet=50.0 + seed)
        for shape in SHAPES for seed in (0, 1, 2)
    ]  # fmt: skip
    rows = [row for shape in zip(own, later[::3], later[1::3], later[2::3], strict=True) for row in shape]
    table = load_study(write_results(tmp_path, rows))
    assert [int(piece.group.conditions["sampling_steps"]) for piece in scaling_slices(table)] == [250, 16]
