"""What a large study does once and not for every cell: counted, not timed."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from harness.cli.words import evaluation_lines
from harness.launch.plan import plan, totals
from harness.runs.cellruns import cell_runs
from harness.runs.state import State
from harness.runs.study import Study
from sweeps.grid import load_sweep, warnings

SWEEP = """
[grid]
depth = [2, 4]
patch_size = [4, 2]
seed = [0, 1, 2, 3, 4]
[model]
width = 32
[training]
steps = 10
batch_size = 4
[[evaluation]]
samples = 400
sampling_steps = 5
"""


@pytest.fixture
def spies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Mock]:
    """Functions that go on doing their work, by name, and count their calls."""
    found = {}
    for place in ("sweeps.cells._readable_name", "sweeps.grid.check_evaluation", "harness.launch.plan.count_cell"):
        module, _, name = place.rpartition(".")
        found[name] = Mock(wraps=getattr(__import__(module, fromlist=[name]), name))
        monkeypatch.setattr(place, found[name])
    return found


def test_a_plan_makes_each_cell_once_and_prices_each_shape_once(tmp_path: Path, spies: dict[str, Mock]) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SWEEP)
    sweep = load_sweep(path).with_resources({"slots": 2})
    items = cell_runs(sweep, Study(tmp_path / "results", "s"))
    rows = plan(sweep, items, gpus=0)
    totals(sweep, rows)
    evaluation_lines(sweep)
    warnings(sweep)
    counts = {name: spy.call_count for name, spy in spies.items()}
    assert counts == {"_readable_name": 20, "check_evaluation": 1, "count_cell": 4}
    assert [row["seed"] for row in rows] == [0, 1, 2, 3, 4] * 4
    assert [row["id"] for row in rows] == [item.cell.id for item in items]


def test_of_a_cell_that_never_ran_no_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SWEEP)
    sweep = load_sweep(path)
    monkeypatch.setattr("harness.runs.state.read_json", Mock(side_effect=AssertionError))
    items = cell_runs(sweep, Study(tmp_path / "results", "s"))
    assert {item.now.state for item in items} == {State.MISSING}
