"""Several studies as one, and a table of anyone's beside them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import report
from analysis.combine import apart, combine
from analysis.compare import compare_blocks
from analysis.designs import by_design
from analysis.recipes import not_compared
from analysis.report import write_report
from analysis.slices import per_shape, scaling_slices
from analysis.table import SOURCES, load_curves, load_file, load_studies, load_study
from harness.cli import main as cli
from harness.errors import InputError
from harness.files import write_json
from harness.runs.columns import RESULT_COLUMNS
from tests.analysis.conftest import PAPER, SHAPES, result_row, write_csv, write_results

OTHER_DATA = {"data": "fashion-mnist", "reference": "fashion-mnist/train(60000)@0a1b2c3d", "samples": 3000}

#: Empty in a row of losses alone.
UNMEASURED = ("evaluation", "samples", "sampler", "sampling_steps", "guidance", "ema", "sampling_seed", "extractor",
              "reference", "frechet", "kid", "precision", "recall", "inception_score", "labels")  # fmt: skip


def rows_of(name: str, shapes: Any = SHAPES, **changes: Any) -> list[dict[str, Any]]:
    return [result_row(*shape, **{"study": name, **changes}) for shape in shapes]


def losses_of(name: str, shapes: Any = SHAPES) -> list[dict[str, Any]]:
    """Rows of a study that was not evaluated; the larger a model, the lower its loss."""
    rows = [row | dict.fromkeys(UNMEASURED, "") for row in rows_of(name, shapes)]
    return [row | {"loss_heldout": 0.2 * (1000 * row["gmacs"]) ** -0.1} for row in rows]


def test_a_cell_of_two_studies_counts_once(make_study: Callable[..., Path], tmp_path: Path) -> None:
    one, two = make_study(folder="one"), make_study(folder="two", seeds=(0, 1))
    renamed = pd.read_csv(two / "results.csv", dtype=str, keep_default_na=False)
    renamed = renamed.assign(study="two", name="other-" + renamed["name"], train_seconds="99")  # names differ by study
    renamed.to_csv(two / "results.csv", index=False)
    write_json(two / "cards" / "extractor-a.json", {})
    (two / "samples" / "nearest").mkdir()
    picture = next((two / "samples").glob("*.png"))
    shutil.copy(picture, two / "samples" / "nearest" / picture.name)
    table = combine([one, two], ["one", "two"], tmp_path / "both")
    assert len(table) == 18
    assert list(table["study"].value_counts()) == [9, 9]
    back = load_study(tmp_path / "both")
    pd.testing.assert_frame_equal(back, by_design(table)[back.columns], check_dtype=False)
    curves = load_curves(tmp_path / "both")
    assert len(curves) == len(load_curves(two))
    assert set(curves["name"]) == set(table["name"])
    assert len(list((tmp_path / "both" / "samples").glob("*.png"))) == 18
    assert [path.name for path in (tmp_path / "both" / "cards").iterdir()] == ["extractor-a.json"]
    assert len(list((tmp_path / "both" / "samples" / "nearest").glob("*.png"))) == 1
    assert json.loads((tmp_path / "both" / SOURCES).read_text()) == {
        "sources": ["one", "two"], "studies": ["made-up", "two"]
    }  # fmt: skip
    combine([one], ["one"], tmp_path / "both")  # again, with fewer: nothing of before is left
    assert len(list((tmp_path / "both" / "samples").glob("*.png"))) == 9
    assert not (tmp_path / "both" / "cards").exists()


def test_an_evaluated_row_takes_the_place_of_losses_alone(tmp_path: Path) -> None:
    one = write_results(tmp_path / "one", losses_of("one"))
    two = write_results(tmp_path / "two", rows_of("two", SHAPES[:3], loss_heldout=0.3))
    table = load_studies([one, two])
    assert len(table) == 9
    assert sorted(table["study"].value_counts()) == [3, 6]


def test_cells_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one = write_results(tmp_path / "one", rows_of("one", SHAPES[:1]))
    two = write_results(tmp_path / "two", rows_of("two", SHAPES[:1], cell="f" * 12, recipe="learning_rate=0.1"))
    assert sorted(load_studies([one, two])["name"]) == ["d2-w32-p4 (one)", "d2-w32-p4 (two)"]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take most of their time."""
    monkeypatch.setattr("analysis.page._draw_all", lambda pictures, folder: ["not now"] * len(pictures))


