"""Does equal compute buy an equal metric: pairs of models, over seeds."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from analysis.equal import ComputePair, equal_answer, equal_compute_pairs
from analysis.power import smallest_gap
from analysis.slices import scaling_slices
from analysis.table import load_study

from .conftest import result_row, write_results


def _pairs(folder: Path, values: dict[tuple[int, float], list[float]]) -> list[ComputePair]:
    """Pairs of models by patch size and compute, with the values of seeds 0, 1, ..."""
    rows = [
        result_row(2, 32, patch, seed=seed, frechet=value, gmacs=gmacs)
        for (patch, gmacs), found in values.items() for seed, value in enumerate(found)
    ]  # fmt: skip
    piece = scaling_slices(load_study(write_results(folder / "equal", rows)))[0]
    return equal_compute_pairs(piece.table, piece.column)


def test_ratio_and_interval_are_of_pairs_of_one_seed(tmp_path: Path) -> None:
    good, bad = [4.0, 5.0, 6.0], [4.9, 5.9, 7.6]
    (found,) = _pairs(tmp_path, {(4, 1.0): bad, (2, 1.05): good})
    logs = np.log(bad) - np.log(good)
    low, high = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert (found.better, found.worse) == ("d2-w32/2", "d2-w32/4")
    assert found.gmacs == (1.05, 1.0)
    assert found.ratio == pytest.approx(np.exp(logs.mean()))
    assert found.interval == pytest.approx((np.exp(low), np.exp(high)))
    assert found.smallest == pytest.approx(np.exp(smallest_gap(logs.std(ddof=1), 3, paired=True)))
    assert found.apart
    assert found.equal


def test_what_is_trained_once_has_no_interval(tmp_path: Path) -> None:
    (found,) = pairs = _pairs(tmp_path, {(4, 1.0): [5.0], (2, 1.05): [4.0, 4.1]})
    assert (found.interval, found.smallest, found.apart) == (None, None, False)
    answer = equal_answer(pairs, "FD")
    assert answer is not None
    assert "cannot be told" in answer.text
    assert "1.23 times the value of d2-w32/2" in answer.text


def test_one_patch_size_and_far_compute_are_not_asked(tmp_path: Path) -> None:
    (found,) = pairs = _pairs(tmp_path, {(4, 1.0): [5.0, 5.1], (2, 1.2): [4.0, 4.1]})
    assert not found.equal
    assert equal_answer(pairs, "FD") is None
    assert _pairs(tmp_path, {(4, 1.0): [5.0, 5.1], (2, 1.3): [4.0, 4.1]}) == []


def test_answer_counts_what_differs_and_what_cannot_be_told(tmp_path: Path) -> None:
    sure = {(8, 1.0): [8.0, 8.2, 8.1], (4, 1.01): [4.0, 4.2, 4.1], (2, 1.02): [4.1, 4.1, 4.2]}
    answer = equal_answer(_pairs(tmp_path, sure), "FD")
    assert answer is not None
    assert answer.question == "Do equal Gflops buy an equal FD, whatever the patch size?"
    assert answer.text.startswith("Not always: of 3 pairs")
    assert "2 differ for sure (d2-w32/8 at 1.98 times the value of d2-w32/4 (95 %: " in answer.text
    assert "1 cannot be told apart (a ratio of" in answer.text
    assert answer.trust.startswith("fair: 3 seeds")
    alike = {(4, 1.0): [4.0, 4.2, 4.1, 4.3, 4.0], (2, 1.02): [4.1, 4.1, 4.2, 4.2, 4.1]}
    told = equal_answer(_pairs(tmp_path, alike), "FD")
    assert told is not None
    assert told.text.startswith("As far as can be told: of 1 pair")
    assert told.trust.startswith("high")
