"""Some cells alone, cells on resources of their own, and what a plan says of machines, costs and what is missing."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from harness.cli import options as cli
from harness.cli.main import main
from harness.cli.status import _others
from harness.cli.words import longest_line
from harness.data import autoencoders
from harness.errors import InputError
from harness.files import read_json
from harness.launch import checks, local, machine, neighbours, slurm, slurm_commands
from harness.launch.executor import Launch, Schedulers
from harness.launch.job import Job
from harness.launch.launch import _tell_unlisted, launch
from harness.launch.levers import levers
from harness.launch.plan import plan, totals
from harness.launch.site import Planned, course, divided, site_of
from harness.runs.cellruns import CellRun, cell_runs
from harness.runs.state import State
from harness.runs.study import Shared, Study
from harness.spec.resources import Resources
from sweeps.grid import Sweep, load_sweep
from tests.launch import test_own_executor as own

ROOT = Path(__file__).parents[2]

SWEEP = """
[grid]
size = ["S", "XL"]
patch_size = [8, 4, 2]
[[resources.for]]
size = "XL"
ranks = 8
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    path = tmp_path / "study.toml"
    path.write_text(SWEEP.replace("[[resources", '[data]\nname = "fashion-mnist"\n[[resources'))
    return load_sweep(path)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path / "results", "study")


def launch_of(sweep: Sweep, study: Study, gpus: int) -> Launch:
    items = cell_runs(sweep, study)
    return Launch(sweep, study, items[::-1], own.Quiet(), [str(i) for i in range(gpus)], set())


def test_cells_by_pattern_name_and_id(sweep: Sweep, study: Study) -> None:
    items = cell_runs(sweep, study)

    def names(*patterns: str) -> list[str]:
        return [item.name for item in cli.matching(items, [*patterns], study)]

    assert names("XL-*") == ["XL-8", "XL-4", "XL-2"]
    assert names("*-2", "S-8") == ["S-8", "S-2", "XL-2"]
    assert names(items[1].cell.id[:8]) == ["S-4"]
    with pytest.raises(InputError, match=r"^--cell B-\*: matches no cell of study; allowed: S-8, S-4, S-2, XL-8, "):
        names("XL-*", "B-*")


