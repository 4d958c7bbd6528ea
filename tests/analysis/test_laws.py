"""Laws of size and data on made-up runs with a known law: recovery, intervals, allocation, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.fit.common import CannotFitError
from analysis.laws.approaches import envelope, parabolas, parametric
from analysis.laws.law import Law
from analysis.laws.parametric import fit_law
from analysis.laws.runs import Runs, Words, near, separate_runs

from .coverage_laws import DESIGNS, EXACT, TRUTH, checkpoint_runs, coverage, isoflop_runs, noisy


def table_of_240() -> Runs:
    return isoflop_runs(27).where(np.arange(243) < 240)


def test_the_constants_of_240_exact_runs_come_out() -> None:
    """To all digits of Besiroglu et al. (2024), by their method: summed Huber losses, delta 0.001, a grid of starts."""
    fit = fit_law(table_of_240(), delta=1e-3, resamples=0)
    digits = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
    assert fit.constants == pytest.approx(digits, rel=1e-6)
    assert (fit.runs, fit.delta, fit.flags) == (240, 1e-3, ())


def test_outliers_move_little() -> None:
    runs = noisy(table_of_240(), np.random.default_rng(0), noise=1e-4)
    runs = replace(runs, loss=runs.loss * np.where(np.arange(240) % 40 == 0, 1.3, 1.0))
    robust, plain = fit_law(runs, delta=1e-3, resamples=0).law, fit_law(runs, delta=np.inf, resamples=0).law
    assert abs(robust.alpha - TRUTH.alpha) < 0.002 < abs(plain.alpha - TRUTH.alpha)


def test_the_unit_of_the_loss_changes_no_exponent() -> None:
    runs = noisy(isoflop_runs(8), np.random.default_rng(1))
    one, other = (fit_law(replace(runs, loss=runs.loss * k), delta=0.005, resamples=0).law for k in (1.0, 0.01))
    found = [other.alpha, other.beta, 100 * other.E]
    assert found == pytest.approx([one.alpha, one.beta, one.E], rel=1e-4)


def test_intervals_hold_the_truth() -> None:
    """A small version of `python -m tests.analysis.coverage_laws`: of 40 draws about 38 hold it."""
    found = coverage("12 models, 5 checkpoints each", 40, resamples=100)
    assert all(share >= 0.8 for share in found.values()), found
    assert "the same, noise shared by a model" in DESIGNS


def test_a_law_predicts_with_intervals_and_has_a_jacobian() -> None:
    runs = noisy(isoflop_runs(9), np.random.default_rng(2))
    fit = fit_law(runs, delta=0.005, resamples=200)
    size, data = np.array([1e9, 5e10]), np.array([2e10, 1e12])
    band = fit.predict(size, data)
    assert (band["low"] < band["mean_low"]).all()
    assert (band["mean_low"] < band["mean"]).all()
    assert (band["mean_high"] < band["high"]).all()
    assert np.log(band["high"][0] / band["low"][0]) == pytest.approx(2 * 1.96 * 0.005, rel=0.3)
    jacobian, step = fit.law.jacobian(size, data), 1e-6
    for place in range(5):
        theta = fit.law.theta
        theta[place] += step
        moved = np.log(Law.of(theta).predict(size, data) / fit.law.predict(size, data)) / step
        assert jacobian[:, place] == pytest.approx(moved, rel=1e-3, abs=1e-6)


def test_the_best_size_is_a_minimum() -> None:
    compute = np.full(3, 1e20)
    sizes = TRUTH.best_size(compute) * np.array([0.9, 1.0, 1.1])
    losses = TRUTH.predict(sizes, compute / 6 / sizes)
    assert losses[1] == losses.min() == pytest.approx(TRUTH.best_loss(compute)[0])
    assert TRUTH.size_exponent + TRUTH.data_exponent == pytest.approx(1)


def test_three_approaches_agree_where_the_runs_allow() -> None:
    runs = isoflop_runs(27)
    fit = fit_law(runs, delta=1e-3, resamples=50)
    found = {way.name: way for way in (envelope(runs, 20), parabolas(runs, 20), parametric(fit, runs.compute[::27]))}
    for way in found.values():
        assert way.size_exponent is not None
        assert way.size_interval is not None
        assert way.size_exponent == pytest.approx(EXACT, abs=0.05)
        assert way.data_exponent == pytest.approx(1 - EXACT, abs=0.05)
        assert way.size_interval[0] <= way.size_exponent <= way.size_interval[1]
    assert len(found["parabolas"].optima) == 9  # all budgets
    assert all(o.enclosed and o.size_interval for o in found["parabolas"].optima)


def test_an_optimum_that_is_not_enclosed_is_marked() -> None:
    found = parabolas(isoflop_runs(9, low=1.5, high=20.0), 20)  # every size is above the best one
    assert found.optima
    assert not any(o.enclosed for o in found.optima)
    assert found.size_exponent is None
    assert found.why.startswith("0 sizes enclosed")


def test_seeds_give_delta() -> None:
    runs = noisy(checkpoint_runs(), np.random.default_rng(3))
    seeds, residuals = fit_law(replace(runs, seed_sd=0.004), resamples=0), fit_law(runs, resamples=0)
    assert seeds.delta == pytest.approx(0.006)
    assert seeds.delta_from == "1.5 standard deviations between seeds"
    assert residuals.delta == pytest.approx(1.5 * 0.005, rel=0.3)
    assert "least-squares residuals" in residuals.delta_from


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (slice(0, 5), "5 runs for 5 constants; needed: 6"),
        (slice(0, 27), r"all runs have one budget, C = 6e\+18"),
    ],
)
def test_too_little_says_why(kept: slice, reason: str) -> None:
    mask = np.zeros(243, bool)
    mask[kept] = True
    with pytest.raises(CannotFitError, match=reason):
        fit_law(isoflop_runs(27).where(mask))


def test_one_size_or_one_length_says_why() -> None:
    runs = checkpoint_runs()
    with pytest.raises(CannotFitError, match=r"D is 1.000e\+09 in every run, so compute is N times a constant"):
        fit_law(runs.where(runs.data == 1e9), Words("N", "D"))
    with pytest.raises(CannotFitError, match="M has 2 values; needed: 3 or more"):
        fit_law(runs.where(runs.model < 2))
    steep = separate_runs(runs.size, runs.size**2, runs.loss)
    with pytest.raises(CannotFitError, match="do not vary independently"):
        fit_law(steep)


def test_near_values_are_one_group() -> None:
    assert list(near(np.array([1.0, 5.0, 1.01, 1.05, 5.02]), 0.02)) == [0, 2, 0, 1, 2]
