"""What a plan takes a GPU to sustain, and how costs are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli.tables import plan_table
from harness.cli.words import duration, rate, size_of
from harness.launch.estimate import ASSUMED_TFLOPS, finished, throughput
from harness.launch.plan import latents_bytes, plan, totals
from harness.model.cost import count_cell
from harness.runs.cellruns import CellRun, cell_runs, owed_evaluations
from harness.runs.provenance import cpu_name
from harness.runs.study import Study
from harness.spec.data import Data
from sweeps.grid import Sweep, load_sweep
from tests.records import write_record

SWEEP = """
[grid]
seed = [0, 1]
[model]
depth = 2
width = 32
patch_size = 2
[training]
steps = 100
batch_size = 10
[[evaluation]]
samples = 400
sampling_steps = 5
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    path = tmp_path / "study.toml"
    path.write_text(SWEEP)
    return load_sweep(path)


def finish(item: CellRun, device: str, seconds: float, cpu: str | None = None, **conditions: int) -> None:
    """What a finished cell leaves, as far as a plan reads it; by default on this machine."""
    run = item.run
    run.claim(1, {})
    described = {"device": device, "threads": 1, "ranks": 1, **conditions}
    run.record(1, "started", {"conditions": described, "machine": {"cpu": cpu or cpu_name()}})
    run.record(1, "ended", {"outcome": "done"})
    run.train_log.write_text(json.dumps({"step": 100, "loss": 1.0, "seconds": seconds}) + "\n")
    for evaluation, step in owed_evaluations(item.cell, item.evaluations).values():
        write_record(run, item.cell, evaluation, step, seconds=1.0, macs=count_cell(item.cell).macs)


def test_throughput_is_given_measured_or_assumed(sweep: Sweep, tmp_path: Path) -> None:
    study = Study(tmp_path / "results", "study")
    items = cell_runs(sweep, study)
    assert throughput(finished(items), "fp32").tflops == ASSUMED_TFLOPS["fp32"]
    assert throughput(finished(items), "fp32").source == "assumed"
    finish(items[0], "cpu", 3.0)
    assert throughput(finished(cell_runs(sweep, study)), "fp32").source == "assumed"  # a CPU says nothing of a GPU
    finish(items[1], "cuda", 4.0)
    items = cell_runs(sweep, study)
    found = throughput(finished(items), "fp32")
    assert throughput(finished(items), "bf16") == type(found)(ASSUMED_TFLOPS["bf16"], "assumed"), (
        "another precision says nothing"
    )
    assert found.source == "measured on 1 finished cell"
    row = plan(sweep, items)[1]
    assert found.tflops == pytest.approx(2 * row["train_gmacs"] * 1e9 / 4.0 / 1e12)
    assert found.hours(row["train_gmacs"]) == pytest.approx(4.0 / 3600)
    assert throughput(finished(items), "fp32", 12.5) == type(found)(12.5, "given")


