"""Killed anywhere, a study ends as if nothing had been: every cell done once, no torn file, no lost result."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.runs.attempts import RESTARTS
from tests.chaos.killer import kind_of
from tests.chaos.lab import SWEEP, Lab, never, wait_for, warm
from tests.chaos.rounds import at_a_stop, at_each_point, check_equal, grown, quiet, random_kills

pytestmark = pytest.mark.xdist_group("chaos")  # forks of one warm process

#: Files of a study and what happens to them; a kill comes at each.
ATOMIC = {
    "launcher": ("sweep", "cells", "schema", "cell", "submitted", "copied picture", "results", "curves", "attempts"),
    "job": ("started", "state", "weights", "samples", "picture", "evaluation", "ended"),
}
OTHERS = {
    "launcher claim created", "launcher claim synced", "launcher claim linked",
    "job curve appended", "job curve half appended", "job curve not synced", "job state removed", "job progress synced",
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    warm()
    lab = quiet(tmp_path_factory.mktemp("undisturbed"))
    lab.check_over()
    yield lab
    lab.check_whole()


def test_a_kill_at_each_write_point(undisturbed: Lab, tmp_path: Path) -> None:
    points = {
        f"{role} {kind} {what}"
        for role, kinds in ATOMIC.items()
        for kind in kinds
        for what in ("created", "half written", "written", "synced")
    }
    lab = at_each_point(tmp_path, points | OTHERS)
    check_equal(lab, undisturbed)


def test_a_kill_between_the_last_weights_and_the_end_of_the_states(undisturbed: Lab, tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    def once(name: str, count: int) -> bool:
        return (
            name == "job state removed"
            and name not in lab.kills()
            and any(lab.study.runs_folder.glob("*/checkpoints/weights-00000008.safetensors"))
        )

    assert lab.launch(once) == 0
    assert lab.kills()
    check_equal(lab, undisturbed)


def test_a_stale_claim_of_a_dead_host_is_taken_over_and_said(undisturbed: Lab, tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    assert lab.launch(lambda name, count: name == "job state renamed") == 1
    assert lab.output().count("starting it again") == 2 * RESTARTS, "of two cells"
    assert len(lab.kills()) == 2 * (RESTARTS + 1)
    newest = [sorted(folder.glob("attempts/*.started.json"))[-1] for folder in (run.folder for run in lab.runs())]
    for path, age in zip(newest, (0, 720), strict=True):  # both of another host; of one not a word for 12 minutes
        started = json.loads(path.read_text())
        started["process"]["host"] = "elsewhere"
        path.write_text(json.dumps(started))
        for file in path.parents[1].rglob("*.json"):
            os.utime(file, (time.time() - age, time.time() - age))
    launcher = lab.start()
    silent = json.loads((newest[1].parents[1] / "cell.json").read_text())["name"]
    taken = f"{silent}: taking over: attempt {int(newest[1].name[:3])} of host elsewhere has been silent for 12 min"
    deadline = time.monotonic() + 60
    while f"{silent}: done" not in lab.output() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert taken in lab.output()
    assert lab.output().count("taking over") == 1, "the other one may be alive"
    for file in newest[0].parents[1].rglob("*.json"):
        os.utime(file, (0, 0))
    assert wait_for(launcher) == 0
    assert lab.output().count("taking over") == 2
    check_equal(lab, undisturbed)


def test_stopped_taken_over_and_woken(undisturbed: Lab, tmp_path: Path) -> None:
    for number in range(4):
        lab = at_a_stop(tmp_path / str(number), number)
        check_equal(lab, undisturbed)


def test_a_sweep_that_grows_while_it_runs(undisturbed: Lab, tmp_path: Path) -> None:
    lab = grown(tmp_path, never)
    assert [len(run.attempt_numbers()) for run in lab.runs()] == [1] * 4, "nothing is trained twice"
    names = json.loads((lab.study.folder / "cells.json").read_text())
    assert sorted(names) == sorted(run.cell_id for run in lab.runs())
    assert all("seed" in name for name in names.values()), "the names are those of the grown sweep"
    lab.check_over()
    mine = lab.science()
    assert all(
        mine[name] == value for name, value in undisturbed.science().items() if "/" in name and "cell" not in name
    )


def test_two_studies_train_the_cells_that_they_share_once(undisturbed: Lab, tmp_path: Path) -> None:
    lab, other = Lab(tmp_path), Lab(tmp_path, SWEEP.replace("depth = [1, 2]", "depth = [2, 1]"), "other")
    first = lab.start()
    assert other.launch() == 0, other.output()
    assert wait_for(first) == 0, lab.output()
    assert [run.attempt_numbers() for run in lab.runs()] == [[1], [1]]
    check_equal(lab, undisturbed)
    mine, theirs = lab.science()["results.csv"], other.science()["results.csv"]
    assert sorted(row["cell"] for row in theirs) == sorted(row["cell"] for row in mine)
    assert {row["study"] for row in theirs} == {"other"}
    assert other.launch() == 0
    assert [run.attempt_numbers() for run in lab.runs()] == [[1], [1]], "what is done is not run again"


def test_ten_random_kills(undisturbed: Lab, tmp_path: Path) -> None:
    studies = list(random_kills(tmp_path, 1, 10, undisturbed))
    assert sum(len(lab.kills()) for lab in studies) >= 10


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("runs/0123456789ab/attempts/.001.json.abc.tmp", "claim"),
        ("runs/0123456789ab/attempts/001.json", "claim"),
        ("runs/0123456789ab/attempts/.001.started.json.a_b.tmp", "started"),
        ("runs/0123456789ab/checkpoints/.state-00000001.safetensors.q1.tmp", "state"),
        ("runs/0123456789ab/samples/e@1/part-00000000.safetensors", "samples"),
        ("runs/0123456789ab/.progress.json.a17.tmp", "progress"),
        ("tiny/.results.csv.x.tmp", "results"),
        ("runs/0123456789ab/log", None),
        ("runs/0123456789ab/submitit/1.pkl", None),
    ],
)
def test_files_have_names(path: str, kind: str | None) -> None:
    assert kind_of(path) == kind
