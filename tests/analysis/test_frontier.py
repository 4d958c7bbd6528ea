"""The compute-optimal frontier on made-up models whose envelope is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.fit.common import CannotFitError
from analysis.frontier import Frontier, checkpoints, find_frontier, sampled
from analysis.laws.approaches import Approach, parabolas
from analysis.slices import LOSS, Slice, scaling_slices
from analysis.study_laws import next_gmacs, runs_of, study_laws, with_curves
from analysis.table import load_published, load_study

from .conftest import PAPER, result_row, write_results

# L = A N^-a + B D^-b with N parameters (here gmacs) and D images seen, C = 3 N D: along the envelope the best N grows
# as C^(b / (a + b)), and L falls as C^-(a b / (a + b)) (Hoffmann et al. 2022, equation 4)
A, ALPHA, B, BETA = 2.0, 0.5, 40.0, 0.3


def known_law(tmp_path: Path, models: int = 21, steps: int = 40) -> Slice:
    rows = []
    for index, gmacs in enumerate(np.geomspace(0.01, 100, models)):
        for step in np.geomspace(10, 1e7, steps).astype(int):
            loss = A * gmacs**-ALPHA + B * (64.0 * step) ** -BETA
            rows.append(
                result_row(2 + index, 32, 2, gmacs=gmacs, step=step, frechet=loss, train_gmacs=3 * gmacs * 64 * step)
            )
    return scaling_slices(load_study(write_results(tmp_path, rows)))[0]


def equal_steps(tmp_path: Path) -> Slice:
    rows = [result_row(depth, 16 * depth, 2, step=1000) for depth in range(2, 10)]
    return scaling_slices(load_study(write_results(tmp_path, rows)))[0]


def frontier_of(piece: Slice) -> Frontier:
    return find_frontier(checkpoints(piece), piece.column)


def parabolas_of(piece: Slice) -> Approach:
    rows = checkpoints(piece)
    return parabolas(runs_of(rows.assign(images=64.0 * rows["step"]), piece.column), resamples=20)


def test_a_known_envelope_is_found(tmp_path: Path) -> None:
    piece = known_law(tmp_path)
    found = frontier_of(piece)
    assert (found.checkpoints, found.models) == (21 * 40, 21)
    compute = np.array([point.compute for point in found.points])
    metric = np.array([point.metric for point in found.points])
    assert (np.diff(compute) > 0).all()
    assert (np.diff(metric) < 0).all()
    inner = [p for p in found.points if 0.05 < p.gmacs < 20]  # away from the smallest and largest model
    slope = np.polyfit(np.log([p.compute for p in inner]), np.log([p.gmacs for p in inner]), 1)[0]
    assert slope == pytest.approx(BETA / (ALPHA + BETA), abs=0.05)
    fall = np.polyfit(np.log([p.compute for p in inner]), np.log([p.metric for p in inner]), 1)[0]
    assert -fall == pytest.approx(ALPHA * BETA / (ALPHA + BETA), abs=0.02)


def test_no_checkpoint_beats_the_envelope(tmp_path: Path) -> None:
    piece = known_law(tmp_path, models=6, steps=8)
    points = frontier_of(piece).points
    for train_gmacs, frechet in piece.checkpoints[["train_gmacs", "frechet"]].to_numpy():
        assert any(p.compute <= 2e9 * train_gmacs * (1 + 1e-9) and p.metric <= frechet for p in points)


def test_slices_at_equal_compute_enclose_the_optimum(tmp_path: Path) -> None:
    found = parabolas_of(known_law(tmp_path))
    assert found.enclosed > 4
    for optimum in (o for o in found.optima if o.enclosed):
        gmacs = np.geomspace(0.001, 1000, 4001)
        truth = 1e9 * gmacs[np.argmin(A * gmacs**-ALPHA + B * (optimum.compute / 2e9 / (3 * gmacs)) ** -BETA)]
        assert abs(np.log(optimum.size / truth)) < np.log(1.4)  # a parabola is an approximation
    assert found.size_exponent == pytest.approx(BETA / (ALPHA + BETA), abs=0.03)


def test_the_optimum_is_not_made_up(tmp_path: Path) -> None:
    """Where every larger model is better at equal compute, the optimum is said to lie outside."""
    rows = [
        result_row(depth, 32, 2, gmacs=g, step=step, frechet=10 / g * step**-0.01, train_gmacs=3 * g * 64 * step)
        for depth, g in ((2, 1.0), (4, 2.0), (6, 4.0))
        for step in (10, 100, 1000)
    ]
    piece = scaling_slices(load_study(write_results(tmp_path, rows)))[0]
    found = parabolas_of(piece)
    assert found.optima
    assert not found.enclosed
    assert found.size_exponent is None
    assert found.why.startswith("0 sizes enclosed")
    assert next_gmacs(piece) is None
    assert any("larger one may be better" in flag for flag in frontier_of(piece).flags)


def test_too_little_for_an_envelope(tmp_path: Path) -> None:
    rows = [result_row(step=step) for step in (10, 20, 30)]
    piece = scaling_slices(load_study(write_results(tmp_path, rows)))[0]
    with pytest.raises(CannotFitError, match="of one model"):
        frontier_of(piece)
    piece = scaling_slices(load_study(write_results(tmp_path, rows[:2])))[0]
    with pytest.raises(CannotFitError, match="2 checkpoints"):
        frontier_of(piece)


def test_equal_steps_are_no_finding(tmp_path: Path) -> None:
    """One length of training for all: the best model at a budget is the only one, and nothing is drawn or advised."""
    for piece in (equal_steps(tmp_path), scaling_slices(load_published(PAPER))[0]):
        with pytest.raises(CannotFitError, match=r"grows as C\^1.00 by construction"):
            frontier_of(piece)
        assert next_gmacs(piece) is None
    with pytest.raises(CannotFitError, match="I varies within one model only"):
        study_laws(scaling_slices(load_published(PAPER))[0])
    with pytest.raises(CannotFitError, match=r"^I is 64,000 in every run, .* C\^1.00 by construction; needed: .*$"):
        study_laws(equal_steps(tmp_path))


def test_a_study_has_its_law(tmp_path: Path) -> None:
    """Within a patch size; over several with a term for tokens where that predicts those left out."""
    (summary,) = study_laws(known_law(tmp_path, models=8, steps=24))
    assert summary.fit is not None
    assert (summary.fit.law.alpha, summary.fit.law.beta) == pytest.approx((ALPHA, BETA), abs=1e-4)
    assert summary.fit.flags == ("E is on its bound 0: this is the law without a floor",)
    rows = [
        result_row(depth, 16 * depth, patch, step=step, frechet=5 + 900 * (depth**3 / patch) ** -0.5 + 50 / step**0.4)
        for depth in (2, 3, 4, 6) for patch in (4, 2, 1) for step in (100, 300, 1000, 3000)
    ]  # fmt: skip
    *_, all_of_them = study_laws(scaling_slices(load_study(write_results(tmp_path, rows)))[0])
    assert all_of_them.label == "all patch sizes"
    assert all_of_them.tokens is not None
    assert all_of_them.tokens.earned
    assert all_of_them.fit is not None
    assert all_of_them.fit.with_tokens


def test_curves_add_checkpoints_of_the_loss(tmp_path: Path) -> None:
    """Those after the first hundredth of a training: the learning rate is constant."""
    rows = [result_row(depth, 32, 2, step=1000, loss_heldout=0.2) for depth in (2, 4)]
    piece = scaling_slices(load_study(write_results(tmp_path, rows)), LOSS)[0]
    cells = [row["cell"] for row in rows]
    curves = pd.DataFrame(
        {"cell": np.repeat(cells, 3), "step": [5, 500, 1000] * 2, "loss_heldout": [0.9, 0.3, 0.2] * 2}
    )
    found = with_curves(piece, curves)
    assert sorted(found["step"]) == [500, 500, 1000, 1000]
    assert runs_of(found, LOSS).models == 2


def test_a_frontier_of_sampling(tmp_path: Path) -> None:
    """At equal sampling compute the smaller model with more steps may win; guidance takes two passes."""
    rows = [
        result_row(depth, 32, 2, gmacs=gmacs, sampling_steps=steps, evaluation=f"e{steps}", frechet=best + 150 / steps)
        for depth, gmacs, best in ((2, 1.0, 8.0), (8, 4.0, 7.5)) for steps in (10, 40, 160)
    ]  # fmt: skip
    table = load_study(write_results(tmp_path, rows))
    found = find_frontier(sampled(table, "frechet"), "frechet")
    assert [(p.gmacs, p.compute) for p in found.points][:3] == [(1.0, 2e10), (1.0, 8e10), (1.0, 3.2e11)]
    guided = sampled(table.assign(guidance=1.5), "frechet")
    assert guided["compute"].min() == 4e10
    one = table[table["sampling_steps"] == 40]
    with pytest.raises(CannotFitError):
        find_frontier(sampled(one, "frechet"), "frechet")
