"""The components of noise, their intervals, and the gaps that trainings show."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.power import TTestIndPower, TTestPower

from analysis import report
from analysis.figures.noise import noise_figure
from analysis.fit.common import CannotFitError
from analysis.mean_squares import Term, large_sample_interval
from analysis.noise import noise_of
from analysis.power import smallest_gap, trainings_needed
from analysis.study_noise import study_noise
from analysis.table import load_study
from analysis.trainings import apart, training_of

from .conftest import result_row, write_results
from .coverage_noise import DESIGNS, Design, Truth, coverage, power


def test_components_are_those_of_reml() -> None:
    """A balanced table with shared sampling seeds has one answer: REML's, where no component is 0."""
    design = Design((3,) * 6, truth=Truth(training=0.03, noise=0.02, sampling=0.01))
    model, training, sampling = design.codes()
    values = design.draw(np.random.default_rng(1))
    found = noise_of(values, model, training, sampling)
    table = pd.DataFrame({"y": 100 * np.log(values), "training": training, "sampling": sampling, "all": 0})
    parts = {"training": "0 + C(training)", "sampling": "0 + C(sampling)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reml = MixedLM.from_formula("y ~ 1", table, groups="all", re_formula="0", vc_formula=parts).fit()
    assert found.training is not None
    assert found.shared is not None
    assert found.sampling is not None
    expected = dict(zip(reml.model.exog_vc.names, np.sqrt(reml.vcomp) / 100, strict=True))
    assert found.training.sd == pytest.approx(expected["training"], rel=1e-3)
    assert found.shared.sd == pytest.approx(expected["sampling"], rel=1e-3)
    assert found.sampling.sd == pytest.approx(math.sqrt(reml.scale) / 100, rel=1e-3)
    assert (found.training.freedom, found.shared.freedom, found.sampling.freedom) == (5, 2, 10)


def test_intervals_end_where_the_theory_has_them() -> None:
    low, high = large_sample_interval([Term(1.0, 4.0, 7)])
    assert (low, high) == pytest.approx((28 / chi2.isf(0.025, 7), 28 / chi2.ppf(0.025, 7)))
    # of a difference the lower end is 0 where the F test of the two finds nothing
    from scipy.stats import f

    edge = float(f.isf(0.025, 4, 15))
    assert large_sample_interval([Term(0.25, edge, 4), Term(-0.25, 1.0, 15)])[0] == pytest.approx(0, abs=1e-9)
    assert large_sample_interval([Term(0.25, 1.01 * edge, 4), Term(-0.25, 1.0, 15)])[0] > 0
    assert large_sample_interval([Term(0.25, 0.5, 4), Term(-0.25, 1.0, 15)])[0] == 0


@pytest.mark.parametrize("name", [*DESIGNS][:3])
def test_intervals_hold_the_truth(name: str) -> None:
    """Of 5 x 4, 3 x 2 and an unbalanced table; `python -m tests.analysis.coverage_noise` makes 1,000 draws."""
    found = coverage(DESIGNS[name], 200)
    assert all(0.9 <= share <= 0.99 for share in found.values()), found


@pytest.mark.parametrize("paired", [False, True])
def test_a_gap_is_found_as_often_as_it_is_said(paired: bool) -> None:
    assert power(3, 2, 4000, paired) == pytest.approx(0.8, abs=0.03)


def test_gaps_are_those_of_the_noncentral_t() -> None:
    for trainings in (2, 3, 5, 10):
        one = 0.013 * TTestIndPower().solve_power(nobs1=trainings, alpha=0.05, power=0.8)
        two = 0.013 * TTestPower().solve_power(nobs=trainings, alpha=0.05, power=0.8)
        assert smallest_gap(0.013, trainings) == pytest.approx(one, rel=1e-3)
        assert smallest_gap(0.013, trainings, paired=True) == pytest.approx(two, rel=1e-3)
        assert trainings_needed(1.001 * one, 0.013) == trainings
        assert trainings_needed(1.001 * two, 0.013, paired=True) == trainings
    assert trainings_needed(1e-9, 1.0) is None
    assert trainings_needed(10.0, 0.01) == 2
    with pytest.raises(ValueError, match="two or more"):
        smallest_gap(0.013, 1)


def test_what_is_not_repeated_is_not_known() -> None:
    one = np.array([0, 0])
    sampled = noise_of(np.array([30.0, 31.0]), one, one, np.array([0, 1]))
    assert sampled.training is None
    assert sampled.sampling is not None
    with pytest.raises(CannotFitError, match="no model was trained twice"):
        sampled.sd()
    trained = noise_of(np.array([30.0, 31.0]), one, np.array([0, 1]), one)
    assert trained.mixed
    with pytest.raises(CannotFitError, match="nothing was repeated"):
        noise_of(np.array([30.0, 31.0]), np.array([0, 1]), one, one)
    with pytest.raises(CannotFitError, match="not positive"):
        noise_of(np.array([30.0, 0.0]), one, np.array([0, 1]), one)


def test_equal_samplings_leave_no_noise_and_no_error() -> None:
    training, sampling = np.repeat([0, 1, 2], 2), np.tile([0, 1], 3)
    found = noise_of(np.repeat([30.0, 31.0, 32.0], 2), np.zeros(6, int), training, sampling)
    assert found.training is not None
    assert found.sampling is not None
    assert found.sampling.sd == pytest.approx(0, abs=1e-12)
    assert found.training.sd == pytest.approx(np.std(np.log([30, 31, 32]), ddof=1))


def test_a_study_has_noise_by_value_and_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        result_row(4, 64, patch, seed=seed, sampling_seed=again, evaluation=f"e{again}", loss_heldout=0.2 + 0.01 * seed)
        | {"frechet": 30 * float(np.exp(rng.normal(0, 0.02)))}
        for patch in (2, 4) for seed in range(3) for again in range(2)
    ]  # fmt: skip
    found = study_noise(load_study(write_results(tmp_path, rows)))
    assert [one.metric for one in found] == ["FD-digits-cnn", "held-out loss"]
    distance, loss = found
    assert [name for name, _ in distance.models] == ["d4-w64/4", "d4-w64/2"]
    assert (distance.together.models, distance.together.trainings, distance.together.samplings) == (2, 3, 2)
    assert loss.together.sampling is None
    assert study_noise(load_study(write_results(tmp_path, rows[:1]))) == []


