"""What forms predict for a model that nobody has trained, and which run narrows that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm

from analysis.predict import Training, budgeted, outlook
from analysis.slices import largest_slice
from analysis.table import load_study, load_table
from tests.analysis.conftest import PAPER, SHAPES, result_row, write_results

XL = Training("XL/2", 118.64, 400_000 * 256.0, 675e6, 256, 2)


def test_the_published_pairs_forecast_the_largest_model() -> None:
    table = load_table(PAPER)
    found = outlook(largest_slice(table[table["name"] != "DiT-XL/2"]))
    assert len(found.fits.rows) == 11
    said = {prediction.form: prediction for prediction in found.predictions(XL)}
    assert next(iter(said)) == found.fits.winner == "params and tokens"
    assert all(one.low < 19.47 < one.high for one in said.values())  # Table 4 of the paper
    assert said["params and tokens"].mean == pytest.approx(19.47, rel=0.05)
    assert said["params and tokens"].extrapolation == pytest.approx(118.64 / 80.71, rel=0.01)
    assert [what for what, _ in found.omitted] == ["The law of size and data"]
    ((_, gmacs, images),) = budgeted(found, XL.operations)
    assert gmacs == pytest.approx(118.64)
    assert images == XL.images


def test_a_form_of_compute_is_silent_about_another_length() -> None:
    found = outlook(largest_slice(load_table(PAPER)))
    assert found.predictions(XL)
    assert not found.predictions(replace(XL, images=XL.images / 2))
    unknown = replace(XL, params=float("nan"), tokens=float("nan"))
    assert "params and tokens" not in {prediction.form for prediction in found.predictions(unknown)}


def test_what_a_run_leaves_is_what_least_squares_would_find(tmp_path: Path) -> None:
    found = outlook(largest_slice(load_study(write_results(tmp_path, [result_row(*shape) for shape in SHAPES]))))
    power = next(form for form in found.predictors if form.form == "power law")
    known = found.trainings
    target, run = (replace(known[-1], gmacs=known[-1].gmacs * times) for times in (8.0, 3.0))

    def deviation(gmacs: list[float]) -> float:
        """Of the line at the target, for a known noise of 1."""
        at = np.log([*gmacs, target.gmacs])
        fit = sm.OLS(np.zeros(len(gmacs)), sm.add_constant(at[:-1])).fit()
        new = np.array([1.0, at[-1]])
        return float(np.sqrt(new @ fit.normalized_cov_params @ new))

    gmacs = [one.gmacs for one in known]
    assert power.left(target, run) == pytest.approx(deviation([*gmacs, run.gmacs]) / deviation(gmacs), rel=1e-6)
    far = [power.left(target, replace(run, gmacs=run.gmacs * times)) for times in (0.1, 1.0, 2.0)]
    assert 1 > far[0] > far[1] > far[2] > 0


def test_a_law_of_size_and_data_spends_a_budget_on_both(tmp_path: Path) -> None:
    rows = [result_row(*shape[:2], 2, step=step) for shape in SHAPES[::3] for step in (200, 1000, 5000)]
    rows += [result_row(8, 128, 2, step=step) for step in (200, 1000, 5000)]
    for row in rows:
        size, images = row["gmacs"] * 1e9, row["step"] * 64
        row["frechet"] = 2 + 3e3 / size**0.5 + 9e2 / images**0.5
    found = outlook(largest_slice(load_study(write_results(tmp_path, rows))))
    law = next(form for form in found.predictors if form.law is not None)
    assert law.patch_size == 2
    (_, at_length, images), (by, size, spent) = list(budgeted(found, 1e16))
    assert by == law.form
    assert images == 5000 * 64
    assert spent * size == pytest.approx(at_length * images, rel=1e-9)  # all of the budget
    best = 1e16 / 6 / (size * 1e9 * 1.2), size * 1.2
    other = law.predict(Training("wider", best[1], best[0])).mean
    assert law.predict(Training("best", size, spent)).mean < other
    assert not law.holds_for(Training("other patch", size, spent, patch_size=4))
