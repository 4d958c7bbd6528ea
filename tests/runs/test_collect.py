"""What collect derives from a cell: the autoencoder's name and the recipe; and names of any length."""

import os
from pathlib import Path
from typing import Any

import pytest

from harness.files import NAME_BYTES, file_name, write_bytes
from harness.runs.cellruns import CellRun
from harness.runs.collect import _recipe, _vae_name, brought, collect
from harness.runs.columns import TABLES
from harness.runs.study import Shared, Study
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation, TrainedExtractor
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


@pytest.mark.parametrize("length", [12, NAME_BYTES, 225, 255, 2000])
def test_a_name_of_any_length_has_its_picture(tmp_path: Path, length: int) -> None:
    study, name = Study(tmp_path, "s"), "x" * length
    item = CellRun(name, cell(), study.run(cell()), ["e@3"])
    write_bytes(item.run.grid_file("e@3"), b"a picture")
    collect(study, [item])
    (picture,) = study.samples_folder.iterdir()
    assert picture.name == f"{name[:NAME_BYTES]}-{item.cell.id}.png"


def test_what_trained_networks_are_worth_lies_beside_the_tables(tmp_path: Path) -> None:
    study, latent = Study(tmp_path, "s"), cell(data={"vae": TRAINED})
    judge = TrainedExtractor(kind="trained")
    asked = Evaluation.model_validate({"samples": 8, "sampling_steps": 2, "extractor": judge})
    encoding, judged = latent.data.encoding_name, judge.folder_name(latent.data)
    shared = Shared(tmp_path)
    item = CellRun("a", latent, study.run(latent), ["e@3"], evaluations=(asked,))
    collect(study, [item])
    assert not study.cards_folder.exists(), "nothing is trained yet"
    write_bytes(shared.reconstruction_file(encoding), b"numbers")
    write_bytes(shared.reconstruction_picture(encoding), b"picture")
    write_bytes(shared.extractor_card(judged), b"card")
    collect(study, [item, CellRun("b", cell(), study.run(cell()), ["e@3"])])
    found = {path.name: path.read_bytes() for path in study.cards_folder.iterdir()}
    assert found == {
        f"autoencoder-{encoding}.json": b"numbers", f"autoencoder-{encoding}.png": b"picture",
        f"extractor-{judged}.json": b"card",
    }  # fmt: skip


def test_tables_brought_here_stay_until_a_cell_is_begun(tmp_path: Path) -> None:
    study = Study(tmp_path, "s")
    item = CellRun("a", cell(), study.run(cell()), ["e@3"])
    assert collect(study, [item]) == []
    empty = study.table("results.csv").read_text()
    assert brought(study, [item]) == set(), "a table without rows is nothing to keep"
    there = empty + f"s,{item.cell.id}" + "," * (empty.count(",") - 1) + "\n"
    for name in TABLES:
        study.table(name).write_text(there)
    assert brought(study, [item]) == {item.cell.id}
    assert collect(study, [item]) == []
    assert {study.table(name).read_text() for name in TABLES} == {there}
    item.run.claim(1, {})
    item.refresh()
    assert brought(study, [item]) == set()
    collect(study, [item])
    assert study.table("results.csv").read_text() == empty


@pytest.mark.parametrize("name", ["é" * 127, "d" * 255, "名" * 85])
def test_a_file_may_have_the_longest_name_there_is(tmp_path: Path, name: str) -> None:
    write_bytes(tmp_path / name, b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(os.fsencode(file_name(name, ".png"))) <= NAME_BYTES + 4
