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

from harness.spec.cell import Cell
from harness.spec.data import Data, PretrainedVae, TrainedVae
from harness.spec.evaluation import Evaluation
from harness.spec.identity import canonical_json, describe_validation_error, spec_id
from harness.spec.model import DiTSpec, nearest_heads
from harness.spec.training import Training

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


def test_an_evaluation_of_before_guidance_channels_keeps_its_id() -> None:
    assert Evaluation(guidance=1.5, guidance_channels="as-published").id == Evaluation(guidance=1.5).id
    chosen = {Evaluation(guidance=1.5, guidance_channels=c).id for c in ("as-published", "all", "first-three")}
    assert len(chosen) == 3


@pytest.mark.parametrize(
    ("choice", "expected"),
    [("as-published", {1: 1, 3: 3, 4: 3, 8: 8}), ("all", {1: 1, 4: 4}), ("first-three", {3: 3, 4: 3, 8: 3})],
)
def test_guided_channels(choice: Any, expected: dict[int, int]) -> None:
    assert {c: Evaluation(guidance_channels=choice).guided_channels(c) for c in expected} == expected


@pytest.mark.parametrize("channels", [1, 2])
def test_there_are_no_first_three_of_fewer(channels: int) -> None:
    with pytest.raises(ValueError, match=f"needs at least 3 channels, the model has {channels}"):
        Evaluation(guidance_channels="first-three").guided_channels(channels)


def test_ids_are_the_same_in_another_process() -> None:
    code = f"from harness.spec.cell import Cell; print(Cell.model_validate({SMALL!r}).id)"
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"}
    )
    assert out.stdout.strip() == "fb1b01b40a63"


def seeded(seed: int = 0, **seeds: int) -> Cell:
    return Cell.model_validate({**SMALL, "seed": seed, "seeds": seeds})


def test_one_training_has_one_id_however_its_seeds_are_written() -> None:
    assert seeded(noise=0, order=0).id == Cell.model_validate(SMALL).id
    assert seeded(3, initialisation=0, order=0, noise=0).id == Cell.model_validate(SMALL).id
    assert (
        seeded(3, initialisation=0, order=0).id
        == seeded(0, noise=3).id
        == seeded(9, initialisation=0, order=0, noise=3).id
    )
    assert seeded(initialisation=3).id == seeded(3, order=0, noise=0).id
    alone = [seeded(**{name: 3}).id for name in ("initialisation", "order", "noise")]
    assert len({*alone, seeded(3).id, seeded().id}) == 5


def test_a_new_field_with_a_default_changes_no_id() -> None:
    class NewTraining(Training):
        warmup: int = 0

    class NewModel(DiTSpec):
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
        "model": {
            "depth": 3,
            "width": 64,
            "heads": 2,
            "patch_size": 2,
            "block": "adaln",
            "mlp_ratio": 2.0,
            "qk_norm": True,
        },
        "diffusion": {"timesteps": 500, "beta_start": 2e-4, "beta_end": 3e-2},
        "data": {"name": "fashion-mnist", "labels": False, "horizontal_flips": True, "subset": 0.5},
        "training": {
            "steps": 7,
            "batch_size": 8,
            "learning_rate": 0.1,
            "weight_decay": 0.1,
            "label_dropout": 0.0,
            "precision": "bf16",
            "ema_decay": 0.5,
            "ema_window": 0.5,
            "warmup_steps": 5,
            "gradient_clip": 1.0,
            "beta2": 0.95,
        },
    }
    ids = {base.id, base.model_copy(update={"seed": 1}).id}
    fields = 0
    for section, values in changes.items():
        spec = type(getattr(base, section))
        single_valued = {"objective", "schedule", "network"}
        # what only a folder of images has is below
        elsewhere = {"resolution", "classes", "fingerprint", "background", "vae"} if section == "data" else set()
        covered = spec.model_fields.keys() - single_valued - elsewhere
        assert values.keys() == covered, "a field is not covered by this test"
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


FOLDER: dict[str, Any] = {"name": "folder", "resolution": 64, "classes": 3, "fingerprint": "0123456789ab"}
PRETRAINED: dict[str, Any] = {"kind": "pretrained", "name": "stabilityai/sd-vae-ft-mse"}
TRAINED: dict[str, Any] = {"kind": "trained"}


