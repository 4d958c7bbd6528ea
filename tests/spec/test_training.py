"""The learning rate: by step, and by width."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.spec.training import RateLaw, Training


def rates(**recipe: Any) -> list[float]:
    training = Training(steps=10, learning_rate=1.0, **recipe)
    return [training.rate_at(step) for step in range(1, 11)]


def test_the_schedules() -> None:
    assert rates() == [1.0] * 10
    assert rates(warmup_steps=4) == [0.25, 0.5, 0.75] + [1.0] * 7
    cosine = rates(schedule="cosine", warmup_steps=2)
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)  # in the middle of the 8 steps after the warm-up
    assert rates(schedule="warmup-stable-decay", warmup_steps=1) == [1.0] * 9 + [pytest.approx(1 - 0.5**0.5)]


@given(st.sampled_from(["constant", "cosine", "warmup-stable-decay"]), st.integers(1, 50), st.integers(0, 50))
def test_every_step_has_a_rate(schedule: Any, steps: int, warmup: int) -> None:
    try:
        recipe = Training(steps=steps, warmup_steps=warmup, schedule=schedule)
    except ValidationError:
        assert warmup >= min(steps, round(0.8 * steps))
        return
    found = [recipe.rate_at(step) for step in range(1, steps + 1)]
    assert all(0 < rate <= recipe.learning_rate for rate in found)
    assert found[warmup:] == sorted(found[warmup:], reverse=True)
    assert recipe.rate_varies == (len({*found, recipe.learning_rate}) > 1 or warmup > 0 or schedule != "constant")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"warmup_steps": 11}, "warmup_steps 11 does not fit steps 10 with schedule constant; allowed: 0 to 10"),
        ({"warmup_steps": 10, "schedule": "cosine"}, "allowed: 0 to 9"),
        ({"warmup_steps": 9, "schedule": "warmup-stable-decay"}, "allowed: 0 to 8"),
        ({"warmup_steps": -1}, "greater than or equal to 0"),
        ({"schedule": "linear"}, "'constant', 'cosine' or 'warmup-stable-decay'"),
        ({"gradient_clip": 0.0}, "greater than 0"),
        ({"gradient_clip": float("nan")}, "finite number"),
        ({"beta2": 1.0}, "less than 1"),
        ({"beta2": -0.1}, "greater than or equal to 0"),
    ],
)
def test_refused(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Training(steps=10, **recipe)


def test_the_law_of_the_width() -> None:
    law = RateLaw(base=1e-3, width=64, exponent=1.0)
    assert [law.at(width) for width in (32, 64, 128)] == [2e-3, 1e-3, 5e-4]
    assert RateLaw(base=1e-3, width=64, exponent=0.5).at(128) == 0.0007071  # four digits
