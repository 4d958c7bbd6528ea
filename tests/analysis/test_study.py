"""Everything about one slice: intervals, bootstraps, ranking, residuals, forecasts; of the distance and of the loss."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analysis.compare import block_slopes, compare_blocks
from analysis.fit.floor import fit_floor, refit_floors
from analysis.fit.lines import fit_line
from analysis.fit.surface import fit_interaction
from analysis.heldout import HeldOut, rank_forms
from analysis.printed import fit_table, plain, ranking_table, slice_values
from analysis.slices import LOSS, scaling_slices
from analysis.study import SliceFits, fit_slice
from analysis.table import load_published, load_studies, load_study
from harness.errors import InputError

from .conftest import PAPER, SHAPES, result_row, write_results

X = np.geomspace(0.3, 120, 12)


@pytest.fixture(scope="module")
def twelve() -> SliceFits:
    return fit_slice(scaling_slices(load_published(PAPER))[0])


def test_the_t_intervals_cover_their_truth() -> None:
    """Over 1,000 made-up tables, 93 to 97 % of the t intervals of the linear forms hold the true slope."""
    rng = np.random.default_rng(0)
    params, tokens = np.repeat([33e6, 130e6, 458e6, 675e6], 3), np.tile([64.0, 256.0, 1024.0], 4)
    product = np.log(params) * np.log(tokens)
    hits = np.zeros((1000, 3), bool)
    for draw in range(len(hits)):
        noise = rng.normal(0, 0.25, 12)
        law = fit_line(X, 137 * X**-0.36 * np.exp(noise), "power law").slope_t
        line = fit_line(X, 126 - 23.6 * np.log(X) + 40 * noise, "semi-log").slope_t
        surface = fit_interaction(params, tokens, 4e4 * np.exp(-0.02 * product + noise)).intervals[3]
        pairs = ((law, -0.36), (line, -23.6), (surface, -0.02))
        hits[draw] = [low <= truth <= high for (low, high), truth in pairs]
    assert ((hits.mean(axis=0) >= 0.93) & (hits.mean(axis=0) <= 0.97)).all(), hits.mean(axis=0)


def test_the_other_intervals_lie_around_the_estimate() -> None:
    y = (80 * X**-0.6 + 5) * np.exp(np.random.default_rng(1).normal(0, 0.05, 12))
    law, floor = fit_line(X, y, "power law"), fit_floor(X, y)
    assert law.slope_wild[0] < law.slope < law.slope_wild[1]
    for low, high in (floor.exponent_t, floor.exponent_hc3, floor.exponent_wild):
        assert low < floor.exponent < high
    assert floor.floor_wild[0] < floor.floor < floor.floor_wild[1]
    band = floor.band(X)
    assert (band["low"] < band["mean_low"]).all()
    assert (band["mean_high"] < band["high"]).all()
    assert band["mean"].to_numpy() == pytest.approx(floor.predict(X))


def test_a_floor_is_identified_by_the_range() -> None:
    noise = np.exp(np.random.default_rng(2).normal(0, 0.05, 16))
    wide, narrow = np.geomspace(0.1, 1e5, 16), np.geomspace(0.1, 1.5, 16)
    found, hidden = (fit_floor(x, (80 * x**-0.6 + 5) * noise) for x in (wide, narrow))
    assert found.identified
    assert found.floor_interval[0] < 5 < found.floor_interval[1]
    assert not hidden.identified
    assert any("not identified" in flag for flag in hidden.flags)


def test_refits_are_those_of_scipy() -> None:
    from analysis.fit.floor import _floor_solution, _residuals

    rng = np.random.default_rng(3)
    log_x, log_y = np.log(X), np.log(80 * X**-0.5 + 3)
    rows = log_y + rng.normal(0, 0.15, (30, 12))
    every_x = np.broadcast_to(log_x, rows.shape)
    ours = refit_floors(every_x, rows, _floor_solution(log_x, log_y))
    theirs = np.array([_floor_solution(log_x, row) for row in rows])
    costs = [np.sum(_residuals(at, every_x, rows) ** 2, axis=1) for at in (ours, theirs)]
    assert (costs[0] <= costs[1] * (1 + 1e-6)).all()


def test_the_published_slice(twelve: SliceFits) -> None:
    assert twelve.ranking[0].form == "params and tokens"
    assert "leave one patch size out" in twelve.ranking[0].errors
    worst = next((found for found in twelve.residuals if found.form == "power law"), None)
    assert worst is not None
    assert worst.by_patch[8] < 0 < worst.by_patch[4] or worst.by_patch[8] > 0  # a pattern by patch size
    assert twelve.winner == "params and tokens"
    assert {f.form for f in twelve.forecasts} == {"semi-log", "power law", "params and tokens"}
    assert twelve.floor is not None
    assert twelve.floor.on_bound
    forms = {test.form for test in twelve.held} | {entry.form for entry in twelve.ranking}
    assert forms == {"semi-log", "power law", "params and tokens"}  # a floor of 0 is the power law
    assert ("power law with floor", "the power law: its floor is 0") in {row[:2] for row in fit_table(twelve).rows}
    assert any("negative" in flag for f in twelve.forecasts for flag in f.flags if f.form == "semi-log")
    assert any("extrapolates 8 times" in flag for f in twelve.forecasts for flag in f.flags)
    table = fit_table(twelve)
    assert {"95 % (t)", "95 % (HC3)", "95 % (wild bootstrap)"} <= set(table.columns)
    assert list(table.frame.columns) == list(table.columns)
    assert ranking_table(twelve).rows[0][1] == "params and tokens"
    json.dumps(slice_values(twelve), default=float)
    assert "_model" not in json.dumps(slice_values(twelve), default=float)


def test_the_loss_is_fitted_once_per_cell(tmp_path: Path) -> None:
    rows = [
        result_row(*shape, evaluation=e, samples=n, loss_heldout=0.1 * (1 + 1 / shape[1]) / shape[0])
        for shape in SHAPES
        for e, n in (("a", 1500), ("b", 3000))
    ]
    table = load_study(write_results(tmp_path, rows))
    (piece,) = scaling_slices(table, LOSS)
    assert (piece.metric, len(piece.table)) == ("held-out loss", 9)
    found = fit_slice(piece)
    assert found.lines["power law"] is not None
    assert "held-out" in found.label
    assert "N =" not in found.label
    assert len(scaling_slices(table)) == 2


def test_seeds_reach_every_form(make_study: Callable[..., Path]) -> None:
    found = fit_slice(scaling_slices(load_study(make_study(seeds=(0, 1))))[0])
    assert found.repeats == 2
    assert {"power law: exponent", "power law with floor: floor", "params and tokens: ln N ln T"} <= set(
        found.bootstraps
    )
    for boot in found.bootstraps.values():
        assert boot.levels == ("model", "training seed")
        assert boot.interval[0] <= boot.interval[1]


def test_one_size_says_why(make_study: Callable[..., Path]) -> None:
    found = fit_slice(scaling_slices(load_study(make_study(shapes=[(4, 64, p) for p in (8, 4, 2, 1)])))[0])
    reasons = dict(found.omitted)
    assert any("Leave one size out" in what and "same size" in why for what, why in reasons.items())
    assert all("\n" not in why for why in reasons.values())


def test_ranking_counts_only_what_all_could_do() -> None:
    def test_of(form: str, scheme: str, error: float) -> HeldOut:
        return HeldOut(form, scheme, ("m",), (100.0,), (100.0 + error,), 1.0)

    ranked = rank_forms([test_of("a", "x", 10), test_of("b", "x", 20), test_of("b", "y", 1)])
    assert [(r.form, round(r.score, 6)) for r in ranked] == [("a", 10), ("b", 20)]
    assert ranked[0].best_in == ("x",)
    assert ranked[0].absent == ("y",)
    assert ranked[1].best_in == ("y",)
    assert rank_forms([]) == []


# --- blocks --------------------------------------------------------------------------------------------------------


def block_rows(exponents: dict[str, float], seeds: int = 1) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    return [
        result_row(
            depth, width, 2, block=block, seed=seed, gmacs=g,
            frechet=30 * g**-exponent * (1.3 if block != "adaln-zero" else 1) * math.exp(rng.normal(0, 0.01)),
        )
        for block, exponent in exponents.items()
        for (depth, width), g in zip(((2, 32), (4, 64), (6, 96), (8, 128)), (1.0, 4.0, 16.0, 64.0), strict=True)
        for seed in range(seeds)
    ]  # fmt: skip


def test_slopes_per_block(tmp_path: Path) -> None:
    table = load_study(write_results(tmp_path, block_rows({"adaln-zero": 0.4, "adaln": 0.4, "in-context": 0.2})))
    slopes = {s.block: s for s in block_slopes(table)}
    assert slopes["adaln-zero"].verdict == "baseline"
    assert slopes["adaln"].verdict == "inconclusive"
    assert slopes["in-context"].verdict == "shallower"
    assert slopes["in-context"].difference == pytest.approx(-0.2, abs=0.02)
    low, high = slopes["in-context"].difference_t
    assert low < -0.2 < high
    assert any("few points" in flag for flag in slopes["adaln"].flags)
    assert plain(slopes["adaln"])["models"] == 4


def test_multipliers_with_seeds_have_intervals(tmp_path: Path) -> None:
    table = load_study(write_results(tmp_path, block_rows({"adaln-zero": 0.4, "adaln": 0.4}, seeds=3)))
    found = [c for c in compare_blocks(table) if c.multiplier is not None]
    assert found
    for comparison in found:
        assert comparison.verdict == "worse"
        assert comparison.multiplier_interval is not None
        low, high = comparison.multiplier_interval
        assert low is not None
        assert low < 1.3 ** (1 / 0.4) < (high or math.inf)
        assert comparison.matched == pytest.approx(1.3, rel=0.03)
        assert set(comparison.rows_of(table)["block"]) == {"adaln-zero", "adaln"}


# --- several studies -----------------------------------------------------------------------------------------------


def test_studies_are_put_together(make_study: Callable[..., Path], tmp_path: Path) -> None:
    one, two = make_study(folder="one", extras=False), make_study(folder="two", seeds=(0, 1), extras=False)
    assert len(load_studies([one, two])) == 18  # the cells they share count once
    write_results(tmp_path / "three", [result_row(*SHAPES[0], frechet=1.5)])
    with pytest.raises(InputError, match="twice with different values in column frechet"):
        load_studies([one, tmp_path / "three"])
    with pytest.raises(InputError, match="no study"):
        load_studies([])


def test_a_table_of_before_a_column_was_added(tmp_path: Path) -> None:
    folder = write_results(tmp_path, [result_row(*shape) for shape in SHAPES])
    lines = (folder / "results.csv").read_text().splitlines()
    at = lines[0].split(",").index("guidance_channels")
    short = [",".join(field for i, field in enumerate(line.split(",")) if i != at) for line in lines]
    (folder / "results.csv").write_text("\n".join(short) + "\n")
    assert set(load_study(folder)["guidance_channels"]) == {""}