@pytest.mark.usefixtures("undrawn")
def test_studies_that_do_not_compare_stand_apart_with_the_reason(tmp_path: Path) -> None:
    one = write_results(tmp_path / "one", rows_of("one"))
    moved = [row | OTHER_DATA | {"cell": f"b{row['cell'][1:]}", "evaluation": "b" * 12} for row in rows_of("two")]
    two = write_results(tmp_path / "two", moved)
    three = write_results(tmp_path / "three", rows_of("three", [(8, 128, 2)]))
    table = combine([one, two, three], ["one", "two", "three"], tmp_path / "all")
    lines = apart(table)
    assert lines == [  # one and three compare
        "one and three do not compare with two and are shown apart: they differ in data (digits; fashion-mnist) and N "
        "(1500; 3000)"
    ]
    written = write_report(tmp_path / "all")
    assert f"Warning: {lines[0]}" in written.summary
    fits = json.loads((tmp_path / "all" / "fits.json").read_text())
    assert sorted(found["models"] for found in fits["slices"]) == [9, 10]
    page = (tmp_path / "all" / "report.html").read_text()
    assert "Studies one, two, three" in page
    assert f"dit-harness report one two three --output {tmp_path / 'all'}" in page


@pytest.mark.parametrize("order", [("few", "ours", "more"), ("more", "few", "ours")])
def test_the_first_named_study_leads_where_it_can_answer(tmp_path: Path, order: tuple[str, ...]) -> None:
    two = [row for block in ("adaln-zero", "adaln") for seed in (0, 1)
           for row in rows_of("ours", [(4, 64, 2)], block=block, seed=seed, copies=0.0)]  # fmt: skip
    more = [row | OTHER_DATA | {"cell": f"m{row['cell']}", "evaluation": "m"} for row in rows_of("more", SHAPES[:6])]
    more = [{**row, "loss_train": "", "loss_heldout": ""} for row in more]
    few = write_theirs(tmp_path / "few.csv", THEIRS[:3])
    sources = {"few": few} | {
        name: write_results(tmp_path / name, rows) for name, rows in (("ours", two), ("more", more))
    }
    table = combine([sources[name] for name in order], order, tmp_path / "all")
    page = report._study(tmp_path / "all")
    leads = [name for name in order if name != "few"]  # three models carry no law and no comparison
    assert page.answers[0].about == f"{leads[0]}, measured as A"
    (memory, untold) = (answer for answer in page.answers if answer.question == "Does it memorise?")
    assert (memory.about[:4], memory.text[:13]) == ("ours", "No sign of it")
    assert not untold.known
    assert set(untold.about.split(" and ")) == {"few", "more"}
    first = next(picture for _, picture in page.sketches if picture.name == "metric-vs-gflops")
    assert "4 models" not in first.alt
    assert ("6 models" in first.alt) == (leads[0] == "more")
    apart = [picture.caption for _, picture in page.sketches if picture.caption.startswith("Shown apart")]
    assert any("U-Net" in caption for caption in apart)  # no row is in no figure
    assert table["study"].nunique() == 3


def test_studies_without_a_step_in_common(tmp_path: Path) -> None:
    one = write_results(tmp_path / "one", rows_of("one"))
    two = write_results(tmp_path / "two", rows_of("two", [(8, 128, 2)], step=5000))
    assert apart(load_studies([one, two]))[0].endswith("they differ in training steps (1,000; 5,000)")


