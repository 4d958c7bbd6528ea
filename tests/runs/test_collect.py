"""What collect derives from a cell: the autoencoder's name and the recipe."""

from typing import Any

import pytest

from harness.runs.collect import _recipe, _vae_name
from harness.spec.cell import Cell
from harness.spec.model import SIZES

TRAINED = {"kind": "trained", "factor": 2}
PRETRAINED = {"kind": "pretrained", "name": "stabilityai/sd-vae-ft-mse"}


def cell(**changes: Any) -> Cell:
    model = {"depth": 2, "width": 64, "patch_size": 2} | changes.pop("model", {})
    return Cell.model_validate({"model": model, **changes})


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, ""),
        ({"seed": 3, "model": {"block": "adaln"}, "training": {"steps": 5, "batch_size": 8}}, ""),
        ({"training": {"learning_rate": 1e-3, "ema_window": 0.1}}, "ema_window=0.1; learning_rate=0.001"),
        ({"model": {"heads": 2}, "data": {"horizontal_flips": True}}, "heads=2; horizontal_flips=True"),
        ({"model": {**SIZES["XL"]}, "data": {"vae": TRAINED}}, ""),
    ],
)
def test_the_recipe_is_what_else_differs(changes: dict[str, Any], recipe: str) -> None:
    assert _recipe(cell(**changes)) == recipe


def test_the_autoencoder_has_a_name() -> None:
    assert _vae_name(cell().data) is None
    known = {"name": "imagenet", "resolution": 256, "vae": PRETRAINED}
    assert _vae_name(cell(data=known).data) == "stabilityai/sd-vae-ft-mse"
    other = {**known, "vae": {**PRETRAINED, "scaling": 0.5}}
    assert str(_vae_name(cell(data=other).data)).startswith("stabilityai/sd-vae-ft-mse@")
    names = {_vae_name(cell(data={"vae": {**TRAINED, "steps": steps}}).data) for steps in (10, 20)}
    assert len(names) == 2
    assert all(str(name).startswith("trained@") for name in names)
