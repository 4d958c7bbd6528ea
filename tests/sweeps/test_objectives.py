"""Objectives in a sweep: which fields and samplers each has, and what is said where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.launch.plan import plan
from harness.launch.remeasure import with_evaluations
from harness.runs.cellruns import cell_runs
from harness.runs.study import Study
from harness.spec.cell import Cell
from harness.spec.diffusion import Diffusion, Flow
from sweeps.grid import Sweep, load_sweep

ROOT = Path(__file__).parents[2]
BOTH = 'objective = ["ddpm-hybrid", "flow"]'
DDIM, HEUN = (f'[[evaluation]]\nsampler = "{name}"\nsampling_steps = 10\n' for name in ("ddim", "heun"))


OF_DEFAULTS: tuple[dict[str, Any], ...] = ({}, {"diffusion": {}})


def load(folder: Path, text: str, grid: str = "seed = [0]") -> Sweep:
    model = "[model]\ndepth = 2\nwidth = 32\npatch_size = 2\n"
    (folder / "s.toml").write_text(f"[grid]\n{grid}\n{model}{text}")
    return load_sweep(folder / "s.toml")


def flow(*lines: str) -> str:
    return "\n".join(['[diffusion]\nobjective = "flow"', *lines, ""])


@pytest.mark.parametrize(
    ("text", "grid", "problem"),
    [
        (flow(DDIM), "seed = [0]", "evaluation 1.sampler: unknown sampler 'ddim' for objective flow; "
         "allowed: euler, heun, sde"),
        (HEUN, "seed = [0]", "evaluation 1.sampler: unknown sampler 'heun' for objective ddpm-hybrid; "
         "allowed: ddpm, ddim, ddim-clip"),
        (flow("[[evaluation]]"), "seed = [0]", "evaluation 1.sampler: unknown sampler 'ddpm' for objective flow; "),
        (DDIM, BOTH, "evaluation 1.sampler: unknown sampler 'ddim' for objective flow; allowed: euler, heun, sde"),
        (DDIM + HEUN + HEUN.replace("heun", "rk4"), BOTH, "evaluation 3.sampler: unknown sampler 'rk4' for objective "
         "ddpm-hybrid or flow; allowed: ddpm, ddim, ddim-clip, euler, heun, sde"),
        (flow("timesteps = 1000"), "seed = [0]", "diffusion.timesteps: unknown key; allowed in diffusion: objective, "
         "time_distribution"),
        ("[diffusion]\ntimesteps = 500\n", BOTH, "diffusion: timesteps: unknown key of objective flow; allowed: "
         "objective, time_distribution (at diffusion.objective=flow)"),
        ('[diffusion]\ntime_distribution = "uniform"\n', "seed = [0]", "diffusion.time_distribution: unknown key"),
        (flow('time_distribution = "normal"'), "seed = [0]", "diffusion.time_distribution: should be 'uniform' or "
         "'logit-normal'"),
        ('[diffusion]\nobjective = "flows"\n', "seed = [0]", "diffusion.objective: should be 'ddpm-hybrid' or 'flow'"),
        (flow(HEUN + "guidance = 2.0\n", "[training]\nlabel_dropout = 0.0"), "seed = [0]",
         "evaluation 1.guidance: 2.0 needs a trained null class"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tmp_path: Path, text: str, grid: str, problem: str) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, text, grid)
    assert problem in str(error.value)
    assert "\n" not in str(error.value)


def test_each_cell_has_the_evaluations_of_its_objective(tmp_path: Path) -> None:
    sweep = load(tmp_path, DDIM + HEUN, BOTH)
    found = {cell.diffusion.objective: [e.sampler for e in sweep.evaluations_of(cell)] for _, cell in sweep.cells()}
    assert found == {"ddpm-hybrid": ["ddim"], "flow": ["heun"]}
    hybrid, ours = plan(sweep, cell_runs(sweep, Study(tmp_path / "results", "s")))
    assert ours["gmacs"] == hybrid["gmacs"]
    assert ours["params"] == hybrid["params"]
    assert ours["sampling_gmacs"] == 2 * hybrid["sampling_gmacs"]  # heun: two forward passes a step
    assert [row["sampler"] for row in ours["evaluations"]] == ["heun"]


def test_evaluate_again_by_samplers_of_both(tmp_path: Path) -> None:
    sweep = load(tmp_path, DDIM + HEUN, BOTH)
    asked = with_evaluations(sweep, None, {"sampler": "ddpm,sde", "sampling_steps": "5"})
    assert [[e.sampler for e in asked.evaluations_of(cell)] for _, cell in asked.cells()] == [["ddpm"], ["sde"]]
    both = with_evaluations(sweep, None, {"guidance": "1.5"})  # the first evaluation of each objective, changed
    assert [[(e.sampler, e.guidance) for e in both.evaluations_of(cell)] for _, cell in both.cells()] == [
        [("ddim", 1.5)], [("heun", 1.5)]
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"evaluation\.sampler: unknown sampler 'sde' for objective ddpm-hybrid"):
        with_evaluations(sweep, None, {"sampler": "sde"})


def test_ids_and_what_a_cell_says_of_its_objective() -> None:
    model = {"depth": 2, "width": 32, "patch_size": 2}
    plain, named = (Cell.model_validate({"model": model} | more) for more in OF_DEFAULTS)
    assert plain.id == named.id == Cell.model_validate({"model": model, "diffusion": Diffusion()}).id
    cell = Cell.model_validate({"model": model, "diffusion": {"objective": "flow"}})
    assert isinstance(cell.diffusion, Flow)
    assert cell.id != plain.id
    assert Cell.model_validate_json(cell.model_dump_json()) == cell
    odd = cell.diffusion.model_copy(update={"time_distribution": "logit-normal"})
    assert [cell.diffusion.label, odd.label] == ["flow", "flow, logit-normal"]
    assert cell.model_copy(update={"diffusion": odd}).id != cell.id


def test_sit_costs_what_dit_costs() -> None:
    (sit, dit) = (load_sweep(ROOT / "sweeps" / f"{name}-paper.toml") for name in ("sit", "dit"))
    priced = plan(sit, cell_runs(sit, Study(Path("nowhere"), "sit-paper")))
    same = {row["name"]: row for row in plan(dit, cell_runs(dit, Study(Path("nowhere"), "dit-paper")))}
    for row in priced:
        for column in ("params", "gmacs", "train_gmacs", "sampling_gmacs"):
            assert row[column] == same[row["name"]][column]
