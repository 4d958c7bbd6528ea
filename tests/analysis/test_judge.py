"""Differences of designs: in pairs of one seed where seeds are shared, otherwise by Welch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.compare import compare_blocks
from analysis.judge import Sides
from analysis.slices import largest_slice
from analysis.table import load_study
from analysis.winner import blocks_answer, seeds_advice, verdicts

from .conftest import result_row, write_results

NOISE = [0.0, 1.1, -0.9, 2.0, -2.1]  # of a seed, shared by the designs
OWN = [0.1, -0.1, 0.05, -0.15, 0.1]


def side(values: list[float], first: int = 0) -> pd.Series[float]:
    return pd.Series(values, index=[str(first + index) for index in range(len(values))])


def test_pairs_find_what_noise_hides() -> None:
    own, base = np.add(30.5, NOISE), np.add(np.add(30, NOISE), OWN)
    sides = Sides.of(side(list(own)), side(list(base)))
    found = sides.judge(None)
    assert sides.paired
    assert (found.verdict, found.reason) == ("worse", "paired interval over 5 seeds")
    assert found.interval == pytest.approx(tuple(stats.ttest_rel(own, base).confidence_interval(0.95)))
    apart = Sides.of(side(list(own)), side(list(base), first=5))
    assert not apart.paired
    assert apart.judge(None).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("own", "base", "first", "compared"),
    [
        ([1.0, 2.0], [3.0, 5.0, 4.0], 0, (2, 2, True)),  # the third has no partner
        ([1.0, 2.0], [3.0, 5.0, 4.0], 1, (2, 3, False)),  # one of two has none
        ([1.0], [3.0, 5.0], 0, (1, 2, False)),
        ([1.0, 2.0, 3.0], [2.0, 3.0, 4.0], 0, (3, 3, False)),  # pairs that differ alike say nothing
    ],
)
def test_which_trainings_are_pairs(
    own: list[float], base: list[float], first: int, compared: tuple[int, int, bool]
) -> None:
    sides = Sides.of(side(own), side(base, first))
    assert (len(sides.own), len(sides.base), sides.paired) == compared


def rows_of(block: str, level: float, **changes: Any) -> list[dict[str, Any]]:
    return [
        result_row(4, 64, 2, block=block, seed=seed, frechet=level + NOISE[seed] + (block != "adaln-zero") * OWN[seed])
        | changes
        for seed in range(5)
    ]


def test_what_pairing_gains_stands_with_the_comparison(tmp_path: Path) -> None:
    rows = [*rows_of("adaln-zero", 30), *rows_of("adaln", 30.5)]
    (found,) = compare_blocks(load_study(write_results(tmp_path / "a", rows)))
    assert found.verdict == "worse"
    own, base = np.add(np.add(30.5, NOISE), OWN), np.add(30, NOISE)
    assert found.metric == pytest.approx(stats.gmean(own))
    assert found.ratio == pytest.approx(stats.gmean(own / base))
    assert found.pair_sd == pytest.approx(np.std(np.log(own / base), ddof=1))
    ends = stats.ttest_rel(np.log(own), np.log(base)).confidence_interval(0.95)
    assert found.interval == pytest.approx(tuple(np.exp(ends)))
    assert found.pairing_gain == pytest.approx(2 * (found.seed_sd or 0) ** 2 / np.var(np.log(own / base), ddof=1))
    assert (found.pairing_gain or 0) > 100
    # one seed means other draws in another version of them
    old = [*rows_of("adaln-zero", 30, draws=2), *rows_of("adaln", 30.5, draws=1)]
    (found,) = compare_blocks(load_study(write_results(tmp_path / "b", old)))
    assert (found.verdict, found.pair_sd, found.pairing_gain) == ("inconclusive", None, None)


def test_advice_counts_on_pairs(tmp_path: Path) -> None:
    rows = [*rows_of("adaln-zero", 30), *rows_of("adaln", 30.02)]
    advice = seeds_advice(verdicts(largest_slice(load_study(write_results(tmp_path, rows)))))
    assert "10 show a gap from about 0.39 % on" in advice


def test_a_large_difference_is_plain_and_one_number_in_verdict_and_advice(tmp_path: Path) -> None:
    rows = [
        result_row(8, 192, 2, block=block, seed=seed, frechet=value)
        for block, values in (("adaln-zero", (1.2, 1.9)), ("adaln", (0.53, 0.54)))
        for seed, value in enumerate(values)
    ]
    piece = largest_slice(load_study(write_results(tmp_path, rows)))
    found = verdicts(piece)
    advice = seeds_advice(found)
    share = 100 * (1 - stats.gmean([0.53, 0.54]) / stats.gmean([1.2, 1.9]))
    assert f"a difference of {share:.3g} %" in blocks_answer(found, piece).said
    assert f"differ by {share:.2g} %" in advice
    assert "e+" not in advice + blocks_answer(found, piece).said


def test_shares_stay_within_all_of_it(tmp_path: Path) -> None:
    """Noise goes with the size of a distance: what is far better lies less than 100 % below, at both ends."""
    rows = [
        result_row(8, 192, 2, block=block, seed=seed, frechet=value)
        for block, values in (("adaln-zero", (4.1, 3.8, 4.2)), ("adaln", (21.0, 26.0, 33.0)))
        for seed, value in enumerate(values)
    ]
    found = verdicts(largest_slice(load_study(write_results(tmp_path, rows))))
    ratio = found[0].against[0].interval or (0.0, 0.0)
    assert 1 < ratio[0] < found[0].against[0].ratio < ratio[1]
    low, high = (100 - 100 / end for end in ratio)
    assert 0 < low < high < 100
    said = blocks_answer(found, largest_slice(load_study(tmp_path))).said
    assert f"(95 %: {low:.3g} to {high:.3g} %) below adaLN (" in said
