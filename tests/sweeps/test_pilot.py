"""The sweep of a pilot, and the same as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import InputError
from sweeps.grid import Sweep, load_sweep
from sweeps.pilot import pilot, rates_around, widths
from sweeps.text import text_of
from tests.cells import dit_spec

SWEEP = """
title = "A \\"quoted\\" title – of λ"
[grid]
patch_size = [2, 4]
shape = [{ depth = 2, width = 32 }, { depth = 4, width = 64 }, { depth = 2, width = 64 }, { depth = 6, width = 96 }]
seed = [7]
[model]
qk_norm = true
[data.vae]
kind = "trained"
factor = 2
[training]
steps = 1001
batch_size = 16
warmup_steps = 10
schedule = "cosine"
learning_rate = { base = 1e-3, width = 64, exponent = 0.5 }
[recording]
loss_images = 16
loss_steps = [1000]
[[evaluation]]
samples = 400
[resources]
threads = 2
[[resources.for]]
width = [64, 96]
depth = 2
micro_batch = 4
"""


def load(folder: Path, text: str = SWEEP, name: str = "big.toml") -> Sweep:
    path = folder / name
    path.write_text(text)
    return load_sweep(path)


def test_the_cheapest_cell_of_every_width_is_taken(tmp_path: Path) -> None:
    found = widths(load(tmp_path))
    models = [dit_spec(cell) for cell in found.values()]
    assert [(m.width, m.depth, m.patch_size) for m in models] == [(32, 2, 4), (64, 2, 4), (96, 6, 4)]
    assert rates_around([*found.values()]) == (0.00012, 0.00035, 0.001, 0.0031, 0.0094)


def test_a_pilot_is_a_quarter_of_the_sweep_and_a_file(tmp_path: Path) -> None:
    sweep = load(tmp_path)
    chosen = [cell for width, cell in widths(sweep).items() if width < 96]
    found = pilot(sweep, chosen, (1e-3, 3e-3, 1e-2))
    cells = [cell for _, cell in found.cells()]
    assert found.study == "big-pilot"
    assert len(cells) == 2 * 3 * 2
    for cell in cells:
        recipe = cell.training
        assert (recipe.steps, recipe.warmup_steps, recipe.schedule, recipe.ema_decay) == (251, 2, "cosine", 0.9996)
        assert dit_spec(cell).qk_norm
    assert {cell.seed for cell in cells} == {7, 8}
    assert {cell.training.learning_rate for cell in cells} == {1e-3, 3e-3, 1e-2}
    read = load(tmp_path, text_of(found, "dit-harness pilot"), "big-pilot.toml")
    assert [*read.cells()] == [*found.cells()]
    assert (read.title, read.evaluations, read.resources, read.recording) == (
        found.title, (), sweep.resources, found.recording
    )  # fmt: skip
    assert [read.resources_of(cell).micro_batch for cell in cells] == [None] * 6 + [4] * 6


def test_one_width_has_no_law(tmp_path: Path) -> None:
    before, _, rest = SWEEP.partition("[[resources.for]]")[0].partition("shape = ")
    text = f"{before}width = [32]\ndepth = [2, 4]\n{rest.partition(chr(10))[2]}"
    with pytest.raises(InputError, match="its cells have width 32 alone; needed: two or more"):
        widths(load(tmp_path, text))
