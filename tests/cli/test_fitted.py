"""Tables at the width of a terminal: no number is cut, and what is left out is named."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from harness.cli.fitted import Column, FittedTable
from harness.cli.tables import StatusRow, plan_table, results_table, status_table
from harness.runs.columns import PUBLISHED_INCEPTION

TOTALS = {
    **{"cells": 2, "train_gmacs": 1.1e11, "sampling_gmacs": 3e9, "estimated_s": 1e9, "site": "1 GPU", "on_gpu": True},
    **{"gpu_hours": 530.0, "throughput": "assumed", "tflops": 100.0, "latents": 0, "time_source": "assumed"},
    **dict.fromkeys(("latents_bytes", "weights_bytes", "samples_bytes", "states_bytes"), 10**9),
}


LOSSES = {"loss_train": 0.1, "loss_heldout": 0.2}


def printed(table: FittedTable, width: int) -> list[str]:
    """Its lines in a terminal of this width."""
    out = io.StringIO()
    Console(file=out, width=width, markup=False, emoji=False, highlight=False).print(table, crop=False)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def is_whole(text: str, lines: list[str]) -> bool:
    """Whether the text stands by itself in one of the lines."""
    return any(re.search(rf"(?<!\S){re.escape(text)}(?!\S)", line) for line in lines)


def priced() -> FittedTable:
    """A plan whose numbers are as long as they can be."""
    long = {"params_m": 0.0001234, "gmacs": 1.234e-05, "train_gmacs": 1.234e11, "sampling_gmacs": 1.234e-06}
    long |= {"learning_rate": 1.234e-05, "steps": 400_000, "images": 1.024e8, "epochs": 12.34}
    shape = {"block": "cross-attention", "depth": 28, "width": 1152, "heads": 16, "patch_size": 2, "tokens": 1024}
    rows = [
        {
            "name": f"XL-{n}",
            "id": "0123456789ab",
            **shape,
            **long,
            "gpu_hours": 1.234e-07,
            "estimated_s": 1e9,
            "state": state,
        }
        for n, state in ((2, "interrupted"), (4, "done"))
    ]
    return plan_table("The twelve DiTs", rows, TOTALS)


def stated() -> FittedTable:
    """A status with a long message, which holds what looks like markup."""
    row: StatusRow = {
        "id": "0123456789ab",
        "name": "d2-w32-p2",
        "state": "running",
        "stage": "score precision",
        "done": 12345,
        "total": 40000,
        "loss": 0.00012345,
        "images_per_s": 12345.6,
        "mfu": 0.456,
        "seconds_left": 100.0,
        "attempt": 12,
        "host": "node1234",
        "node": "node1234",
        "cause": None,
        "message": "[red]waits[/red] for a thing " * 5,
    }
    return status_table("A title", [row, {**row, "id": "abc", "name": "d2-w32-p4", "state": "queued"}])


def measured(extractor: str = "digits-cnn@dfd27a5b", **more: Any) -> FittedTable:
    """Results with two sampling seeds that differ."""
    row = {
        **{"cell": "0123456789ab", "name": "d2-w32-p2", "step": 400000, "samples": 50000, "sampling_steps": 250},
        **{"guidance": 1.5, "guidance_channels": "all", "labels": "uniform", "ema": True, "sampler": "ddpm"},
        **{"data": "digits", "vae": None, "reference": "digits/train(1500)@634488df", "protocol": "3a717c"},
        **{"params_m": 675.1234, "gmacs": 118.6412, "extractor": extractor, "frechet": 12.34567, "kid": 0.0012345},
        **{"precision": 0.7654, "recall": 0.5432, "loss_train": 0.12345, "loss_heldout": 0.23456},
        **{"train_seconds": 1e6, "sample_seconds": 1e5, "seed": 0, "sampling_seed": 0},
        **{"objective": "ddpm-hybrid", "sampling_passes": 500},
    }
    again = {**row, "frechet": 13.9, "kid": 0.0022, "sampling_seed": 1}
    return results_table("A title", [row, again, {**row, "name": "d9", "cell": "c", **more}])


@pytest.mark.parametrize("width", [40, 80, 100, 120])
@pytest.mark.parametrize("table", [priced(), stated(), measured(), measured(guidance=4.0, samples=10000)])
def test_every_number_is_whole_and_what_is_missing_is_named(table: FittedTable, width: int) -> None:
    lines = printed(table, width)
    assert all(len(line) <= width for line in lines)
    told = " ".join(lines).partition("columns not shown: ")[2]
    wide = printed(replace(table, wide=True), width)
    assert not any("columns not shown" in line for line in wide)
    for column in table.columns:
        texts = [str(column.text(row)) for row in table.rows]
        if not any(texts):
            continue
        if re.search(rf"(^|, ){re.escape(column.title)}( \(|,|;)", told):
            assert column.title != "cell"
            continue
        for text in texts if column.justify == "right" else ():
            assert is_whole(text, lines), (column.title, text)
    for text in (str(column.text(row)) for column in table.columns for row in table.rows if column.justify == "right"):
        assert is_whole(text, wide), text


def test_a_plan_at_80_columns_has_four_lines_of_header() -> None:
    lines = printed(priced(), 80)
    rule = next(number for number, line in enumerate(lines) if set(line) == {"─"})
    assert rule + 1 <= 4
    assert lines[rule + 1].startswith("XL-2")
    assert lines[rule + 2].startswith("XL-4"), "a row takes one line"
    shown = " ".join(lines[:rule])
    assert all(word in shown for word in ("cell", "GMACs", "GPU", "est.", "state"))
    assert "block (cross-attention)" in " ".join(lines), "what all share is said"


def test_what_differs_between_rows_of_a_cell_is_kept() -> None:
    lines = printed(measured(guidance=4.0), 60)
    assert "guidance" in " ".join(lines[:4])
    assert any("4.0" in line for line in lines)


def test_a_metric_has_one_name() -> None:
    shown = " ".join(printed(measured(), 200))
    assert "FD-digits-cnn" in shown
    assert "KD-digits-cnn" in shown
    assert "KID" not in shown
    shown = " ".join(printed(measured(PUBLISHED_INCEPTION), 200))
    assert "FID" in shown
    assert "KID" in shown


def test_a_text_is_folded_and_cut_at_a_word() -> None:
    text = Column("text", lambda row: row["text"], least=12)
    number = Column("n", lambda row: row["n"], "right")
    table = FittedTable("", [number, text], [{"n": "1.25", "text": "one two three four five"}], "")
    folded = [line for line in printed(table, 20) if line]
    assert [line.split()[-1] for line in folded[2:4]] == ["three", "five"]
    (short,) = [line for line in printed(replace(table, one_line=True), 20) if "1.25" in line]
    assert short == "1.25  one two …"
    assert len(printed(replace(table, head=False), 80)) == len(printed(table, 80)) - 3


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_name_is_never_broken_while_lesser_columns_are_there(width: int) -> None:
    name = "d2-w32-p2-in-context-seed0-steps400"
    for table in (priced(), stated(), measured()):
        rows = [{**row, "name": name} for row in table.rows]
        lines = printed(replace(table, rows=rows), width)
        assert is_whole(name, lines)
        assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(("passes", "warned"), [(500, False), (1000, True)])
def test_objectives_have_their_own_samplers(passes: int, warned: bool) -> None:
    flow: dict[str, Any] = {
        "objective": "flow",
        "sampler": "heun",
        "sampling_steps": passes // 4,
        "sampling_passes": passes,
    }
    table = measured(**flow, protocol="b")
    assert "losses of two objectives do not compare" in str(table.caption)
    assert ("warning: measured in different ways" in str(table.caption)) == warned


def test_models_with_several_seeds_have_one_row_in_the_order_of_the_grid() -> None:
    known = dict(measured().rows[0]) | {"train_seconds": 5.0, "sample_seconds": 1.0, "kid": None}
    rows = [
        known | {"name": f"{model}-seed{seed}", "cell": f"{model}{seed}", "seed": seed, "frechet": base + seed}
        for model, base in (("d4-w32", 10.0), ("d2-w32", 30.0))
        for seed in (0, 1, 2)
    ]
    table = results_table("A title", [{**row, "precision": 0.5, "recall": 0.5, **LOSSES} for row in rows])
    lines = printed(table, 120)
    found = [line.split() for line in lines if line.startswith("d")]
    assert [line[0] for line in found] == ["d4-w32", "d2-w32"]
    assert found[0][4:7] == ["11", "±", "1"]
    assert [row["seconds"] for row in table.rows] == [18.0, 18.0]
    assert "mean ± standard deviation over up to 3 training seeds; time: training to this step" in table.caption