def test_everything_of_a_folder_and_of_a_vae_is_in_the_id() -> None:
    base = {**FOLDER, "vae": None}
    changes: list[dict[str, Any]] = [
        base,
        *({**base, key: value} for key, value in (("resolution", 32), ("classes", 4), ("fingerprint", "0" * 12))),
        *({**base, "vae": vae} for vae in (PRETRAINED, TRAINED)),
        *(
            {**base, "vae": {**PRETRAINED, key: value}}
            for key, value in {"name": "other", "factor": 16, "channels": 16, "scaling": "measured"}.items()
        ),
    ]
    recipe = {"factor": 2, "channels": 3, "width": 8, "steps": 9, "batch_size": 7, "learning_rate": 0.1}
    recipe |= {"kl_weight": 0.5, "seed": 4}
    assert recipe.keys() == TrainedVae.model_fields.keys() - {"kind"}
    assert PretrainedVae.model_fields.keys() == {"kind", "name", "factor", "channels", "scaling"}
    changes += [{**base, "vae": {**TRAINED, key: value}} for key, value in recipe.items()]
    assert len({spec_id(Data.model_validate(data)) for data in changes}) == len(changes)


def test_ids_of_latent_cells_are_golden() -> None:
    model = {"depth": 28, "width": 1152, "heads": 16, "patch_size": 2}
    paper = {"model": model, "data": {"name": "imagenet", "resolution": 256, "vae": PRETRAINED}}
    assert Cell.model_validate(paper).id == "3656ee5af4e9"
    small = {"model": {**SMALL["model"]}, "data": {"name": "fashion-mnist", "vae": TRAINED}}
    assert Cell.model_validate(small).id == "6d892c7394aa"


def test_shapes_with_and_without_a_vae() -> None:
    assert Data.model_validate({"name": "imagenet", "resolution": 512}).shape == (3, 512, 1000)
    latent = Data.model_validate({"name": "imagenet", "resolution": 512, "vae": PRETRAINED})
    assert latent.shape == (4, 64, 1000)
    assert latent.image_shape == (3, 512, 1000)
    assert Data.model_validate({**FOLDER, "labels": False}).shape == (3, 64, 0)
    assert Data.model_validate({"name": "fashion-mnist", "vae": {**TRAINED, "channels": 2}}).shape == (2, 8, 10)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"name": "imagenet"}, "name imagenet needs resolution, for example 256"),
        ({"name": "imagenet", "resolution": 256, "classes": 10}, "classes is fixed for name imagenet; leave it out"),
        ({**FOLDER, "fingerprint": None}, "name folder needs fingerprint; `python -m harness.data.images FOLDER`"),
        ({**FOLDER, "fingerprint": "XYZ"}, "fingerprint: String should match pattern"),
        ({"name": "digits", "resolution": 8}, "resolution is fixed for name digits; leave it out"),
        (
            {"name": "digits", "vae": {**TRAINED, "factor": 16}},
            "vae.factor 16 does not divide the 8x8 images; allowed: 2, 4, 8",
        ),
        ({"vae": {**TRAINED, "factor": 6}}, "factor 6 is no power of two; allowed: 2, 4, 8, 16, ..."),
        ({"vae": {"channels": 4}}, "data.vae: needs a kind; allowed: 'pretrained', 'trained'"),
        ({"vae": {"kind": "own"}}, "data.vae: needs a kind; allowed: 'pretrained', 'trained'"),
        ({"vae": {**TRAINED, "colour": 1}}, "data.vae.trained.colour: unknown key"),
        ({"vae": {**PRETRAINED, "scaling": 0.0}}, "greater than 0"),
    ],
)
def test_an_incomplete_data_set_is_one_clear_line(data: dict[str, Any], line: str) -> None:
    with pytest.raises(ValidationError) as error:
        Cell.model_validate({**SMALL, "data": data})
    assert line in describe_validation_error(error.value)


def test_a_latent_cell_survives_json() -> None:
    cell = Cell.model_validate({**SMALL, "data": {**FOLDER, "vae": PRETRAINED}})
    assert Cell.model_validate_json(cell.model_dump_json()) == cell
