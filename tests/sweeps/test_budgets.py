"""A training compute that a sweep gives in the place of steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from harness.model.cost import count_cell
from sweeps.grid import load_sweep

SWEEP = """
[grid]
budget = [1e12, 4e12]
width = [32, 64]
[model]
depth = 2
patch_size = 4
[training]
batch_size = 16
warmup_steps = 10
schedule = "cosine"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_sizes_times_budgets_are_an_isoflop_sweep(tmp_path: Path) -> None:
    cells = dict(load_sweep(write(tmp_path, SWEEP)).cells())
    assert list(cells) == [f"d2-w{width}-p4-budget{budget}" for budget in ("1e12", "4e12") for width in (32, 64)]
    for name, cell in cells.items():
        step = 6 * count_cell(cell).macs * 16
        assert cell.training.steps * step == pytest.approx(float(name.rpartition("budget")[2]), abs=step / 2)


def test_a_cell_has_the_id_of_one_whose_steps_are_given(tmp_path: Path) -> None:
    _, cell = next(load_sweep(write(tmp_path, SWEEP)).cells())
    text = SWEEP.replace("budget = [1e12, 4e12]\n", "").replace(
        "[training]", f"[training]\nsteps = {cell.training.steps}"
    )
    assert next(load_sweep(write(tmp_path, text)).cells()).cell.id == cell.id


def test_a_budget_is_dropped_as_the_file_has_it(tmp_path: Path) -> None:
    cells = load_sweep(write(tmp_path, f"{SWEEP}[[exclude]]\nbudget = 4e12\nwidth = 32\n")).cells()
    assert [name for name, _ in cells] == ["d2-w32-p4-budget1e12", "d2-w64-p4-budget1e12", "d2-w64-p4-budget4e12"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "1e12, ",
            "1e5, ",
            r"training.budget: 100000 is less than one step of d2-w32-p4 with batch_size 16, which takes",
        ),
        ("1e12, ", "1e27, ", r"training.budget: 1e\+27; allowed: operations, a number above 0 and up to 1e\+26"),
        ("1e12, ", "-1, ", "training.budget: -1; allowed"),
        ("1e12, ", "nan, ", "training.budget: nan; allowed"),
        ("1e12, ", "true, ", "training.budget: True; allowed"),
        ("1e12, ", '"4h", ', "training.budget: '4h'; allowed"),
        ("[training]", "[training]\nsteps = 5", "training.budget: training.steps is set too; keep one of them"),
        ("[training]", "[training]\nbudget = 5", "grid.budget: training.budget is set outside the grid too"),
        ("warmup_steps = 10", "warmup_steps = 500000", r"warmup_steps 500000 does not fit steps \d+ with schedule"),
        ("budget = [", "budgets = [", r"'budgets' is no field of a cell \(did you mean budget\?\)"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, SWEEP.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_sweep(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
