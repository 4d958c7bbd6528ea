"""The best learning rate at each width, and the law through them, on losses whose minimum is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from analysis.fit.common import CannotFitError
from analysis.fit.rates import best_rates, rate_law

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def trials(best: Callable[[int, int], float], rates: tuple[float, ...] = RATES, seeds: int = 2) -> pd.DataFrame:
    """Losses that are a parabola in the logarithm of the rate, by width and seed."""
    return pd.DataFrame(
        [
            {"width": width, "learning_rate": rate, "seed": seed,
             "loss": math.exp(0.1 * math.log(rate / best(width, seed)) ** 2 - 1)}
            for width in (128, 32, 64) for rate in rates for seed in range(seeds)
        ]
    )  # fmt: skip


def test_a_known_law_is_found() -> None:
    found = best_rates(trials(lambda width, seed: 1e-3 * (width / 64) ** -0.7 * (1.1 if seed else 1 / 1.1)))
    assert [best.width for best in found] == [32, 64, 128]
    for best in found:
        assert best.rate == pytest.approx(1e-3 * (best.width / 64) ** -0.7)
        assert best.interval is not None
        assert best.interval[0] < best.rate / 1.1 < best.rate * 1.1 < best.interval[1]
    law = rate_law(found)
    assert (law.base, law.width) == (1e-3, 64)
    assert law.exponent == pytest.approx(0.7)
    assert law.interval[0] < 0.7 < law.interval[1]
    assert law.text == "learning_rate = { base = 0.001, width = 64, exponent = 0.70 }"


def test_a_best_rate_at_the_end_of_those_tried_gives_no_law() -> None:
    found = best_rates(trials(lambda width, _: 1000 / width**3))
    assert [best.edge for best in found] == ["highest", "", ""]
    assert found[0].rate == pytest.approx(1e-2)
    assert found[0].interval is None
    with pytest.raises(CannotFitError, match="the highest tried is the best at width 32"):
        rate_law(found)


def test_a_training_that_diverged_is_the_worst() -> None:
    table = trials(lambda *_: 1.2e-3)
    table.loc[(table["width"] == 64) & (table["learning_rate"] >= 3e-3) & (table["seed"] == 0), "loss"] = np.inf
    by_width = {best.width: best for best in best_rates(table)}
    assert by_width[64].rate == pytest.approx(1e-3)  # beside one that diverged there is no parabola
    assert math.isinf(by_width[64].losses[3e-3])
    assert by_width[32].rate == pytest.approx(1.2e-3)


def test_what_cannot_be_fitted_is_said() -> None:
    with pytest.raises(CannotFitError, match="width 32 has 2 rates; a parabola needs three"):
        best_rates(trials(lambda *_: 1e-3, RATES[:2]))
    with pytest.raises(CannotFitError, match="every training of width 32 diverged; lower rates are needed"):
        best_rates(trials(lambda *_: 1e-3).assign(loss=math.inf))
    with pytest.raises(CannotFitError, match="3 points"):
        rate_law(best_rates(trials(lambda width, _: 0.064 / width, seeds=1)))