def test_each_precision_has_its_rate(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(SWEEP.replace("seed = [0, 1]", 'precision = ["bf16", "tf32"]'))
    sweep = load_sweep(path)
    rows = plan(sweep, cell_runs(sweep, Study(tmp_path / "results", "study")), gpus=1)
    assert [row["tflops"] for row in rows] == [ASSUMED_TFLOPS["bf16"], ASSUMED_TFLOPS["tf32"]]
    total = totals(sweep, rows)
    operations = 2e-3 * sum(row[key] for row in rows for key in row if key.endswith("_gmacs"))
    assert total["gpu_hours"] == pytest.approx(sum(row["gpu_hours"] for row in rows))
    assert total["tflops"] * total["gpu_hours"] * 3600 == pytest.approx(operations)
    assert total["throughput"] == "assumed"


def test_the_table_holds_the_totals(sweep: Sweep, tmp_path: Path) -> None:
    items = cell_runs(sweep, Study(tmp_path / "results", "study"))
    rows = plan(sweep, items, 1.0, gpus=2)
    total = totals(sweep, rows)
    assert total["gpu_hours"] == pytest.approx(sum(row["gpu_hours"] for row in rows))
    assert total["weights_bytes"] == 2 * rows[0]["weights_bytes"]
    assert total["latents_bytes"] == 0  # there are none
    caption = str(plan_table("t", rows, total).caption)
    assert "GPU hours at 1 TFLOP/s a GPU (given)" in caption
    on_cores = plan(sweep, items, 1.0, gpus=0)
    assert "GPU" not in str(plan_table("t", on_cores, totals(sweep, on_cores)).caption)
    assert "latents" not in caption


def test_a_plan_says_by_what_it_knows_the_time_and_a_finished_cell_shows_what_it_took(
    sweep: Sweep, tmp_path: Path
) -> None:
    study = Study(tmp_path / "results", "study")
    rows = plan(sweep, cell_runs(sweep, study), gpus=0)
    assert f"on {rows[0]['site']} (assumed)." in plan_table("t", rows, totals(sweep, rows)).caption
    items = cell_runs(sweep, study)
    finish(items[0], "cpu", 3600.0)
    rows = plan(sweep, cell_runs(sweep, study), gpus=0)
    owed = len(items[0].owed)  # a second each
    assert [row["measured_s"] for row in rows] == [3600.0 + owed, *[None] * (len(rows) - 1)]
    table = plan_table("t", rows, totals(sweep, rows))
    assert (
        "(measured on 1 finished cell of this machine); the time of a finished cell is what it took." in table.caption
    )
    (times,) = [column for column in table.columns if column.title == "est. time"]
    assert times.text({**rows[0], "estimated_s": 1.0}) == "1.0 h"
    assert "GPU hours" not in [column.title for column in table.columns], "no cell would run on a GPU"
    on_gpu = plan(sweep, items, gpus=1)
    assert "GPU hours" in [column.title for column in plan_table("t", on_gpu, totals(sweep, on_gpu)).columns]


def test_only_finished_cells_of_this_machine_say_what_others_take_here(sweep: Sweep, tmp_path: Path) -> None:
    study = Study(tmp_path / "results", "study")
    first, second = cell_runs(sweep, study)
    finish(first, "cpu", 3600.0, cpu="another processor")
    assert {row["time_source"] for row in plan(sweep, cell_runs(sweep, study), gpus=0)} == {"assumed"}
    more = sweep.with_resources({"threads": 2})
    finish(second, "cpu", 7200.0)
    assert {row["time_source"] for row in plan(more, cell_runs(more, study), gpus=0)} == {"assumed"}
    rows = plan(sweep, cell_runs(sweep, study), gpus=0)
    assert {row["time_source"] for row in rows} == {"measured on 1 finished cell of this machine"}
    assert rows[0]["estimated_s"] == pytest.approx(rows[1]["measured_s"], abs=0.1)
    assert rows[0]["estimated_least"] is None
    elsewhere = plan(sweep.with_resources({"executor": "slurm"}), cell_runs(sweep, study))[0]
    assert elsewhere["time_source"] == "measured on 2 finished cells"
    assert elsewhere["estimated_least"] < elsewhere["estimated_s"] < elsewhere["estimated_most"]


def test_samples_that_evaluations_share_are_made_once(tmp_path: Path) -> None:
    def row(evaluations: str) -> dict[str, Any]:
        path = tmp_path / "study.toml"
        path.write_text(f"[grid]\ndepth = [2]\n[model]\nwidth = 32\npatch_size = 4\n{evaluations}")
        sweep = load_sweep(path)
        (found,) = plan(sweep, cell_runs(sweep, Study(tmp_path / "results", "study")))
        return found

    one = "[[evaluation]]\nsamples = 1500\nat = [1000]\n"
    alone, other = row(one), row(one + '[[evaluation]]\nsamples = 500\nreference = "held-out"\n')
    assert other["sampling_gmacs"] == alone["sampling_gmacs"]
    assert other["samples_bytes"] == alone["samples_bytes"] == 2 * 1500 * 64
    assert other["scoring_gmacs"] == pytest.approx(alone["scoring_gmacs"] * 3500 / 3000)
    again = row(one + "[[evaluation]]\nsamples = 1500\nseed = 1\n")
    assert again["sampling_gmacs"] == pytest.approx(alone["sampling_gmacs"] * 3 / 2)


def test_latents_of_unknown_data_have_no_size() -> None:
    vae = {"kind": "trained", "factor": 4, "channels": 2}
    folder = {"name": "folder", "resolution": 32, "classes": 3, "fingerprint": "0" * 12, "vae": vae}
    assert latents_bytes(Data.model_validate(folder)) is None
    assert latents_bytes(Data()) is None
    data = Data.model_validate({"name": "fashion-mnist", "vae": vae})
    assert latents_bytes(data) == 70_000 * 2 * 2 * 2 * 8 * 8 * 4


def test_sizes_and_durations_in_words() -> None:
    assert [rate(value) for value in (1234.5, 12.3, 0.41)] == ["1234", "12", "0.41"]
    assert [size_of(n) for n in (None, 0, 999, 1500, 87_200_000_000, 2e12)] == [  # type: ignore[arg-type]
        "unknown", "0 B", "999 B", "1.5 kB", "87.2 GB", "2.0 TB"
    ]  # fmt: skip
    assert [duration(s) for s in (None, 45, 192, 86400 * 2.1, 86400 * 400)] == [
        "",
        "45 s",
        "3.2 min",
        "2.1 d",
        "1.1 years",
    ]
