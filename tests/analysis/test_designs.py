"""Designs beside blocks: objectives with samplers of their own, and networks of other kinds at matched compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.answers import answers
from analysis.compare import compare_blocks
from analysis.conditions import comparable_groups, describe_conditions
from analysis.designs import by_design
from analysis.recipes import not_compared
from analysis.slices import LOSS, scaling_slices
from analysis.table import load_studies, load_study

from .conftest import result_row, write_results

SIZES = [(2, 32), (4, 64), (6, 96)]
DDIM = {"sampler": "ddim", "sampling_steps": 24, "objective": "ddpm-hybrid"}
HEUN = {"sampler": "heun", "sampling_steps": 12, "sampling_passes": 24, "objective": "flow"}


def rows_of(ratio: float, **changes: Any) -> list[dict[str, Any]]:
    """Three sizes, two seeds; the distance is `ratio` times what falls with compute."""
    cell = "-".join(map(str, changes.values()))
    return [
        result_row(depth, width, 2, seed=seed, name=f"d{depth}-w{width}-{cell}", **changes)
        | {"cell": f"{cell}{depth}{seed}", "frechet": ratio * (100 / width + 0.01 * seed), "loss_heldout": ratio}
        for depth, width in SIZES
        for seed in (0, 1)
    ]


def load(folder: Path, *rows: list[dict[str, Any]]) -> pd.DataFrame:
    return load_study(write_results(folder, [row for part in rows for row in part]))


def test_objectives_compare_by_distance_and_not_by_loss(tmp_path: Path) -> None:
    table = load(tmp_path, rows_of(1.0, **DDIM), rows_of(0.8, **HEUN, evaluation="b"))
    (group,) = comparable_groups(table)
    assert "DDIM 24 steps / HEUN 12 steps" in describe_conditions(group.conditions)
    found = compare_blocks(table)
    assert [(c.block, c.shape, c.verdict, c.seeds) for c in found] == [
        ("adaln-zero with flow", f"d{depth}-w{width}/2", "better", 2) for depth, width in SIZES
    ]
    assert all(c.multiplier is None or c.multiplier < 1 for c in found)
    assert any(c.multiplier for c in found)
    losses = scaling_slices(table, LOSS)
    assert [set(piece.group.table["objective"]) for piece in losses] == [{"ddpm-hybrid"}, {"flow"}]
    assert ["noise MSE" in losses[0].measured, "velocity MSE" in losses[1].measured] == [True, True]
    told = {answer.question: answer.text for answer in answers(table, pd.DataFrame())}
    assert told["Which objective wins?"].startswith("adaLN-Zero with flow wins at d6-w96/2")


def test_equal_steps_are_named_once(tmp_path: Path) -> None:
    euler = HEUN | {"sampler": "euler", "sampling_steps": 24}
    (group,) = comparable_groups(load(tmp_path, rows_of(1.0, **DDIM), rows_of(0.8, **euler)))
    assert "DDIM / EULER, 24 steps" in describe_conditions(group.conditions)


def test_samplers_of_other_cost_or_several_do_not_compare(tmp_path: Path) -> None:
    dear = HEUN | {"sampling_steps": 24, "sampling_passes": 48}
    table = load(tmp_path / "dear", rows_of(1.0, **DDIM), rows_of(0.8, **dear))
    assert len(comparable_groups(table)) == 2
    ddpm = DDIM | {"sampler": "ddpm"}
    several = load(tmp_path / "two", rows_of(1.0, **DDIM), rows_of(1.0, **ddpm, evaluation="c"), rows_of(0.8, **HEUN))
    assert len(comparable_groups(several)) == 3


def test_samplers_of_nearly_equal_cost_compare(tmp_path: Path) -> None:
    ddim = DDIM | {"sampling_steps": 25}
    table = load(tmp_path / "near", rows_of(1.0, **ddim), rows_of(0.8, **HEUN))
    (group,) = comparable_groups(table)
    assert "DDIM 25 steps / HEUN 12 steps" in describe_conditions(group.conditions)
    assert len(compare_blocks(table)) == len(SIZES)
    far = DDIM | {"sampling_steps": 26}
    assert len(comparable_groups(load(tmp_path / "far", rows_of(1.0, **far), rows_of(0.8, **HEUN)))) == 2
    both = load(tmp_path / "both", rows_of(1.0, **DDIM), rows_of(1.1, **ddim, evaluation="c"), rows_of(0.8, **HEUN))
    names = {describe_conditions(group.conditions) for group in comparable_groups(both)}
    assert len(names) == 2
    assert any("DDIM 24 steps / HEUN 12 steps" in name for name in names)


def test_one_objective_alone_has_no_other_name(tmp_path: Path) -> None:
    assert set(load(tmp_path, rows_of(0.8, **HEUN))["block"]) == {"adaln-zero"}


def test_studies_of_two_objectives_compare(tmp_path: Path) -> None:
    folders = [
        write_results(tmp_path / name, [row | {"study": name} for row in rows])
        for name, rows in (("dit", rows_of(1.0, **DDIM)), ("sit", rows_of(0.8, **HEUN)))
    ]
    assert len(compare_blocks(load_studies(folders))) == 3


def test_a_network_is_compared_with_the_dit_of_its_compute(tmp_path: Path) -> None:
    shapeless = dict.fromkeys(("depth", "width", "heads", "patch_size"), "")
    dits, unets = rows_of(1.0), []
    for row in dits:  # heads belong to the shape of a DiT, and a U-Net has none
        row["recipe"] = f"heads={row['depth']}; learning_rate=0.003"
    for row, ratio in zip(rows_of(1.3, block="unet"), (1.04, 1.04, 0.97, 0.97, 1.2, 1.2), strict=True):
        name = f"unet-{row['width']}-seed{row['seed']}"
        unets.append(
            row
            | shapeless
            | {
                "name": name,
                "recipe": "learning_rate=0.003",
                "gmacs": row["gmacs"] * ratio,
                "params": row["params"] * 2,
            }
        )
    found = compare_blocks(load(tmp_path, dits, unets))
    assert [(c.block, c.shape, c.verdict) for c in found] == [
        ("unet", "d2-w32/2", "worse"),
        ("unet", "d4-w64/2", "worse"),  # the largest differs in compute by a fifth
    ]
    assert not not_compared(load(tmp_path, dits, unets))
    own_rate = [row | {"recipe": "learning_rate=0.001"} for row in unets]
    table = load(tmp_path, dits, own_rate)
    assert compare_blocks(table) == found
    assert not not_compared(table)
    clipped = [row | {"recipe": "learning_rate=0.001; gradient_clip=1.0"} for row in unets]
    assert len(not_compared(load(tmp_path, dits, clipped))) == 2
    again = [row | {"cell": f"{row['cell']}x", "name": f"{row['name']}x"} for row in own_rate]
    two_rates = by_design(load(tmp_path, dits, own_rate, [row | {"recipe": "learning_rate=0.01"} for row in again]))
    assert set(two_rates["recipe"][two_rates["block"] == "unet"]) == {"learning_rate=0.001", "learning_rate=0.01"}
    assert found[0].gmacs == 1.04 * found[0].baseline_gmacs