def test_trainings_are_told_apart_by_all_their_seeds() -> None:
    rows = pd.DataFrame({"seed": [0, 0, 1], "seeds": ["", "noise=3", None], "cell": ["a", "b", "c"]})
    assert list(training_of(rows)) == ["0", "0; noise=3", "1"]
    assert apart(rows) == ()
    assert apart(rows[:2]) == ("noise",)
    unknown = rows.assign(seed=pd.array([None] * 3, dtype="Int64"), seeds="")
    assert list(training_of(unknown)) == ["a", "b", "c"]


def test_a_report_says_what_is_real(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        result_row(4, 64, 2, block=block, seed=seed, sampling_seed=again, evaluation=f"e{again}", frechet=value)
        for block, level in (("adaln-zero", 30), ("adaln", 32)) for seed in range(3) for again in range(2)
        for value in (level + (-1) ** seed + float(rng.normal(0, 0.1)),)
    ]  # fmt: skip
    folder = write_results(tmp_path, rows)
    page = report._study(folder)
    (section,) = (section for section in page.sections if section.key == "noise")
    moves, shown = section.paragraphs
    assert page.summary[-1] == f"Is it real? {moves}"
    assert moves.startswith("Training again moves FD-digits-cnn by ")
    assert "sampling again moves it by" in moves
    assert "A sampling seed moves all trainings alike" in moves
    assert shown.startswith("Two designs of 3 trainings with 2 samplings each can be told apart from a gap of ")
    components, pairs, gaps, needed = section.tables
    assert [row[1] for row in components.rows] == ["all 2 models", "d4-w64/2, adaLN-Zero", "d4-w64/2, adaLN"]
    assert pairs.rows[0][:4] == ("adaLN − adaLN-Zero", "d4-w64/2", "1,000", "3")
    assert gaps.columns == ("Trainings a design", "1 sampling each", "2 samplings each", "in pairs of one seed")
    assert needed.rows[0][0] == "1 %"
    assert page.fits["noise"][0]["column"] == "frechet"
    assert [picture.name for _, picture in page.sketches].count("noise") == 1
    (one,) = study_noise(load_study(folder))
    assert noise_figure(one, 0.01).heading == "Noise of FD-digits-cnn"


def test_a_report_without_seeds_says_so_in_one_line(tmp_path: Path) -> None:
    page = report._study(write_results(tmp_path, [result_row(4, 64, 2), result_row(2, 32, 2)]))
    assert "noise" not in [section.key for section in page.sections]
    assert [line for line in page.summary if "Is it real?" in line] == [
        "Is it real? No model was trained or sampled twice, so no gap between two models can be told from chance."
    ]
    assert page.fits["noise"] == []
