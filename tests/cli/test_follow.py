"""`status --watch` and `logs --follow`: what they show, and when they end."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.cli import follow
from harness.cli.bars import LaunchView
from harness.cli.follow import _picture, follow_log, watch
from harness.cli.tables import status_row, status_table, troubles
from harness.launch.view import note_takeover
from harness.processes import process_identity
from harness.runs.cellruns import CellRun
from harness.runs.state import Run, State
from harness.spec.cell import Cell
from harness.spec.model import DiTSpec


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOG_SECONDS", 0.02)


def item(folder: Path, depth: int = 1) -> CellRun:
    cell = Cell(model=DiTSpec(depth=depth, width=16, patch_size=4))
    return CellRun(f"d{depth}", cell, Run(folder / f"d{depth}-{cell.id}"), ["e@10"])


def begin(found: CellRun, host: str | None = None, **more: Any) -> None:
    identity = process_identity()
    process = {**identity, "host": host or identity["host"]}
    found.run.claim(1, {"process": process})
    found.run.record(1, "started", {"process": process, "host": process["host"], **more})
    found.run.write_progress({"stage": "train", "done": 3, "total": 10, "loss": 0.5, "images_per_s": 7.0})
    found.refresh()


def end(found: CellRun, **ended: Any) -> None:
    found.run.record(1, "ended", {"message": "", **ended})


def later(action: Any, seconds: float = 0.15) -> threading.Thread:
    thread = threading.Timer(seconds, action)
    thread.start()
    return thread


def test_watch_ends_when_nothing_runs_and_tells_changes_in_a_pipe(tmp_path: Path) -> None:
    items = [item(tmp_path, depth) for depth in (1, 2, 3)]
    begin(items[0], slurm={"SLURMD_NODENAME": "n7"})
    thread = later(lambda: end(items[0], outcome="failed", cause="disk", message="no [room] left"))
    out = io.StringIO()
    watch(Console(file=out, width=200), "a title", items, 0.05)
    thread.join()
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["d1: running", "d1: failed: no [room] left"]
    assert "a title" in lines[2]
    table = " ".join(lines[3:])
    for words in ("n7", "train 3/10", "0.5", "no [room] left", "1 failed"):
        assert words in table


def test_watch_draws_a_table_that_fits_the_terminal(tmp_path: Path) -> None:
    items = [item(tmp_path, depth) for depth in range(1, 31)]
    begin(items[20])
    thread = later(lambda: end(items[20], outcome="stopped"))
    out = io.StringIO()
    watch(Console(file=out, force_terminal=True, width=160, height=16), "a title", items, 0.05)
    thread.join()
    assert "d21" in out.getvalue(), "what runs is shown, however many others there are"
    assert not re.search(r"^d30 ", out.getvalue(), re.MULTILINE)
    assert "18 of them are not shown here" in out.getvalue()


def test_the_table_shows_all_in_the_order_of_the_grid_unless_cut(tmp_path: Path) -> None:
    items = [item(tmp_path, depth) for depth in (1, 2, 3)]
    begin(items[2])
    rows = [status_row(found) for found in items]
    assert len(status_table("t", rows).rows) == 3
    cut = status_table("t", rows, most=2)
    assert [row["name"] for row in cut.rows] == ["d1", "d3"]


def test_failures_are_grouped_under_the_status(tmp_path: Path) -> None:
    items = [item(tmp_path, depth) for depth in (1, 2, 3)]
    for found in items[:2]:
        begin(found)
        # the cause as older versions wrote it
        end(found, outcome="failed", cause="non-finite loss", message="the loss became nan at step 3")
        found.refresh()
    (trouble,) = troubles(items)
    assert str(trouble).startswith("2 cells: non-finite (d1, d2): the loss became nan at step 3")
    assert [status_row(found)["cause"] for found in items] == ["non-finite", "non-finite", None]


def test_the_log_of_a_waiting_cell_is_waited_for(tmp_path: Path) -> None:
    found = item(tmp_path)
    text, notes = list[str](), list[str]()

    def life() -> None:
        begin(found)
        found.run.log.write_text("first\n")
        time.sleep(0.1)
        with found.run.log.open("a") as log:
            log.write("second\n")
        end(found, outcome="failed", message="why")
        with found.run.log.open("a") as log:
            log.write("last\n")

    thread = later(life)
    follow_log(found, text.append, notes.append)
    thread.join()
    assert "".join(text) == "first\nsecond\nlast\n"
    assert notes == ["d1: no log yet (missing); waiting for it", "d1: failed: why"]


def test_a_replaced_or_removed_log_is_read_anew(tmp_path: Path) -> None:
    found = item(tmp_path)
    begin(found)
    found.run.log.write_text("old, and longer than the new one\n")
    text: list[str] = []

    def rotate() -> None:
        found.run.log.unlink()
        time.sleep(0.1)
        found.run.log.write_text("new\n")
        time.sleep(0.1)
        found.run.log.write_text("cut\n")  # as long as before: only its end can be told from a log that grew
        time.sleep(0.1)
        found.run.log.write_text("2\n")
        end(found, outcome="stopped")

    thread = later(rotate)
    follow_log(found, text.append, lambda _: None)
    thread.join()
    assert "".join(text).startswith("old, and longer than the new one\nnew\n")
    assert "".join(text).endswith("2\n")


def test_a_takeover_is_said(tmp_path: Path) -> None:
    class View:
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    gone, stopped = item(tmp_path, 1), item(tmp_path, 2)
    begin(gone, host="elsewhere")
    begin(stopped)
    end(stopped, outcome="stopped")
    view = View()
    for path in (gone.run.progress_file, *gone.run.attempts_folder.iterdir()):
        os.utime(path, (time.time() - 725, time.time() - 725))
    for found in (gone, stopped):
        assert found.refresh().state is State.INTERRUPTED
        note_takeover(found, view)  # type: ignore[arg-type]
    assert view.notes == ["d1: taking over: attempt 1 of host elsewhere has been silent for 12 min"]


@pytest.mark.parametrize("height", range(1, 30))
def test_counts_and_running_cells_stay_in_view(tmp_path: Path, height: int) -> None:
    items = [item(tmp_path, depth) for depth in range(1, 13)]
    for number in (3, 7, 11):
        begin(items[number])
    begin(items[0])
    end(items[0], outcome="failed", cause="disk", message="no room left on the device, although there was some before")
    items[0].refresh()
    console = Console(file=io.StringIO(), force_terminal=True, width=70, height=height)
    lines = ["".join(part.text for part in line) for line in console.render_lines(_picture(console, "a title", items))]
    assert len(lines) <= height
    assert any("8 missing, 3 running, 1 failed" in line for line in lines)
    shown = [line for line in lines if " running " in line and "train 3/10" in line]
    assert len(shown) == min(3, height - 1)
    if height >= 18:
        assert "although there was some before" in " ".join(" ".join(lines).split())


def test_a_new_attempt_does_not_show_the_progress_of_the_one_before(tmp_path: Path) -> None:
    found = item(tmp_path)
    begin(found)
    found.run.write_progress({"attempt": 1, "stage": "train", "done": 3, "total": 10})
    assert found.refresh().progress is not None
    end(found, outcome="stopped")
    found.run.claim(2, {"process": process_identity()})
    found.run.record(2, "started", {"process": process_identity()})
    state = found.refresh()
    assert (state.state, state.progress) == (State.RUNNING, None)
    found.run.write_progress({"attempt": 2, "stage": "train", "done": 4, "total": 10})
    assert (found.refresh().progress or {})["done"] == 4
    table = io.StringIO()
    Console(file=table, width=200).print(status_table("t", [status_row(found)]))
    assert "train 4/10" in table.getvalue()


def test_what_waits_says_for_what(tmp_path: Path) -> None:
    queued, waiting, theirs = (item(tmp_path, depth) for depth in (1, 2, 3))
    queued.run.claim(1, {"process": process_identity()})
    assert queued.refresh().message == "waits for its process to begin"
    begin(waiting)
    waiting.run.write_progress({"stage": "wait", "done": 0, "total": 0, "waits": "waits for another cell: a reference"})
    assert waiting.refresh().message == "waits for another cell: a reference"
    theirs.study = "mine"
    theirs.run.claim(1, {"process": process_identity(), "study": "yours"})
    assert status_row(theirs)["message"] == ""
    theirs.refresh()
    assert status_row(theirs)["message"] == "a job of study yours; waits for its process to begin"


def test_a_launch_says_whose_cells_it_waits_for_and_draws_a_new_attempt_anew(tmp_path: Path) -> None:
    mine, theirs = item(tmp_path, 1), item(tmp_path, 2)
    for found in (mine, theirs):
        begin(found)
    mine.mine, theirs.study = True, "mine"
    theirs.run.claim(2, {"process": process_identity(), "study": "yours"})
    theirs.run.record(2, "started", {"process": process_identity()})
    out = io.StringIO()
    with LaunchView(Console(file=out, force_terminal=True, width=80, height=30), [mine, theirs]) as view:
        view.tick([mine, theirs])
        theirs.refresh()
        for _ in range(2):
            view.tick([mine, theirs, item(tmp_path, 3)])
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    assert text.count("d2: waits for attempt 2, of study yours on ") == 1
    assert "d1: waits" not in text
    last = text[text.rindex("sweep") :]
    assert "2 running, 1 waiting for a slot" in last
    assert "d2 (attempt 2)" in last
    assert "train loss 0.5000, 7 images/s" in last
