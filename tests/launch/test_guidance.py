"""`dit-harness evaluate --guidance best`: the search, that it goes on where it was, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import InputError
from harness.launch.guidance import HIGHEST, LOWEST, MOST, SEEDS, Found, search, seeds_asked
from tests.small_study import Bench, sweep_text


def course(best: float, known: dict[float, float] | None = None) -> tuple[Found, dict[float, float]]:
    """A whole search of a curve whose bottom is at `best`, one distance at a time; `known` is on record before."""
    records = dict(known or {})
    for _ in range(2 * MOST):
        found = search(records.get)
        if found.chosen is not None:
            return found, records
        (unknown,) = (scale for scale in found.tried if scale not in records)
        records[unknown] = 5 + (unknown - best) ** 2 * (1.5 + 0.3 * unknown)
    raise AssertionError("no end")


@pytest.mark.parametrize("best", [1.2, 1.5, 2.27, 3.4])
def test_a_search_ends_at_the_bottom_of_the_curve(best: float) -> None:
    found, records = course(best)
    assert found.chosen == pytest.approx(best, abs=0.06)
    assert found.tried[0] == LOWEST
    assert len(found.tried) <= MOST + 1
    assert set(found.tried) == set(records), "nothing is measured that the search does not ask for"
    assert all(LOWEST <= scale <= HIGHEST and scale == round(scale, 3) for scale in found.tried)


def test_a_search_that_was_stopped_takes_the_same_course() -> None:
    found, records = course(1.8)
    for kept in range(len(records)):
        assert course(1.8, dict(list(records.items())[:kept])) == (found, records)


def test_no_guidance_may_be_best_and_so_may_be_the_most() -> None:
    assert course(0.5)[0].chosen == LOWEST
    assert course(6.0)[0].chosen == max(course(6.0)[0].tried) > HIGHEST - 0.2


@pytest.mark.parametrize(
    ("given", "at", "message"),
    [
        ({"guidance": "best,1.5"}, None, "--guidance: 'best,1.5'; allowed: best alone, or numbers"),
        ({"guidance": "best", "seed": "3"}, None, "--seed: '3'; allowed with --guidance best: two or more"),
        ({"guidance": "best", "seed": "3,3"}, None, "--seed: '3,3'; allowed with --guidance best: two or more"),
        ({"guidance": "best", "seed": "0,-1"}, None, "command line, evaluation.seed: should be greater"),
        ({"guidance": "best", "seed": "0,9999999999"}, None, "command line, evaluation.seed: should be less"),
        ({"guidance": "best", "seed": "x"}, None, "--seed: 'x'; allowed: whole numbers"),
        ({"guidance": "best"}, [20, 40], "--at: 20, 40; allowed with --guidance best: one step"),
    ],
)
def test_what_cannot_be_asked(given: dict[str, str], at: list[int] | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        seeds_asked({"seed": None, **given}, at)
    assert str(caught.value).startswith(message)


def test_numbers_ask_for_no_search() -> None:
    assert seeds_asked({"guidance": None, "seed": None}, None) == ()
    assert seeds_asked({"guidance": "1,4", "seed": None}, None) == ()
    assert seeds_asked({"guidance": "best", "seed": None}, None) == SEEDS
    assert seeds_asked({"guidance": " best ", "seed": "4,2"}, [40]) == (4, 2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A trained cell."""
    made = Bench(tmp_path_factory.mktemp("g"), sweep_text("depth = [1]", steps=20).replace("= 330", "= 40"))
    assert made.launch().returncode == 0
    return made


def rows(bench: Bench) -> list[dict[str, Any]]:
    return [row for row in bench.rows() if row["sampling_steps"] == "2"]


def test_every_evaluation_is_a_row_and_what_is_lost_is_made_again(bench: Bench) -> None:
    asked = ("evaluate", "small", "--guidance", "best", "--seed", "5,6,7", "--sampling-steps", "2")
    done = bench.run(*asked)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "by at most 12 scales on sampling seed 5; it and no guidance are then measured on seeds 6, 7" in text
    assert "at most 17 evaluations of 1 cell, 0 of them done already" in text
    found = {(row["sampling_seed"], row["guidance"]): row["frechet"] for row in rows(bench)}
    curve = {float(scale): float(value) for (seed, scale), value in found.items() if seed == "5"}
    chosen = min(curve, key=lambda scale: curve[scale])
    assert len(curve) > 4
    assert {float(scale) for (seed, scale) in found if seed == "6"} == {1.0, chosen}
    assert {float(scale) for (seed, scale) in found if seed == "7"} == {1.0, chosen}
    assert f"d1-w16-p4 {chosen:.4g}" in text
    # as after a kill in the middle: the records after the third are not there
    (run,) = (folder for folder in (bench.folder / "results" / "runs").glob("[!.]*"))
    records = sorted((run / "evaluations").glob("*@20.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in records[4:]:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in records[:4]}
    again = bench.run(*asked)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert {(row["sampling_seed"], row["guidance"]): row["frechet"] for row in rows(bench)} == found
    whole = bench.run(*asked)
    assert f"{len(found)} evaluations of 1 cell, all of them done already" in " ".join(whole.stdout.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[data]\nlabels = false\n", "d1-w16-p4 learned no labels (data.labels is false)"),
        ("", "d1-w16-p4 never learned without labels (training.label_dropout is 0)"),
    ],
)
def test_cells_that_cannot_be_guided_are_refused(
    bench: Bench, tmp_path: Path, more: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = sweep_text("depth = [1]", more=more, steps=20)
    if not more:
        text = text.replace("ema_window = 0.1\n", "ema_window = 0.1\nlabel_dropout = 0.0\n")
    monkeypatch.setattr("harness.runs.layout.RunFolder.weights_steps", lambda _: [20])
    done = Bench(tmp_path / "n", text).run("evaluate", "small.toml", "--guidance", "best")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
