"""Fits on made-up data: recovery, coverage, refusals and flags; and block comparisons."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.compare import compare_blocks, compute_multiplier, describe, multiplier_ends
from analysis.fit.bootstrap import bootstrap_exponent
from analysis.fit.common import CannotFitError
from analysis.fit.floor import fit_floor
from analysis.fit.lines import correlate, fit_line
from analysis.fit.surface import fit_interaction
from analysis.heldout import FORMS, INTERACTION, POWER_LAW, SEMILOG, forecast, leave_one_group_out, leave_one_out
from analysis.table import load_study
from harness.errors import InputError

from .conftest import SHAPES, result_row, write_results

X = np.geomspace(0.3, 120, 12)


@settings(max_examples=20, deadline=None)
@given(a=st.floats(0.5, 500), b=st.floats(0.05, 1.5))
def test_an_exact_power_law_is_recovered(a: float, b: float) -> None:
    fit = fit_line(X, a * X**-b, "power law")
    assert fit.coefficient == pytest.approx(a, rel=1e-6)
    assert fit.exponent == pytest.approx(b, rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(a=st.floats(20, 200), b=st.floats(0.3, 1.2), floor=st.floats(2, 10))
def test_an_exact_floor_is_recovered(a: float, b: float, floor: float) -> None:
    x = np.geomspace(0.1, 100, 15)
    fit = fit_floor(x, a * x**-b + floor)
    assert fit.floor == pytest.approx(floor, rel=1e-3)
    assert fit.exponent == pytest.approx(b, rel=1e-3)
    assert fit.identified
    assert fit.predict(x) == pytest.approx(a * x**-b + floor, rel=1e-3)


def test_a_floor_of_zero_is_the_power_law() -> None:
    """Nested forms share the estimator: without a floor the two are the same curve with the same interval."""
    y = 100 * X ** -(0.4 + 0.03 * np.log(X)) * np.exp(np.random.default_rng(1).normal(0, 0.1, len(X)))  # bends down
    floor, law = fit_floor(X, y), fit_line(X, y, "power law")
    assert floor.on_bound
    assert [floor.floor, floor.exponent, floor.sigma] == pytest.approx([0, law.exponent, law.sigma])
    assert floor.exponent_t == pytest.approx((-law.slope_t[1], -law.slope_t[0]))
    assert floor.band(X)["low"].to_numpy() == pytest.approx(law.predict(X)["low"].to_numpy())


def test_coverage_of_the_intervals() -> None:
    """About 95 % of t intervals hold the true slope, of prediction intervals a new value; pairs bootstrap fewer."""
    rng = np.random.default_rng(1)
    trials, hits, predicted = 300, 0, 0
    for _ in range(trials):
        y = 137 * X**-0.36 * np.exp(rng.normal(0, 0.25, len(X)))
        fit = fit_line(X, y, "power law")
        hits += fit.slope_t[0] <= -0.36 <= fit.slope_t[1]
        band = fit.predict(np.array([20.0])).iloc[0]
        predicted += band["low"] <= 137 * 20**-0.36 * np.exp(rng.normal(0, 0.25)) <= band["high"]
    assert 0.91 <= hits / trials <= 0.98
    assert 0.91 <= predicted / trials <= 0.98


def test_hc3_is_another_interval() -> None:
    y = 100 * X**-0.3 * np.exp(np.random.default_rng(0).normal(0, 0.2, 12))
    fit = fit_line(X, y, "power law")
    assert fit.slope_hc3 != fit.slope_t
    assert fit.slope_hc3[0] < fit.slope < fit.slope_hc3[1]


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 2], [3, 2], "2 points; this needs at least"),
        ([1, 2, 3, 4, 5, 6], [2, 2, 2, 2, 2, 2], "the metric is constant"),
        ([1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6], "the same compute"),
        ([1, 2, 3, 4, 5, 6], [6, 5, np.nan, 3, 2, 1], "a value is missing"),
        ([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 0], "a value is not positive"),
    ],
)
def test_what_cannot_be_fitted_says_why(x: list[float], y: list[float], reason: str) -> None:
    a, b = np.array(x, float), np.array(y, float)
    for fit in (correlate, lambda x, y: fit_line(x, y, "power law"), fit_floor):
        with pytest.raises(CannotFitError, match=reason):
            fit(a, b)


def test_fewer_points_than_parameters() -> None:
    with pytest.raises(CannotFitError, match="at least 5"):
        fit_floor(X[:4], X[:4] ** -0.5)
    with pytest.raises(CannotFitError, match="at least 6"):
        fit_interaction(X[:5], X[:5] ** 2, X[:5] ** -0.5)
    with pytest.raises(CannotFitError, match="do not vary independently"):
        fit_interaction(X, X**2, X**-0.5 * np.linspace(1, 1.2, 12))
    with pytest.raises(CannotFitError, match="same tokens"):
        fit_interaction(X, np.full(12, 4.0), X**-0.5)


def test_flags() -> None:
    y = np.array([5, 4, 4.5, 3.9, 4.2])
    flags = " ".join(fit_line(np.array([1, 1.5, 2, 3, 4.0]), y, "power law").flags)
    assert "few points: 5" in flags
    assert "narrow range: compute varies by a factor of 4" in flags
    assert "no trend" in flags


def study(tmp_path: Path, **changes: object) -> pd.DataFrame:
    return load_study(write_results(tmp_path, [result_row(*shape) for shape in SHAPES]))


def test_held_out_tests_never_use_what_they_predict(tmp_path: Path) -> None:
    table = study(tmp_path)
    for form in FORMS:
        found = leave_one_out(form, table)
        changed = table.copy()
        changed.loc[0, "frechet"] = 1e6
        assert leave_one_out(form, changed).predicted[0] == pytest.approx(found.predicted[0], rel=1e-6)


def test_forecasts_say_how_far_they_reach(tmp_path: Path) -> None:
    table = study(tmp_path)
    far = (table["gmacs"] > table["gmacs"].quantile(0.6)).to_numpy()
    found = forecast(SEMILOG, table, far, "the large ones")
    assert found.extrapolation > 4
    assert any("extrapolates" in flag for flag in found.flags)
    with pytest.raises(CannotFitError, match="no rows to forecast"):
        forecast(POWER_LAW, table, np.zeros(len(table), bool), "nothing")
    with pytest.raises(CannotFitError, match="same block"):
        leave_one_group_out(POWER_LAW, table, "block")
    with pytest.raises(CannotFitError, match="5 points"):
        leave_one_out(INTERACTION, table.head(6))


def test_mixed_rows_are_refused_everywhere(tmp_path: Path) -> None:
    rows = [result_row(*shape) for shape in SHAPES]
    rows[3]["samples"] = 5000
    table = load_study(write_results(tmp_path, rows))
    for refused in (
        lambda: leave_one_out(POWER_LAW, table),
        lambda: leave_one_group_out(POWER_LAW, table, "size"),
        lambda: bootstrap_exponent(table),
        lambda: compare_blocks(table),
    ):
        with pytest.raises(InputError, match="samples"):
            refused()


def test_the_bootstrap_goes_down_the_levels(tmp_path: Path) -> None:
    rows = [
        result_row(*shape, seed=seed, sampling_seed=k, evaluation=f"e{k}", frechet=50.0 - 3 * i + 2 * seed + k)
        for i, shape in enumerate(SHAPES)
        for seed in (0, 1)
        for k in (0, 1)
    ]
    table = load_study(write_results(tmp_path, rows))
    found = bootstrap_exponent(table, resamples=500)
    assert found.levels == ("model", "training seed", "sampling seed")
    assert found == bootstrap_exponent(table, resamples=500)
    assert found.interval[0] < found.interval[1]


# --- blocks --------------------------------------------------------------------------------------------------------


def blocks(tmp_path: Path, values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        result_row(4, 64, 2, block=block, seed=seed, frechet=value)
        for block, column in values.items()
        for seed, value in enumerate(column)
    ]
    return load_study(write_results(tmp_path, rows))


def test_one_seed_is_inconclusive(tmp_path: Path) -> None:
    table = blocks(tmp_path, {"adaln-zero": [10], "adaln": [30]})
    (found,) = compare_blocks(table)
    assert (found.verdict, found.interval) == ("inconclusive", None)
    assert found.ratio == pytest.approx(3)
    assert "seed noise" in found.reason
    assert found.multiplier is None
    assert "two or more models" in found.multiplier_note
    assert "inconclusive" in describe(found, "FD-x")
    (stated,) = compare_blocks(table, seed_sigma=0.05)
    assert stated.verdict == "worse"
    assert "assumed" in stated.reason


def test_an_end_beyond_the_models_is_said_once() -> None:
    assert multiplier_ends((0.5, 2.0)) == "0.50 to 2.00"
    assert multiplier_ends((None, 2.0)) == "beyond the models to 2.00"
    assert multiplier_ends((0.5, None)) == "0.50 to beyond the models"
    assert multiplier_ends((None, None)) == "both ends beyond the models"


def test_seeds_give_a_verdict(tmp_path: Path) -> None:
    table = blocks(
        tmp_path,
        {"adaln-zero": [10, 10.4, 9.7], "adaln": [14.8, 15.3, 15], "in-context": [9.9, 10.6, 10.2],
         "cross-attention": [5, 5.2, 5.1]},
    )  # fmt: skip
    found = {c.block: c for c in compare_blocks(table)}
    assert {b: c.verdict for b, c in found.items()} == {
        "adaln": "worse", "in-context": "inconclusive", "cross-attention": "better"
    }  # fmt: skip
    low, high = found["adaln"].interval or (0, 0)
    assert low < 1.5 < high
    assert [c.block for c in compare_blocks(table)] == ["cross-attention", "in-context", "adaln"]


def test_compute_multiplier_does_not_extrapolate() -> None:
    g, m = np.array([1.0, 10.0, 100.0]), np.array([100.0, 50.0, 25.0])
    assert compute_multiplier(10, 50, g, m) == pytest.approx(1)
    assert compute_multiplier(100, 50, g, m) == pytest.approx(10)
    with pytest.raises(ValueError, match="outside"):
        compute_multiplier(10, 10, g, m)
    with pytest.raises(ValueError, match="does not improve"):
        compute_multiplier(10, 60, g, np.array([100.0, 20.0, 25.0]))


def test_missing_metrics_are_left_out_of_comparisons(tmp_path: Path) -> None:
    rows = [result_row(block="adaln-zero"), result_row(block="adaln", frechet="")]
    assert compare_blocks(load_study(write_results(tmp_path, rows))) == []
