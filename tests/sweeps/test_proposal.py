"""What is proposed for a folder and a budget; no file is read, and prices are made up."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from harness.spec.evaluation import TRAINED_DIMS
from sweeps.commented import text_of
from sweeps.grid import sweep_of
from sweeps.proposal import COUNTED, MOST_EPOCHS, Design, Facts, affordable, propose

FACTS = Facts("/pictures/birds", "birds", "0" * 12, (900, 900), 200, side=64, labelled=True)


def price(speed: float) -> object:
    """Prices in proportion to a rough count of multiply-adds, `speed` of them a second."""

    def seconds(design: Design) -> float:
        cells = [cell for _, cell in design.sweep(Path("s.toml"), "s").cells()]
        each = (c.model.macs_proxy(c.data.shape) * c.training.batch_size * c.training.steps for c in cells)
        return 5 + 3 * sum(each) / speed

    return seconds


def proposed(hours: float, facts: Facts = FACTS, speed: float = 4e10, **more: object) -> Design:
    found = propose(facts, hours * 3600, price(speed), **more)  # type: ignore[arg-type]
    assert isinstance(found, Design)
    return found


def cells_of(design: Design) -> list[str]:
    return [name for name, _ in design.sweep(Path("s.toml"), "s").cells()]


@pytest.mark.parametrize("hours", [0.1, 0.25, 1, 5, 30, 300])
def test_a_proposal_uses_its_budget_and_not_more(hours: float) -> None:
    seconds = price(4e10)
    design = proposed(hours)
    cost = seconds(design)  # type: ignore[operator]
    assert cost <= COUNTED * hours * 3600
    assert cost >= 0.7 * hours * 3600 or design.steps >= 0.9 * design.most_steps
    assert design.fewest_steps <= design.steps <= design.most_steps


def test_more_time_buys_pixels_then_seeds_and_models() -> None:
    many = replace(FACTS, train=(50_000, 50_000), side=256)
    found = [proposed(hours, many) for hours in (0.02, 0.1, 0.25, 0.5, 1, 4, 20, 100, 1000, 1e7)]
    assert [one.resolution for one in found] == sorted(one.resolution for one in found)
    assert found[0].resolution == 8
    assert found[0].seeds == 1
    assert found[-1].resolution == 256
    assert found[-1].on_latents
    assert found[-1].seeds == 2
    assert found[-1].shapes[-1] == (28, 1152)
    assert {len(cells_of(one)) // one.seeds for one in found} <= {5, 6, 7, 8, 9, 10}


def test_the_file_holds_what_was_priced_and_no_edit_is_needed() -> None:
    design = proposed(1)
    text = text_of(design, ["What?", "Run: it"])
    assert max(map(len, text.splitlines())) <= 118
    document = tomllib.loads(text)
    found = sweep_of(Path("s.toml"), "s", document)
    assert [cell for _, cell in found.cells()] == [cell for _, cell in design.sweep(Path("s.toml"), "s").cells()]
    assert document["evaluation"][0]["labels"] == "training"
    assert document["evaluation"][0]["extractor"] == {"kind": "trained", "name": "birds"}
    assert document["resources"] == {"data_folder": "/pictures/birds"}
    for _, cell in found.cells():
        assert cell.model.width > 3 * cell.model.patch_size**2  # type: ignore[attr-defined]


def test_without_classes_nothing_of_classes_is_asked() -> None:
    design = proposed(1, replace(FACTS, train=(1800,), labelled=False))
    (cell, *_) = [cell for _, cell in design.sweep(Path("s.toml"), "s").cells()]
    assert cell.data.shape.classes == 0
    assert "labels" not in design.document["evaluation"][0]
    assert text_of(design, []).count("no classes are learned") == 1


def test_few_images_are_not_shown_for_ever() -> None:
    few = replace(FACTS, train=(20, 20))
    design = proposed(100, few)
    assert design.steps == design.most_steps or design.steps >= 0.9 * design.most_steps
    assert design.steps * design.batch_size <= MOST_EPOCHS * 40
    assert design.batch_size == 32
    assert design.place == 2  # the first of its resolution: larger models would need more steps
    assert design.samples == 5 * TRAINED_DIMS


def test_samples_leave_as_many_images_for_the_floor() -> None:
    assert proposed(1).samples == 800
    assert proposed(1, replace(FACTS, train=(500, 500))).samples == 500


def test_a_gpu_takes_a_larger_batch_of_many_images() -> None:
    assert proposed(1, replace(FACTS, train=(9000, 9000)), on_gpu=True).batch_size == 256
    assert proposed(1, on_gpu=True).batch_size == 64


def test_too_small_a_budget_gives_fewer_steps_than_are_worth_it() -> None:
    design = proposed(1e-3, speed=1e9)
    assert design.steps < design.fewest_steps
    assert not affordable(design, 3.6, price(1e9))  # type: ignore[arg-type]
