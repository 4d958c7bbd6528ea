"""`dit-harness forecast`: on record before the cell trains, then held against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.forecasts import load_forecasts, outcomes
from analysis.page import Page
from analysis.sections.forecasts import forecasts
from analysis.table import load_study
from harness.errors import InputError
from harness.processes import process_identity
from harness.runs.layout import RunFolder
from harness.runs.study import Study
from sweeps.grid import Sweep, load_sweep
from tests.analysis.conftest import SHAPES, result_row, write_results
from tests.commands import run_here

LARGE = """
[grid]
depth = [8, 9]
[model]
width = 128
patch_size = 2
[training]
steps = 1000
batch_size = 64
[[evaluation]]
samples = 1500
"""


@pytest.fixture
def large(tmp_path: Path) -> Sweep:
    """A sweep of cells that nobody has trained, and a study of smaller ones, measured alike."""
    (tmp_path / "large.toml").write_text(LARGE)
    sweep = load_sweep(tmp_path / "large.toml")
    rows = [row_of(sweep, *shape) for shape in SHAPES]
    write_results(tmp_path / "results" / "small", rows)
    return sweep


def said_of(folder: Path) -> Page:
    """The section of a report."""
    page = Page(folder, "title", "")
    forecasts(page, load_study(folder))
    return page


def row_of(sweep: Sweep, *shape: int, **changes: Any) -> dict[str, Any]:
    _, cell = next(sweep.cells())
    row = result_row(*shape, evaluation=sweep.evaluations_of(cell)[0].id)
    return {**row, "loss_heldout": row["frechet"] ** 0.2, **changes}


def test_a_forecast_is_on_record_and_meets_the_truth(tmp_path: Path, large: Sweep) -> None:
    name, cell = next(large.cells())
    done = run_here(tmp_path, "forecast", "results/small", "--cell", f"large.toml:{name}")
    assert done.returncode == 0, done.stderr
    small = tmp_path / "results" / "small"
    distance, loss = load_forecasts(small)
    assert (distance.cell, distance.step, distance.fitted, loss.column) == (cell.id, 1000, 9, "loss_heldout")
    assert distance.said[0].low < distance.said[0].mean < distance.said[0].high
    assert not any(one.truth for one in outcomes([distance], load_study(small), small))
    assert "is not measured yet" in said_of(small).summary[0]

    ends = distance.said[0].high, distance.said[0].high * 2
    for truth, verdict in ((distance.said[0].mean, "hit"), (ends[1], "missed")):
        row = row_of(large, 8, 128, 2, cell=cell.id, name=name, frechet=truth)
        write_results(tmp_path / "results" / "large", [row])
        (lead, *others) = outcomes([distance], load_study(small), small)
        assert lead.hit is (verdict == "hit")
        miss = max(0.0, truth - ends[0])
        width = distance.said[0].high - distance.said[0].low
        assert lead.score == pytest.approx((width + 40 * miss) / truth)
        page = said_of(small)
        assert f"{verdict}: " in page.summary[0]
        plain = "power law" in {one.said.form for one in others}
        assert ("that of the plain power law" in page.summary[0]) is plain
        assert page.fits["forecasts"][0]["hit"] is (verdict == "hit")
        assert page.sections[0].tables[0].frame["Verdict"][0] == verdict


def test_a_cell_that_has_begun_or_is_fitted_is_refused(tmp_path: Path, large: Sweep) -> None:
    (first, cell), (second, other) = large.cells()
    ask = ("forecast", "results/small", "--cell")
    study = Study(tmp_path / "results", "large")
    RunFolder(study.run(cell).folder).write_cell(first, cell)
    study.run(cell).claim(1, {"process": process_identity()})
    begun = run_here(tmp_path, *ask, f"large.toml:{first}")
    assert begun.returncode == 2
    assert "it has been launched (state queued)" in begun.stderr
    rows = [row_of(large, *shape) for shape in SHAPES]
    write_results(tmp_path / "results" / "small", [*rows, row_of(large, 9, 128, 2, cell=other.id, name=second)])
    fitted = run_here(tmp_path, *ask, f"large.toml:{second}")
    assert fitted.returncode == 2
    assert "it is in the set that is fitted" in fitted.stderr
    assert not (tmp_path / "results" / "small" / "forecasts.json").exists()


def test_what_is_measured_otherwise_is_not_predicted(tmp_path: Path, large: Sweep) -> None:
    name = next(large.cells()).name
    for old, new in (("samples = 1500", "samples = 100"), ("batch_size = 64", "batch_size = 32")):
        (tmp_path / "large.toml").write_text(LARGE.replace(old, new))
        done = run_here(tmp_path, "forecast", "results/small", "--cell", f"large.toml:{name}")
        if old.startswith("samples"):
            assert [one.column for one in load_forecasts(tmp_path / "results" / "small")] == ["loss_heldout"]
            (tmp_path / "results" / "small" / "forecasts.json").unlink()
        else:
            assert done.returncode == 2
            assert "differs in design, data, batch size or evaluations" in done.stderr
    (tmp_path / "large.toml").write_text(LARGE.replace("steps = 1000", "steps = 2000"))
    done = run_here(tmp_path, "forecast", "results/small", "--cell", f"large.toml:{name}")
    assert done.returncode == 2
    assert "needed: the length of the study's trainings" in done.stderr


def test_the_same_forecast_is_made_once_and_a_broken_file_is_kept(tmp_path: Path, large: Sweep) -> None:
    name, path = next(large.cells()).name, tmp_path / "results" / "small" / "forecasts.json"
    ask = ("forecast", "results/small", "--cell", f"large.toml:{name}")
    assert run_here(tmp_path, *ask).returncode == 0
    before = path.read_text()
    again = run_here(tmp_path, *ask)
    assert (again.returncode, path.read_text()) == (2, before)
    path.write_text(before[:100])
    assert run_here(tmp_path, *ask).returncode == 2
    assert path.read_text() == before[:100]
    with pytest.raises(InputError, match=r"forecasts\.json: cannot be read"):
        load_forecasts(path.parent)