@pytest.mark.usefixtures("undrawn")
def test_losses_alone_are_fitted(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "losses", losses_of("losses"))
    written = write_report(folder)
    fits = json.loads((folder / "fits.json").read_text())
    assert fits["slices"] == []
    assert fits["loss slices"][0]["power law"]["exponent"] == pytest.approx(0.1, abs=1e-3)
    assert any("loss-vs-gflops" in entry["what"] for entry in fits["omitted"])  # it would be drawn
    assert not any("Fréchet" in line for line in written.summary)
    assert not any("it has no Fréchet distance" in entry["why"] for entry in fits["omitted"])


# --- a table of anyone's -------------------------------------------------------------------------------------------

THEIRS = [
    {"name": f"M-{i}", "block": "unet", "gmacs": 5.0 * 2**i, "step": 1000, "params": 10**6 * 2**i, "batch_size": 256,
     "samples": 50000, "extractor": "inception-v3", "frechet": 40 * 0.75**i}
    for i in range(4)
]  # fmt: skip


def write_theirs(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_csv(path, list(rows[0]), rows)
    return path


def test_few_columns_are_enough(tmp_path: Path) -> None:
    table = load_file(write_theirs(tmp_path / "theirs.csv", THEIRS))
    assert set(table["study"]) == {"theirs"}
    assert list(table["cell"]) == ["M-0", "M-1", "M-2", "M-3"]
    assert list(table["params_m"]) == [1, 2, 4, 8]
    assert table["train_gmacs"][0] == 3 * 5 * 256 * 1000
    assert table["evaluation"].nunique() == 1
    again = [*THEIRS, {**THEIRS[0], "samples": 10000, "frechet": 50}]  # measured in two ways: two evaluations
    assert load_file(write_theirs(tmp_path / "two.csv", again))["evaluation"].nunique() == 2


def test_theirs_beside_ours_and_the_papers(tmp_path: Path, make_study: Callable[..., Path]) -> None:
    theirs = write_theirs(tmp_path / "theirs.csv", THEIRS)
    table = combine([make_study(), PAPER, theirs], ["a", "b", "c"], tmp_path / "all")
    assert set(table["study"]) == {"made-up", "paper", "theirs"}
    assert len(apart(table)) == 3
    paper = table[table["study"] == "paper"]
    assert {"ft-MSE", "ft-EMA"} <= set(paper["vae"])  # decoders are not mixed
    assert not load_study(tmp_path / "all").empty


def test_rows_of_one_name_are_repeats(tmp_path: Path) -> None:
    rows = [{**THEIRS[0], "frechet": value} for value in (9.0, 9.2, 9.4)]
    table = load_file(write_theirs(tmp_path / "mine.csv", [*rows, rows[0]]))  # one of them twice: counts once
    assert list(table["cell"]) == ["M-0", "M-0 #2", "M-0 #3"]
    (piece,) = scaling_slices(table)
    assert list(per_shape(piece.table)["repeats"]) == [3]
    named = [{**row, "name": f"film-{index}"} for index, row in enumerate(rows)]  # of equal compute, but for a number
    assert set(load_file(write_theirs(tmp_path / "named.csv", named))["size"]) == {"film"}
    assert load_file(write_theirs(tmp_path / "theirs.csv", THEIRS))["size"].nunique() == 4


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ("heads=1", None),
        ("learning_rate=0.1", r"the recipe differs \(learning_rate=0.1, not heads=1\)"),
        (None, "the recipe is not stated"),
    ],
)
def test_blocks_compare_by_an_equal_recipe(tmp_path: Path, recipe: str | None, why: str | None) -> None:
    ours = [result_row(4, 64, 2, seed=seed, recipe="heads=1") for seed in (0, 1)]
    study = write_results(tmp_path / "ours", ours)
    film = [{**row, "cell": f"f{row['seed']}", "block": "film", "study": "mine", "frechet": 90 + row["seed"],
             "recipe": recipe} for row in ours]  # fmt: skip
    film = [{key: value for key, value in row.items() if value is not None} for row in film]
    table = load_studies([study, write_theirs(tmp_path / "mine.csv", film)])
    assert [c.verdict for c in compare_blocks(table)] == ([] if why else ["worse"])
    assert [bool(re.search(why or "", n.reason)) for n in not_compared(table)] == [True] * bool(why)
    assert len(scaling_slices(table)) == 2  # both are fitted, apart


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"extractor": ""},
            "column extractor: is empty for M-0, which has a distance; needed: name@hash, or inception",
        ),
        ({"extractor": "mine"}, "column extractor: 'mine' is not allowed; allowed: name@hash, or inception-v3"),
        ({"gmacs": ""}, "row 2, column gmacs: '' is not allowed; allowed: a number above 0"),
        ({"colour": "red"}, "column 'colour' is unknown: needed: name, block, gmacs, step; common: study, "),
        ({"fid": 9.0}, r"column 'fid' is unknown: did you mean 'frechet'\? needed: name, block, gmacs, step; common: "),
        ({"step": None}, "column step is missing; needed: name, block, gmacs, step"),
    ],
)
def test_a_table_that_is_wrong(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    rows = [{key: value for key, value in (row | change).items() if value is not None} for row in THEIRS]
    with pytest.raises(InputError, match=message):
        combine([write_theirs(tmp_path / "bad.csv", rows)], ["bad"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


# --- the commands --------------------------------------------------------------------------------------------------


def test_the_commands(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = make_study(folder="one", extras=False)
    make_study([(8, 128, 2)], folder="two", extras=False)
    monkeypatch.chdir(one.parent)
    write_theirs(Path("theirs.csv"), THEIRS)

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dit-harness", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.err or said.out

    assert command("report", "one", "two") == (
        2,
        "error: --output: is missing; several studies need a folder of their own, such as results/both\n",
    )
    assert "--output: is missing; a table needs a folder" in command("report", "theirs.csv")[1]
    code, said = command("report", "one", "theirs.csv", "--output", "one")
    assert (code, said.count("\n")) == (2, 1)
    assert "one holds results.csv of a study" in said
    assert "there is no such file" in command("report", "one", "none.csv", "-o", "both")[1]
    assert not Path("both").exists()
    Path("two/curves.csv").write_text("torn")
    assert command("collect", "one", "two", "-o", "both")[0] == 2
    assert not Path("both").exists()
    Path("two/curves.csv").unlink()
    assert command("collect", "one", "two", "two", "-o", "both") == (0, "10 rows of 10 cells in both/results.csv\n")
    with Path("both/results.csv").open() as file:
        assert next(csv.reader(file)) == list(RESULT_COLUMNS)


@pytest.mark.usefixtures("undrawn")
def test_the_command_tells_how_far_it_is_and_keeps_what_other_studies_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = (str(write_results(tmp_path / name, rows_of(name)).relative_to(tmp_path)) for name in ("one", "two"))

    def report(*arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["dit-harness", "report", *arguments, "-o", "both"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    assert report(one, two) in (0, None)
    assert re.search(r"^figures (\d+)/\1$", capsys.readouterr().err, re.MULTILINE)
    assert report(two, one) in (0, None), "the same studies"
    before = (tmp_path / "both" / "results.csv").read_bytes()
    capsys.readouterr()
    assert report(one) == 2
    assert "--output: both holds the tables of two, one; allowed: these studies again" in capsys.readouterr().err
    assert (tmp_path / "both" / "results.csv").read_bytes() == before


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_a_study_that_is_not_done_says_so_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.toml").write_text('title = "s"\n[grid]\ndepth = [1, 2]\n[model]\nwidth = 8\npatch_size = 4\n')
    rows = rows_of("s", SHAPES[:1])
    monkeypatch.setattr("harness.runs.collect.collect", lambda study, _: write_results(study.folder, rows) and rows)
    for command in (("s.toml",), ("s.toml", "s.toml", "-o", "both")):
        monkeypatch.setattr(sys, "argv", ["dit-harness", "report", *command])
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr().out
        assert "Is it complete? No: 2 of 2 cells are not done: dit-harness launch s.toml\n" in said
        assert "What to do next? 2 of 2 cells are not done: dit-harness launch s.toml." in said.replace("\n  ", " ")
