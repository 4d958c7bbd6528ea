"""U-Nets at the compute of a cell, and a grid of two networks: names, columns, prices, samples with guidance."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from harness.cli.main import main
from harness.data.sources import load
from harness.errors import InputError
from harness.evaluation.generate import Generator, generate, load_weights
from harness.launch.match import matches
from harness.launch.plan import plan
from harness.model.cost import count, count_cell
from harness.runs.cellruns import cell_runs
from harness.runs.collect import _recipe
from harness.runs.columns import MATCHED
from harness.runs.state import Run
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.model import UNetSpec
from harness.spec.resources import Recording
from harness.training.hooks import Hooks
from harness.training.loop import Options, train
from sweeps.grid import Sweep, load_sweep

ROOT = Path(__file__).parents[2]

GRID = """
[grid]
model = [
    { depth = 1, width = 16, patch_size = 4 },
    { network = "unet", channels = [4, 8], blocks = 1, norm_groups = 4 },
]
seed = [0, 1]
[training]
steps = 2
batch_size = 4
[[evaluation]]
samples = 5
sampler = "ddim"
sampling_steps = 2
guidance = 1.5
"""


def sweep_of(folder: Path, text: str) -> Sweep:
    (folder / "mixed.toml").write_text(text)
    return load_sweep(folder / "mixed.toml")


def dit(depth: int, width: int) -> Cell:
    return Cell.model_validate({"model": {"depth": depth, "width": width, "patch_size": 2}})


def test_a_usual_unet_is_matched() -> None:
    cell = dit(6, 96)
    (match,) = matches(cell, [])
    assert abs(match.off) <= MATCHED
    assert match.off == pytest.approx(match.cost.macs / count_cell(cell).macs - 1)
    assert UNetSpec.model_validate(tomllib.loads(f"m = {match.line}")["m"]) == match.model
    assert match.cost == count(match.model, cell.data.shape)


def test_a_given_unet_keeps_its_design() -> None:
    given = UNetSpec(network="unet", channels=(8, 8), blocks=1, norm_groups=1)
    (match,) = matches(dit(4, 64), [given, given.resized(10)])
    assert (match.model.blocks, match.model.norm_groups, match.model.attention) == (1, 1, ())
    assert match.model.channels[0] == match.model.channels[1]


def test_what_cannot_be_matched_is_one_line() -> None:
    coarse = UNetSpec(network="unet", channels=(32, 64))
    with pytest.raises(
        InputError, match=r"no channels within 5% of 0\.0004557 GMACs; the nearest, \{ network = .* are \+"
    ):
        matches(dit(2, 32), [coarse])
    with pytest.raises(InputError, match=r"--match-gmacs: model.channels \[32, 32, 32, 32, 32\]: 5 levels halve"):
        matches(dit(2, 32), [UNetSpec(network="unet", channels=(32,) * 5)])


def test_the_command_proposes_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_of(cell: str) -> int | str | None:
        sweep = str(ROOT / "sweeps" / "quickstart-unet.toml")
        monkeypatch.setattr(
            sys, "argv", ["dit-harness", "plan", sweep, "--results", str(tmp_path), "--match-gmacs", cell]
        )
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code

    assert plan_of(f"{ROOT / 'sweeps' / 'quickstart.toml'}:d4-w64-p2") == 0
    said = capsys.readouterr().out
    assert '{ network = "unet", channels = [16, 28], blocks = 1, attention = [1], norm_groups = 4 }' in said
    assert "+1.6%" in said
    assert plan_of("d9") == 2
    assert "d9: no cell of this name in quickstart-unet; allowed: d3-w48-p2-seed0, " in capsys.readouterr().err


def test_the_quick_start_is_matched() -> None:
    costs: dict[str, list[int]] = {}
    for _, cell in load_sweep(ROOT / "sweeps" / "quickstart-unet.toml").cells():
        if cell.seed == 0:
            costs.setdefault(cell.model.network, []).append(count_cell(cell).macs)
    assert costs["unet"] == pytest.approx(costs["dit"], rel=MATCHED)


def test_a_grid_of_two_networks(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID)
    names = [name for name, _ in sweep.cells()]
    assert names == [f"{model}-seed{seed}" for model in ("d1-w16-p4", "unet-4-8-b1-g4") for seed in (0, 1)]
    items = cell_runs(sweep, Study(tmp_path, "mixed"))
    rows = plan(sweep, items)
    assert [row["block"] for row in rows] == ["adaln-zero"] * 2 + ["unet"] * 2
    assert (rows[2]["depth"], rows[2]["width"], rows[2]["patch_size"]) == (None, None, None)
    cell = items[2].cell
    assert Cell.model_validate_json(cell.model_dump_json()) == cell
    assert json.loads(cell.model_dump_json())["model"]["channels"] == [4, 8]
    assert {_recipe(item.cell) for item in items} == {""}, "its shape is in its name, not in its recipe"


def test_a_unet_is_trained_and_sampled_with_guidance(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, GRID)
    cell = [cell for _, cell in sweep.cells()][2]
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    train(cell, load(cell.data), run, Options("cpu", [2], Recording(loss_images=16), checkpoint_seconds=1e9), Hooks())
    network = load_weights(run, cell, 2, ema=True, device="cpu")
    guided, plain = sweep.evaluations_of(cell)[0], sweep.evaluations_of(cell)[0].model_copy(update={"guidance": 1.0})
    made = [
        generate(Generator(network, cell, evaluation, "cpu"), run, key, batch=5, hooks=Hooks())
        for key, evaluation in (("g", guided), ("p", plain))
    ]
    with_guidance, without = (found.images[np.arange(5)] for found in filter(None, made))
    assert with_guidance.shape == (5, 8, 8, 1)
    assert not np.array_equal(with_guidance, without)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("blocks = 1, ", "", None),
        (
            "\n]",
            '\n    { network = "unet", channels = [8, 8] },\n]',
            "grid.model: every table of network unet should set the same fields (model.network, model.channels, ",
        ),
        ("channels = [4, 8]", "channels = [4, 6]", "model: channels 6 is not divisible by norm_groups 4; allowed: "),
        ("channels = [4, 8]", "channels = 8", "model.channels: should be a list (got 8)"),
        ("channels = [4, 8]", "channels = [4, 8], patch_size = 2", "model: patch_size: unknown key of network unet"),
        ("[training]", "[model]\nwidth = 8\n[training]", "grid.model: model.width is set outside the grid too"),
        ("[training]", "[model]\nheads = 8\n[training]", "model: heads: unknown key of network unet"),
        ("[training]", "[[resources.for]]\nchannels = [[4, 8]]\nthreads = 2\n[training]", None),
        (
            "[training]",
            "[[resources.for]]\nchannels = [[4, 4]]\nthreads = 2\n[training]",
            "resources.for 1.channels: no cell of the grid has [4, 4]; allowed: None, [4, 8]",
        ),
    ],
)
def test_fields_of_networks(tmp_path: Path, old: str, new: str, problem: str | None) -> None:
    text = GRID.replace(old, new, 1)
    if problem is None:
        sweep_of(tmp_path, text)
        return
    with pytest.raises(InputError) as raised:
        sweep_of(tmp_path, text)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)
