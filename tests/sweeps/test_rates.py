"""A learning rate that a sweep gives as a law of the width."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from sweeps.grid import load_sweep

SWEEP = """
[grid]
width = [32, 64, 128]
[model]
depth = 2
patch_size = 4
[training]
steps = 10
learning_rate = { base = 1e-3, width = 64, exponent = 0.5 }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_a_cell_has_the_rate_of_its_width(tmp_path: Path) -> None:
    cells = [cell for _, cell in load_sweep(write(tmp_path, SWEEP)).cells()]
    assert [cell.training.learning_rate for cell in cells] == [0.001414, 0.001, 0.0007071]
    number = SWEEP.replace("{ base = 1e-3, width = 64, exponent = 0.5 }", "1e-3")
    named = [cell for _, cell in load_sweep(write(tmp_path, number)).cells()]
    assert [a.id == b.id for a, b in zip(cells, named, strict=True)] == [False, True, False]


def test_laws_are_an_axis_and_are_dropped_as_the_file_has_them(tmp_path: Path) -> None:
    law, axis = "learning_rate = { base = 1e-3, width = 64, exponent = 0.5 }", "learning_rate = 1e-3"
    text = SWEEP.replace(f"{law}\n", "").replace("[model]", f"recipe = [{{ {law} }}, {{ {axis} }}]\n[model]")
    with pytest.raises(InputError, match="the same cell; every cell once"):  # at width 64
        load_sweep(write(tmp_path, text))
    cells = load_sweep(write(tmp_path, f"{text}[[exclude]]\nwidth = 64\n{axis}\n")).cells()
    assert [name for name, _ in cells] == [
        "d2-w32-p4-learning_rate0.001414", "d2-w32-p4-learning_rate0.001", "d2-w64-p4-learning_rate0.001",
        "d2-w128-p4-learning_rate0.0007071", "d2-w128-p4-learning_rate0.001",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base = 1e-3, ", "", "training.learning_rate.base: is missing"),
        ("1e-3", "-1e-3", "training.learning_rate.base: should be greater than 0"),
        ("1e-3", "nan", "training.learning_rate.base: should be a finite number"),
        ("width = 64", "width = 0", "training.learning_rate.width: should be greater than 0"),
        ("0.5", "30", "training.learning_rate.exponent: should be less than or equal to 3"),
        ("exponent", "power", r"training.learning_rate.power: unknown key; .*allowed: base, width, exponent"),
        ("[32, 64, 128]", "[30]", "width 30 is not divisible by 4"),
        ("width = [32, 64, 128]", "seed = [0, 1]", "a law of the width needs model.width, which a cell does not have"),
        ("steps = 10", "learning_rate = 1e-3", "not valid TOML: Cannot overwrite a value"),
        ("[model]", "learning_rate = [1e-3]\n[model]", "training.learning_rate is set outside the grid too"),
        (
            "[model]",
            'both = [{ seed = 1, "training.steps" = 3, steps = 4 }]\n[model]',
            "grid.both: training.steps is set twice; keep one of them",
        ),
        ("depth = 2", 'depth = 2\nsize = "S"', r"model.size: model.depth is set twice"),
        ("steps = 10", "steps = 10\nwarmup_steps = 11", "warmup_steps 11 does not fit steps 10 with schedule constant"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, SWEEP.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        load_sweep(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
