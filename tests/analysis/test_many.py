"""What is not done for each of very many cells: a curve, a row of a map, reading a text again, intervals of a fold."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest

from analysis import csvfile
from analysis.figures.quality import residual_maps
from analysis.figures.scaling import draw_points
from analysis.figures.style import ModelKey
from analysis.figures.training import loss_with_zoom, over_steps
from analysis.fit import common
from analysis.fit.residuals import Residuals
from analysis.heldout import POWER_LAW, leave_one_out
from analysis.slices import per_shape
from analysis.table import load_study
from harness.runs.columns import RESULT_COLUMNS

from .conftest import SHAPES, result_row, write_results


def curves(models: int, seeds: int, steps: int = 50) -> pd.DataFrame:
    rows = [
        {
            "cell": f"c{model}-{seed}", "step": step, "size": f"d{model}", "depth": model, "width": 32,
            "block": "adaln-zero", "patch_size": 2, "seed": seed, "loss": 1 / step + seed,
        }
        for seed in range(seeds) for model in range(1, models + 1) for step in range(1, steps + 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("models", "drawn"), [(3, 3), (100, 100), (150, 120)])
def test_of_many_curves_some_are_drawn_one_seed_a_model(models: int, drawn: int) -> None:
    table = curves(models, 200 // models + 1)
    cells = table["cell"].nunique()
    figures = (
        over_steps(table, {"loss": "loss"}, "Loss", "Losses", "how"),
        loss_with_zoom(table, "loss", "Loss", "how"),
    )
    for figure in figures:
        assert figure.caption == f"how; {drawn} of {cells} cells are drawn, one seed a model"
        faint = [line for line in figure.axes[0].lines if line.get_alpha() is not None]
        assert len(faint) == drawn
        assert all(max(np.asarray(line.get_ydata(), float)) <= 1 for line in faint)  # of seed 0


@pytest.mark.parametrize(("models", "artists"), [(5, 5), (20, 20), (100, 24)])
def test_models_that_look_alike_are_drawn_at_once(models: int, artists: int) -> None:
    table = curves(models, seeds=2, steps=1)
    axes = Mock()
    draw_points(axes, table, "depth", "loss", ModelKey.of(table))
    drawn = [call.args[0] for call in axes.plot.call_args_list]
    assert len(drawn) == artists
    assert sorted(np.concatenate(drawn)) == sorted(table["depth"])


def test_few_curves_are_all_drawn() -> None:
    figure = over_steps(curves(2, 2), {"loss": "loss"}, "Loss", "Losses", "how")
    assert figure.caption == "how"
    assert len(figure.axes[0].lines) == 2 * 4


@pytest.mark.parametrize(("count", "more"), [(24, ""), (60, "; 24 of 60 sizes are shown")])
def test_a_map_of_residuals_shows_some_of_many_sizes(count: int, more: str) -> None:
    depths = range(1, count + 1)
    rows = pd.DataFrame({"size": [f"d{d}" for d in depths], "depth": depths, "width": 32, "patch_size": 2})
    fit = Residuals("power law", tuple(np.linspace(-9, 9, count)), {}, {}, {})
    figure = residual_maps(rows, [fit], "FD", "how")
    assert figure.caption.startswith(f"how{more}")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == 24
    assert {labels[0], labels[-1]} == {"d1", f"d{count}"}


def test_a_text_of_a_column_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [result_row(*SHAPES[0], seed=seed) for seed in range(50)]
    write_results(tmp_path, rows)
    spy = Mock(wraps=csvfile._value)
    monkeypatch.setattr("analysis.csvfile._value", spy)
    table = csvfile.read_csv(tmp_path / "results.csv", RESULT_COLUMNS)
    assert list(table["seed"]) == list(range(50))
    texts = [(call.args[0].name, call.args[1]) for call in spy.call_args_list]
    assert len(texts) == len(set(texts))


def test_a_fold_makes_no_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = per_shape(load_study(write_results(tmp_path, [result_row(*shape) for shape in SHAPES])), "frechet")
    spy = Mock(wraps=common.wild_noise)
    monkeypatch.setattr("analysis.fit.common.wild_noise", spy)
    assert leave_one_out(POWER_LAW, table).mape > 0
    assert spy.call_count == 0
