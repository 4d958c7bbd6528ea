"""Killed anywhere, a study ends as if nothing had been: every cell done once, no torn file, no lost result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.killer import kind_of
from tests.chaos.lab import Lab, warm
from tests.chaos.rounds import at_each_point, check_equal, quiet, random_kills

pytestmark = pytest.mark.xdist_group("chaos")  # forks of one warm process

#: Files of a study and what happens to them; a kill comes at each.
ATOMIC = {
    "launcher": ("sweep", "schema", "cell", "submitted", "copied picture", "results", "curves", "attempts"),
    "job": ("started", "state", "weights", "samples", "picture", "evaluation", "ended"),
}
OTHERS = {
    "launcher claim created", "launcher claim synced", "launcher claim linked",
    "job curve appended", "job curve half appended", "job state removed", "job progress synced",
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


def test_ten_random_kills(undisturbed: Lab, tmp_path: Path) -> None:
    studies = list(random_kills(tmp_path, 1, 10, undisturbed))
    assert sum(len(lab.kills()) for lab in studies) >= 10


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("runs/x-1/attempts/.claim.abc.tmp", "claim"),
        ("runs/x-1/attempts/001.json", "claim"),
        ("runs/x-1/attempts/.001.started.json.a_b.tmp", "started"),
        ("runs/x-1/checkpoints/.state-00000001.safetensors.q1.tmp", "state"),
        ("runs/x-1/samples/e@1/part-00000000.safetensors", "samples"),
        ("runs/x-1/.progress.17.tmp", "progress"),
        (".results.csv.x.tmp", "results"),
        ("runs/x-1/log", None),
        ("runs/x-1/submitit/1.pkl", None),
    ],
)
def test_files_have_names(path: str, kind: str | None) -> None:
    assert kind_of(path) == kind
