"""Specs and their ids."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from harness.cell import Cell, Data, Evaluation, Model, Training, canonical_json, nearest_heads, spec_id

SMALL: dict[str, Any] = {"model": {"depth": 2, "width": 32, "patch_size": 4}}

#: Ids are forever: records in other people's folders are found by them.
GOLDEN = {
    "fb1b01b40a63": SMALL,
    "4186815ed9c4": {
        "model": {"depth": 28, "width": 1152, "heads": 16, "patch_size": 2, "block": "in-context"},
        "data": {"name": "fashion-mnist", "horizontal_flips": True},
        "training": {"steps": 1000, "learning_rate": 1e-3, "ema_window": 0.1},
        "seed": 3,
    },
}


@pytest.mark.parametrize(("expected", "spec"), GOLDEN.items())
def test_golden_ids(expected: str, spec: dict[str, Any]) -> None:
    assert Cell.model_validate(spec).id == expected


def test_golden_evaluation_id() -> None:
    assert Evaluation(samples=1500, sampler="ddim", sampling_steps=25, extractor="digits-cnn").id == "1b48dac67d91"


def test_ids_are_the_same_in_another_process() -> None:
    code = f"from harness.cell import Cell; print(Cell.model_validate({SMALL!r}).id)"
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}
    )
    assert out.stdout.strip() == "fb1b01b40a63"


def test_a_new_field_with_a_default_changes_no_id() -> None:
    class NewTraining(Training):
        warmup: int = 0

    class NewModel(Model):
        registers: int = 0

    class NewCell(Cell):
        model: NewModel
        training: NewTraining = NewTraining()
        note: str = Field(default="", max_length=10)

    for expected, spec in GOLDEN.items():
        assert spec_id(NewCell.model_validate(spec)) == expected
    changed = NewCell.model_validate({**SMALL, "training": {"warmup": 1}})
    assert spec_id(changed) not in GOLDEN


def test_a_field_at_its_default_is_the_same_cell() -> None:
    explicit = Cell.model_validate({**SMALL, "training": {"steps": 400_000, "ema_decay": 0.9999}, "seed": 0})
    assert explicit.id == Cell.model_validate(SMALL).id


def test_every_science_field_is_in_the_id() -> None:
    base = Cell.model_validate(SMALL)
    changes: dict[str, dict[str, Any]] = {
        "model": {"depth": 3, "width": 64, "heads": 2, "patch_size": 2, "block": "adaln", "mlp_ratio": 2.0},
        "diffusion": {"timesteps": 500, "beta_start": 2e-4, "beta_end": 3e-2},
        "data": {"name": "fashion-mnist", "labels": False, "horizontal_flips": True},
        "training": {
            "steps": 7,
            "batch_size": 8,
            "learning_rate": 0.1,
            "weight_decay": 0.1,
            "label_dropout": 0.0,
            "precision": "bf16",
            "ema_decay": 0.5,
            "ema_window": 0.5,
        },
    }
    ids = {base.id, base.model_copy(update={"seed": 1}).id}
    fields = 0
    for section, values in changes.items():
        spec = type(getattr(base, section))
        single_valued = {"objective", "schedule"}
        assert values.keys() == spec.model_fields.keys() - single_valued, "a field is not covered by this test"
        for key, value in values.items():
            fields += 1
            ids.add(Cell.model_validate({**SMALL, section: {**SMALL.get(section, {}), key: value}}).id)
    assert len(ids) == fields + 2


def test_evaluation_id_leaves_out_when() -> None:
    a, b = Evaluation(samples=100, at=(5, 10)), Evaluation(samples=100)
    assert a.id == b.id
    assert a.steps(20) == [5, 10, 20]
    assert a.resolved(Data()).extractor == "digits-cnn"
    assert a.resolved(Data()).id != a.id


def test_minus_zero_is_zero() -> None:
    a = Cell.model_validate({**SMALL, "training": {"label_dropout": -0.0}})
    b = Cell.model_validate({**SMALL, "training": {"label_dropout": 0.0}})
    assert a.id == b.id
    assert "-0" not in canonical_json(a)


def test_canonical_json_is_sorted_and_tight() -> None:
    text = canonical_json(Cell.model_validate(GOLDEN["4186815ed9c4"]))
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize(
    "spec",
    [
        {"model": {"depth": 2, "width": 32, "patch_size": 4, "colour": 1}},
        {"model": {"depth": "2", "width": 32, "patch_size": 4}},
        {"model": {"depth": True, "width": 32, "patch_size": 4}},
        {"model": {"depth": 0, "width": 32, "patch_size": 4}},
        {"model": {"depth": 2, "width": 30, "patch_size": 4}},
        {"model": {"depth": 2, "width": 32, "heads": 5, "patch_size": 4}},
        {"model": {"depth": 2, "width": 32, "patch_size": 3}},
        {**SMALL, "training": {"learning_rate": float("inf")}},
        {**SMALL, "training": {"learning_rate": float("nan")}},
        {**SMALL, "training": {"ema_window": 0.1, "ema_decay": 0.9}},
        {**SMALL, "seed": -1},
        {},
    ],
)
def test_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Cell.model_validate(spec)


def test_frozen() -> None:
    cell = Cell.model_validate(SMALL)
    with pytest.raises(ValidationError):
        cell.seed = 1  # type: ignore[misc]


@given(st.integers(1, 400).map(lambda n: 4 * n))
def test_heads_divide_the_width(width: int) -> None:
    assert width % nearest_heads(width) == 0


def test_published_heads_but_xl() -> None:
    assert [nearest_heads(w) for w in (384, 768, 1024)] == [6, 12, 16]


@given(st.floats(1e-6, 1.0), st.integers(0, 2**31 - 1))
def test_json_round_trip_keeps_the_id(rate: float, seed: int) -> None:
    cell = Cell.model_validate({**SMALL, "training": {"learning_rate": rate, "ema_window": 0.1}, "seed": seed})
    assert Cell.model_validate_json(cell.model_dump_json()).id == cell.id
