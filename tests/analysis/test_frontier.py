"""The compute-optimal frontier on made-up models whose envelope is known."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.fit.common import CannotFitError
from analysis.frontier import find_frontier, isoflop_slices
from analysis.slices import Slice, scaling_slices
from analysis.table import load_study

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


def test_a_known_envelope_is_found(tmp_path: Path) -> None:
    piece = known_law(tmp_path)
    found = find_frontier(piece)
    assert (found.checkpoints, found.models) == (21 * 40, 21)
    compute = np.array([point.train_gmacs for point in found.points])
    metric = np.array([point.metric for point in found.points])
    assert (np.diff(compute) > 0).all()
    assert (np.diff(metric) < 0).all()
    inner = [p for p in found.points if 0.05 < p.gmacs < 20]  # away from the smallest and largest model
    slope = np.polyfit(np.log([p.train_gmacs for p in inner]), np.log([p.gmacs for p in inner]), 1)[0]
    assert slope == pytest.approx(BETA / (ALPHA + BETA), abs=0.05)
    fall = np.polyfit(np.log([p.train_gmacs for p in inner]), np.log([p.metric for p in inner]), 1)[0]
    assert -fall == pytest.approx(ALPHA * BETA / (ALPHA + BETA), abs=0.02)


def test_no_checkpoint_beats_the_envelope(tmp_path: Path) -> None:
    piece = known_law(tmp_path, models=6, steps=8)
    points = find_frontier(piece).points
    for train_gmacs, frechet in piece.checkpoints[["train_gmacs", "frechet"]].to_numpy():
        assert any(p.train_gmacs <= train_gmacs * (1 + 1e-9) and p.metric <= frechet for p in points)


def test_slices_at_equal_compute_enclose_the_optimum(tmp_path: Path) -> None:
    slices = isoflop_slices(known_law(tmp_path))
    assert 1 < len(slices) <= 4
    enclosed = [s for s in slices if s.optimum is not None]
    assert enclosed
    for piece in enclosed:
        gmacs = np.geomspace(0.001, 1000, 4001)
        truth = gmacs[np.argmin(A * gmacs**-ALPHA + B * (piece.train_gmacs / (3 * gmacs)) ** -BETA)]
        assert piece.optimum is not None
        assert abs(np.log(piece.optimum / truth)) < np.log(1.3)  # a parabola is an approximation
        assert piece.best in piece.names


def test_the_optimum_is_not_made_up(tmp_path: Path) -> None:
    """Where every larger model is better at equal compute, the optimum is said to lie outside."""
    rows = [
        result_row(depth, 32, 2, gmacs=g, step=step, frechet=10 / g * step**-0.01, train_gmacs=3 * g * 64 * step)
        for depth, g in ((2, 1.0), (4, 2.0), (6, 4.0))
        for step in (10, 100, 1000)
    ]
    piece = scaling_slices(load_study(write_results(tmp_path, rows)))[0]
    for found in isoflop_slices(piece):
        assert found.optimum is None
        assert any("above the models" in flag or "no minimum" in flag for flag in found.flags)
    assert any("larger one may be better" in flag for flag in find_frontier(piece).flags)


def test_too_little_for_an_envelope(tmp_path: Path) -> None:
    rows = [result_row(step=step) for step in (10, 20, 30)]
    piece = scaling_slices(load_study(write_results(tmp_path, rows)))[0]
    with pytest.raises(CannotFitError, match="of one model"):
        find_frontier(piece)
    piece = scaling_slices(load_study(write_results(tmp_path, rows[:2])))[0]
    with pytest.raises(CannotFitError, match="2 checkpoints"):
        find_frontier(piece)


def test_the_published_models_have_an_envelope_but_no_slices() -> None:
    from analysis.table import load_published

    piece = scaling_slices(load_published(PAPER))[0]
    found = find_frontier(piece)
    assert found.points[0].name == "DiT-S/8"
    assert found.points[-1].name == "DiT-XL/2"
    with pytest.raises(CannotFitError, match="no patch size has 3 models"):
        isoflop_slices(piece)
    assert isinstance(piece.checkpoints, pd.DataFrame)