def test_a_pattern_that_matches_no_cell_starts_nothing(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["dit-harness", "launch", str(sweep.path), "--results", str(tmp_path / "r"), "--cell", "B-*"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: --cell B-*: matches no cell of study")
    assert not (tmp_path / "r").exists()


in_process = own.in_process


@pytest.mark.usefixtures("in_process")
def test_one_cell_of_a_study_runs_alone_and_the_study_lists_all(tmp_path: Path) -> None:
    (tmp_path / "stub.py").write_text(own.STUB)
    (tmp_path / "tiny.toml").write_text(own.SWEEP)
    sweep, study = load_sweep(tmp_path / "tiny.toml"), Study(tmp_path / "results", "tiny", Schedulers("tiny"))
    first, second = cell_runs(sweep, study)
    assert [item.name for item in launch(sweep, study, own.Quiet(), only={second.cell.id})] == [second.name]
    assert [item.now.state for item in cell_runs(sweep, study)] == [State.MISSING, State.DONE]
    assert read_json(study.cells_file) == {item.cell.id: item.name for item in (first, second)}


def test_large_cells_have_the_machine_and_small_ones_share_it(
    sweep: Sweep, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(local, "_submit", jobs.append)
    work = launch_of(sweep, study, 8)

    def submit() -> list[str]:
        return [item.name for item in local.LOCAL.submit(work, [item for item in work.items if work.may_start(item)])]

    def end() -> None:
        jobs[-1].hold.record("ended", {"outcome": "failed", "message": ""})
        for item in work.items:
            item.refresh()

    for name in ("XL-2", "XL-4", "XL-8"):
        assert submit() == [name]
        assert jobs[-1].gpu == "0,1,2,3,4,5,6,7"
        assert jobs[-1].resources.ranks == 8
        end()
    assert submit() == ["S-2", "S-4", "S-8"]
    assert [job.gpu for job in jobs[3:]] == ["0", "1", "2"]
    assert {job.resources.ranks for job in jobs[3:]} == {1}


def test_slots_count_the_cells_that_another_launch_of_the_study_runs(
    sweep: Sweep, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(local, "_submit", jobs.append)
    work = launch_of(sweep.with_resources({"slots": 1}), study, 0)
    (first,) = local.LOCAL.submit(work, work.items[:1])
    work.items, work.beside = work.items[1:], (first,)
    assert local.LOCAL.submit(work, work.items) == []
    assert len(jobs) == 1


def test_slurm_has_an_array_for_each_kind_of_resources_and_one_cap(sweep: Sweep, study: Study) -> None:
    def caps(most: int | None) -> list[tuple[int, int, int | None]]:
        changed = sweep.with_resources({"executor": "slurm", **({"max_parallel": most} if most else {})})
        work = launch_of(changed, study, 0)
        return [(len(g.items), g.resources.ranks, g.resources.max_parallel) for g in slurm._groups(work, work.items)]

    assert caps(None) == [(3, 8, None), (3, 1, None)]
    assert caps(4) == [(3, 8, 2), (3, 1, 2)]
    assert caps(3) == [(3, 8, 2), (3, 1, 1)]
    assert caps(1) == [(3, 8, 1), (3, 1, 1)]  # one array after the other


def test_arrays_of_other_resources_wait_only_where_the_cap_is_smaller_than_their_number(
    sweep: Sweep, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int, str | None]] = []

    def submit_array(launch: Launch, items: list[CellRun], resources: Resources, limit: int, after: str | None) -> str:
        calls.append((len(items), resources.ranks, after))
        return str(len(calls))

    monkeypatch.setattr(slurm, "_submit_array", submit_array)
    monkeypatch.setattr(slurm_commands, "max_array_size", lambda: 2)
    for most, expected in (
        (None, [(2, 8, None), (1, 8, None), (2, 1, None), (1, 1, None)]),
        (2, [(2, 8, None), (1, 8, "1"), (2, 1, None), (1, 1, "3")]),
        (1, [(2, 8, None), (1, 8, "1"), (2, 1, "2"), (1, 1, "3")]),
    ):
        calls.clear()
        changed = sweep.with_resources({"executor": "slurm", **({"max_parallel": most} if most else {})})
        work = launch_of(changed, study, 0)
        assert slurm.SLURM.submit(work, work.items) == work.items
        assert calls == expected


def test_wall_time_is_that_of_cells_started_in_order() -> None:
    half = Fraction(1, 2)

    def goes(*cells: tuple[float, Fraction]) -> tuple[float, int]:
        return course(Planned(seconds, share, 10**number) for number, (seconds, share) in enumerate(cells))

    assert goes() == (0, 0)
    assert goes((4.0, half), (3.0, half), (2.0, half)) == (5, 101)
    assert goes((4.0, half), (3.0, Fraction(1)), (2.0, half)) == (9, 100)  # the second has the machine alone
    assert goes((4.0, Fraction()), (3.0, Fraction())) == (4, 11)


def test_arrays_of_slurm_share_the_cap() -> None:
    assert divided(None, [3, 4]) == [None, None]
    assert divided(5, [7]) == [5]
    assert divided(2, [1, 11]) == [1, 1]
    assert divided(8, [1, 3]) == [2, 6]
    assert divided(2, [1, 1, 1]) is None


def paper(tmp_path: Path, **resources: Any) -> tuple[Sweep, list[CellRun]]:
    sweep = load_sweep(ROOT / "sweeps" / "dit-paper.toml").with_resources(resources)
    return sweep, cell_runs(sweep, Study(tmp_path, "dit-paper"))


def test_a_plan_is_for_the_machine_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sweep, items = paper(tmp_path)
    found = {gpus: totals(sweep, plan(sweep, items, 100.0, gpus)) for gpus in (None, 1, 8)}
    hours = found[1]["gpu_hours"]
    assert {total["gpu_hours"] for total in found.values()} == {hours}
    assert found[1]["estimated_s"] == pytest.approx(3600 * hours, rel=1e-4)
    assert found[None]["estimated_s"] == found[1]["estimated_s"], "never years on the cores of this machine"
    assert "too much for this machine's cores" in found[None]["site"]
    assert found[8]["site"] == "8 GPUs"
    longest = max(row["gpu_hours"] for row in plan(sweep, items, 100.0, 8))
    encoding = found[8]["encoding_gmacs"] * 2e9 / 1e14
    assert found[8]["estimated_s"] == pytest.approx(3600 * longest + encoding, rel=1e-4)
    assert found[1]["decoding_gmacs"] == pytest.approx(12 * 50_000 * 311.1, rel=1e-3)
    assert found[1]["scoring_gmacs"] == pytest.approx(12 * 50_000 * 5.7)
    assert found[1]["encoding_gmacs"] == pytest.approx(2 * 1_331_167 * 136.4, rel=1e-3)


def test_a_plan_for_slurm_counts_jobs_at_once(tmp_path: Path) -> None:
    sweep, items = paper(tmp_path, executor="slurm", gpus=1, max_parallel=2)
    two = totals(sweep, plan(sweep, items, 100.0))
    assert two["site"] == "at most 2 Slurm jobs at once"
    assert two["estimated_s"] > 3600 * two["gpu_hours"] / 2.1
    sweep, items = paper(tmp_path, executor="slurm", max_parallel=32)
    assert "a GPU a rank is assumed: --device cuda" in totals(sweep, plan(sweep, items, 100.0))["site"]
    sweep, items = paper(tmp_path, executor="slurm", device="cuda", max_parallel=32)
    assert totals(sweep, plan(sweep, items, 100.0))["site"] == "at most 32 Slurm jobs at once"
    assert site_of(Resources(executor="slurm")).name(Resources(executor="slurm")) == "Slurm, all jobs at once"


def test_levers_say_what_they_save_and_cost(tmp_path: Path) -> None:
    sweep, items = paper(tmp_path)
    rows = plan(sweep, items, 100.0, 8)
    found = {lever.change: lever for lever in levers(sweep, items, rows)}
    steps, cells, fast, subset = (
        next(lever for change, lever in found.items() if word in change)
        for word in ("training.steps", "XL-2 and L-2", "fast", "subset")
    )
    hours = {row["name"]: row["gpu_hours"] for row in rows}
    assert cells.hours == pytest.approx(hours["XL-2"] + hours["L-2"])
    assert 0 < subset.hours < fast.hours < cells.hours < steps.hours < sum(hours.values())
    assert subset.disk == pytest.approx(0.9 * 1_281_167 / 1_331_167 * 87_239_360_512, rel=1e-4)
    assert "fast ones only" in fast.price


def test_everything_that_is_missing_is_listed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    sweep, items = paper(tmp_path)
    lines = checks.missing(sweep, Study(tmp_path / "results", "dit-paper"), items)
    wanted = ("curl .*inception", "curl -LO .*VIRTUAL_imagenet256", "--data-folder", "hf download", "not encoded yet")
    assert len(lines) == len(wanted)
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.search(pattern, line)


def test_the_hub_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def fail(*args: Any, **kwargs: Any) -> None:
        calls["asked"] += 1
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    data = load_sweep(ROOT / "sweeps" / "dit-paper.toml")
    cell = next(data.cells()).cell
    with pytest.raises(InputError, match=r"the hub gave none \(Name or service not known\).*hf download"):
        autoencoders.find(cell.data, Shared(tmp_path), "s.toml", download=True)
    assert calls["asked"] == 1


@pytest.mark.parametrize("given", [{"partition": "gpu"}, {"time": 5}, {"max_parallel": 2}])
def test_options_of_slurm_are_refused_where_the_cells_run_here(
    sweep: Sweep, tmp_path: Path, given: dict[str, Any]
) -> None:
    (option,) = given
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')}: it is for Slurm, and this sweep runs here"):
        cli.resolve(str(sweep.path), tmp_path, given)
    cli.resolve(str(sweep.path), tmp_path, {**given, "executor": "slurm"})


def test_a_subset_is_checked_before_the_files_are_there(study: Study, tmp_path: Path) -> None:
    path = tmp_path / "few.toml"
    for share, said in (("0.0001", "128 images, fewer than 1000 classes"), ("0.001", "fewer than 2048 images of")):
        data = f'[data]\nname = "imagenet"\nresolution = 64\nsubset = {share}\n[training]\nbatch_size = 2048\n'
        path.write_text(data + "[grid]\ndepth = [1]\n[model]\nwidth = 16\npatch_size = 8\n")
        sweep = load_sweep(path)
        assert any(said in line for line in checks.missing(sweep, study, cell_runs(sweep, study)))


def test_a_plan_says_when_one_cell_decides(sweep: Sweep, study: Study) -> None:
    items = cell_runs(sweep, study)
    rows = plan(sweep, items, 100.0, gpus=64)
    assert longest_line(rows, totals(sweep, rows)).startswith("XL-2 alone takes")
    assert "on 8 GPUs: more ranks for it" in longest_line(rows, totals(sweep, rows))
    rows = plan(sweep, items, 100.0, gpus=8)
    assert longest_line(rows, {**totals(sweep, rows), "estimated_s": 10 * rows[-1]["estimated_s"]}) == ""


class Told(own.Quiet):
    """A view that records its calls."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("options", "started", "line"),
    [
        ({}, 0, "waits for a slot: 2 cells of other run here; --slots N starts cells beside them"),
        ({"slots": 1}, 1, "2 cells of other already run here"),
    ],
)
def test_jobs_of_other_studies_take_slots_unless_the_user_says_how_many_there_are(
    sweep: Sweep, study: Study, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], started: int, line: str
) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(local, "_submit", jobs.append)
    monkeypatch.setattr(neighbours, "usable_cores", lambda: 2)
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    sweep = sweep.with_resources({"ranks": 1, **options})
    cells = cell_runs(sweep, study)
    theirs = Launch(sweep.with_resources({"slots": 2}), Study(study.root, "other"), cells[:2], own.Quiet(), [], set())
    assert len(local.LOCAL.submit(theirs, theirs.items)) == 2
    view = Told()
    work = Launch(sweep, study, cells[2:], view, [], set())
    assert len(local.LOCAL.submit(work, work.items)) == started
    assert len(local.LOCAL.submit(work, work.items)) == 0, "its own slot is taken, or theirs are"
    assert view.lines == [line]
    assert bool(work.blocked) is not bool(started)
    for job in jobs[:2]:
        job.hold.record("ended", {"outcome": "failed", "message": ""})
    monkeypatch.setattr(neighbours, "LOOK_SECONDS", 0)
    assert len(local.LOCAL.submit(work, work.items)) == 2 - 2 * started


def test_a_cell_that_another_study_trains_holds_no_slot_of_this_one(
    sweep: Sweep, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_submit", lambda job: None)
    sweep = sweep.with_resources({"slots": 1})
    theirs = Launch(
        sweep, Study(study.root, "other"), cell_runs(sweep, Study(study.root, "other")), own.Quiet(), [], set()
    )
    (first,) = local.LOCAL.submit(theirs, theirs.items)
    work = Launch(sweep, study, cell_runs(sweep, study), own.Quiet(), [], set())
    (mine,) = local.LOCAL.submit(work, [item for item in work.items if work.may_start(item)])
    assert mine.cell.id != first.cell.id
    assert local.LOCAL.submit(work, [item for item in work.items if work.may_start(item)]) == []


def test_gpus_of_other_studies_are_taken_last(sweep: Sweep, study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    monkeypatch.setattr(local, "_submit", jobs.append)
    sweep, gpus = sweep.with_resources({"ranks": 1}), ["0", "1", "2"]
    cells = cell_runs(sweep, study)
    for name, items in (("other", cells[:2]), ("study", cells[2:])):
        work = Launch(sweep, Study(study.root, name), items, own.Quiet(), gpus, set())
        local.LOCAL.submit(work, work.items)
    assert [job.gpu for job in jobs] == gpus


def test_a_launch_tells_how_many_cells_are_no_longer_listed(sweep: Sweep, study: Study) -> None:
    items, view = cell_runs(sweep, study), Told()
    study.save_sweep(sweep.path, {item.cell.id: item.name for item in items})
    _tell_unlisted(study, items, view)
    assert view.lines == []
    _tell_unlisted(study, items[1:], view)
    items[0].run.write_cell(items[0].name, items[0].cell)
    _tell_unlisted(study, items[2:], view)
    kept = "; their runs stay until dit-harness clean"
    assert view.lines == ["1 cell is no longer listed", f"2 cells are no longer listed{kept}"]


def test_cancel_tells_what_had_nothing_to_stop(sweep: Sweep, study: Study) -> None:
    items = cell_runs(sweep, study)[:3]
    items[0].now = replace(items[0].now, state=State.DONE)
    items[1].now = replace(items[1].now, state=State.RUNNING)
    assert _others(items[:1]) == ", 1 is done already"
    assert _others(items) == ", 1 is done already, 1 is not running"
    assert _others(items[1:2]) == ""
