"""Reading tables: what passes, what is refused and how, and what compares with what."""

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.compare import compare_blocks
from analysis.conditions import CONDITIONS, comparable_groups, mixture_warning, require_comparable
from analysis.names import size_name, size_order
from analysis.slices import LOSS, per_shape, scaling_slices
from analysis.table import load_attempts, load_baselines, load_curves, load_published, load_study, missing_rows
from harness.errors import InputError
from harness.runs.columns import ATTEMPT_COLUMNS, CURVE_COLUMNS, PROTOCOL_COLUMNS, RESULT_COLUMNS, metric_name

from .conftest import BAD_MESSAGE, PAPER, SHAPES, result_row, write_csv, write_results


def test_a_study_is_typed(make_study: Callable[..., Path]) -> None:
    folder = make_study(steps=(500, 1000))
    table = load_study(folder)
    assert list(table.columns) == [*RESULT_COLUMNS, "size", "place"]
    assert len(table) == 18
    assert table["step"].dtype == "int64"
    assert table["frechet"].dtype == "float64"
    assert bool(table["ema"].all())
    assert size_order(table) == ["d2-w32", "d4-w64", "d6-w96"]
    assert table["gmacs"].is_monotonic_increasing
    assert list(load_curves(folder).columns) == list(CURVE_COLUMNS)
    attempts = load_attempts(folder)
    assert list(attempts.columns) == list(ATTEMPT_COLUMNS)
    assert BAD_MESSAGE in set(attempts["message"])


def test_empty_is_missing_and_never_zero(tmp_path: Path) -> None:
    rows = [result_row(), result_row(4, frechet="", evaluation="", extractor="", seed="", ema="")]
    table = load_study(write_results(tmp_path, rows))
    assert table["frechet"].isna().sum() == 1
    assert missing_rows(table)["name"].tolist() == [rows[1]["name"]]
    assert table["seed"].isna().sum() == 1
    assert table["ema"].isna().sum() == 1


def test_absent_files(tmp_path: Path) -> None:
    assert load_curves(tmp_path).empty
    assert load_attempts(tmp_path).empty
    assert load_baselines(tmp_path).empty
    with pytest.raises(InputError, match=r"results\.csv: there is no such file.*collect"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": "two"}, r"row 2, column depth: 'two' is not allowed; allowed: a whole number of at least 1"),
        ({"step": ""}, r"row 2, column step: '' is not allowed; allowed: a whole number of at least 0$"),
        ({"step": -1}, r"column step: '-1' is not allowed; allowed: a whole number of at least 0"),
        ({"samples": 1.5}, r"column samples: '1.5'.*, or empty where not measured"),
        ({"gmacs": 0}, r"column gmacs: '0' is not allowed; allowed: a number above 0"),
        ({"frechet": "nan"}, r"column frechet: 'nan' is not allowed; allowed: a finite number, or empty where not"),
        ({"kid": "inf"}, r"column kid: 'inf'"),
        ({"ema": "yes"}, r"column ema: 'yes' is not allowed; allowed: True or False"),
        ({"extractor": "inception-v3"}, r"column extractor: 'inception-v3' is not allowed; allowed: name@hash"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write_results(tmp_path, [result_row() | change])
    with pytest.raises(InputError, match=message) as caught:
        load_study(tmp_path)
    assert "\n" not in str(caught.value)
    assert "results.csv" in str(caught.value)


def test_columns_are_checked(tmp_path: Path) -> None:
    columns = [c for c in RESULT_COLUMNS if c != "frechet"]
    write_csv(tmp_path / "results.csv", columns, [{k: v for k, v in result_row().items() if k != "frechet"}])
    with pytest.raises(InputError, match=r"results\.csv: column frechet is missing; needed: study, cell"):
        load_study(tmp_path)
    write_csv(tmp_path / "results.csv", [*RESULT_COLUMNS, "fid"], [result_row()])
    with pytest.raises(InputError, match=r"column 'fid' is unknown: a newer version may .*; allowed: study"):
        load_study(tmp_path)
    write_results(tmp_path, [])
    with pytest.raises(InputError, match="has no rows"):
        load_study(tmp_path)
    (tmp_path / "results.csv").write_text(",".join(RESULT_COLUMNS) + "\nonly,three,fields\n")
    with pytest.raises(InputError, match=r"row 2 has 3 fields; allowed: \d+"):
        load_study(tmp_path)
    (tmp_path / "results.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as CSV"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")], ids=["semicolon", "tab", "bar"]
)
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL], ids=["bare", "quoted"])
def test_what_a_spreadsheet_saves_is_named(tmp_path: Path, mark: str, name: str, quoting: Any) -> None:
    path = write_results(tmp_path, [result_row(), result_row(4)]) / "results.csv"
    rows = list(csv.reader(path.open(newline="")))
    rows[1:] = [[re.sub(r"^(\d+)\.(\d+)$", r"\1,\2", text) for text in row] for row in rows[1:]]  # decimal commas
    for first in ("", f"sep={mark}\n"):
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            file.write(first)
            csv.writer(file, delimiter=mark, quoting=quoting).writerows(rows)
        with pytest.raises(InputError, match=rf"results\.csv: is saved with {name} between its fields; allowed: "):
            load_study(tmp_path)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(
        InputError, match=r"params_m: '0,036864' is not allowed; allowed: a finite number with a point, not a comma,"
    ):
        load_study(tmp_path)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL], ids=["bare", "quoted"])
def test_a_byte_order_mark_is_skipped(tmp_path: Path, quoting: Any) -> None:
    path = write_results(tmp_path, [result_row(), result_row(4)]) / "results.csv"
    before, rows = load_study(tmp_path), list(csv.reader(path.open(newline="")))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, quoting=quoting).writerows(rows)
    pd.testing.assert_frame_equal(load_study(tmp_path), before)
    text = (PAPER / "published.csv").read_text()
    (tmp_path / "published.csv").write_text(text, encoding="utf-8-sig")
    assert len(load_published(tmp_path)) == len(load_published(PAPER))


@pytest.mark.parametrize("value", ["9" * 5000, "9" * 300, "1e300", str(2**63)])
@pytest.mark.parametrize("column", ["params", "step"])
def test_numbers_too_large_for_a_table_are_one_line(tmp_path: Path, column: str, value: str) -> None:
    write_results(tmp_path, [result_row() | {column: value}])
    with pytest.raises(InputError, match=rf"row 2, column {column}: .* not allowed; allowed: a whole number") as caught:
        load_study(tmp_path)
    assert len(str(caught.value)) < 300


def test_duplicates(tmp_path: Path) -> None:
    same = result_row()
    assert len(load_study(write_results(tmp_path, [same, same]))) == 1
    write_results(tmp_path, [same, same | {"frechet": 99.5}])
    with pytest.raises(InputError, match=r"twice with different values in column frechet: [\d.]+ and 99\.5;"):
        load_study(tmp_path)
    write_results(tmp_path, [same, same | {"frechet": ""}])
    with pytest.raises(InputError, match="occurs twice"):
        load_study(tmp_path)


def test_published_under_our_names() -> None:
    table = load_published(PAPER)
    assert set(RESULT_COLUMNS) <= set(table.columns)
    best = table[(table["name"] == "DiT-XL/2") & (table["step"] == 400_000) & (table["block"] == "adaln-zero")]
    row = best[best["samples"] == 50_000].iloc[0]
    assert (row["gmacs"], row["frechet"], row["batch_size"], row["tokens"]) == (118.64, 19.47, 256, 256)
    assert row["train_gmacs"] == pytest.approx(3 * 118.64 * 256 * 400_000)
    assert {metric_name(e) for e in table["extractor"]} == {"FID"}
    assert {"source", "model", "resolution", "decoder", "cfg_scale"} <= set(table.columns)
    assert load_baselines(PAPER).set_index("model")["gmacs"].dropna().to_dict() == {
        "ADM": 1120, "ADM-U": 742, "LDM-8": 57, "LDM-4": 104
    }  # fmt: skip


def test_published_duplicates_are_refused(tmp_path: Path) -> None:
    text = (PAPER / "published.csv").read_text().splitlines()
    (tmp_path / "published.csv").write_text("\n".join([*text, text[1].replace("153.60", "1.0")]) + "\n")
    with pytest.raises(InputError, match="occurs twice"):
        load_published(tmp_path)


def test_the_metric_is_fid_only_for_the_published_inception() -> None:
    assert metric_name("inception-v3") == "FID"
    assert metric_name("inception-v3@0123") == "FD-inception-v3"
    assert metric_name("digits-cnn@0123abcd") == "FD-digits-cnn"
    assert metric_name("inception-v3-compat@6726825d") == "FID"
    assert metric_name("inception-v3-compat@0123abcd") == "FD-inception-v3-compat"


def test_sizes() -> None:
    assert size_name(28, 1152) == "XL"
    assert size_name(4, 64) == "d4-w64"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("samples", 3000),
        ("extractor", "digits-cnn@ffff0000"),
        ("reference", "digits/held-out(450)@4567cdef"),
        ("sampler", "ddim"),
        ("sampling_steps", 25),
        ("guidance", 1.5),
        ("guidance_channels", "first-three"),
        ("labels", "balanced"),
        ("vae", "trained@0123ab"),
    ],
)
def test_rows_measured_differently_are_kept_apart(tmp_path: Path, column: str, value: object) -> None:
    rows = [result_row(), result_row(4), result_row(6) | {column: value}]
    table = load_study(write_results(tmp_path, rows))
    assert [len(group.table) for group in comparable_groups(table)] == [2, 1]
    with pytest.raises(InputError, match=rf"measured differently .*{column} .*{re.escape(str(value))}"):
        require_comparable(table)
    require_comparable(table, vary=[column])


def test_slices_take_one_step_and_one_block(make_study: Callable[..., Path]) -> None:
    table = load_study(make_study(steps=(500, 1000), blocks=("adaln-zero", "adaln")))
    slices = scaling_slices(table)
    assert [(s.block, s.step, s.shapes) for s in slices] == [("adaln-zero", 1000, 9), ("adaln", 1000, 9)]
    short = table[(table["step"] == 500) | (table["depth"] == 2)]
    assert scaling_slices(short)[0].step == 500  # more shapes there


def test_what_the_protocol_names_is_kept_apart() -> None:
    assert set(PROTOCOL_COLUMNS) <= set(CONDITIONS)


def test_what_does_not_compare_is_said(tmp_path: Path) -> None:
    rows = [result_row(*shape, evaluation=e, samples=n) for shape in SHAPES[:4] for e, n in (("a", 1500), ("b", 3000))]
    table = load_study(write_results(tmp_path, rows))
    assert mixture_warning(table) == (
        "Values measured in 2 ways meet in this study. They do not compare and are not fitted together; "
        "they differ in N (1500, 3000)"
    )
    assert all("not comparable with other N" in group.label for group in comparable_groups(table))
    assert mixture_warning(table[table["samples"] == 1500]) is None
    assert "not comparable" not in comparable_groups(table, vary=["samples"])[0].label


def recipe_rows(recipes: Mapping[int, tuple[str, ...]]) -> list[dict[str, object]]:
    """Rows of nine shapes; depth to the recipes its cells were trained by."""
    return [
        result_row(*shape, cell=f"{recipe} {shape}", recipe=recipe, loss_heldout=0.2 / shape[1])
        for shape in SHAPES for recipe in recipes[shape[0]]
    ]  # fmt: skip


def test_recipes_are_no_seeds(tmp_path: Path) -> None:
    swept = dict.fromkeys((2, 4, 6), ("learning_rate=0.001", ""))
    table = load_study(write_results(tmp_path, recipe_rows(swept)))
    for column in ("frechet", LOSS):
        pieces = scaling_slices(table, column)
        assert [(piece.variant, piece.shapes, len(piece.checkpoints)) for piece in pieces] == [
            ("recipe: the defaults", 9, 9), ("recipe: learning_rate=0.001", 9, 9)
        ]  # fmt: skip
        assert "recipe: the defaults; " in pieces[0].label
    for average in (per_shape, compare_blocks):
        with pytest.raises(InputError, match=r"differ in recipe \(the defaults, learning_rate=0\.001"):
            average(table)


def test_a_recipe_tuned_for_each_size_splits_nothing(tmp_path: Path) -> None:
    tuned = {depth: (f"learning_rate={depth}",) for depth in (2, 4, 6)}
    (piece,) = scaling_slices(load_study(write_results(tmp_path, recipe_rows(tuned))))
    assert (piece.variant, piece.shapes) == ("", 9)


def test_another_recipe_of_one_size_does_not_split_the_others(tmp_path: Path) -> None:
    heads = {depth: (f"heads={depth}; learning_rate=0.003",) for depth in (2, 4, 6)}
    rows = recipe_rows({**heads, 4: (*heads[4], "learning_rate=0.1")})
    pieces = scaling_slices(load_study(write_results(tmp_path, rows)))
    assert [(piece.variant, piece.shapes) for piece in pieces] == [
        ("recipe: learning_rate=0.003", 9), ("recipe: learning_rate=0.1", 3)
    ]  # fmt: skip


def test_two_schedules_split_although_the_rate_goes_with_the_size(tmp_path: Path) -> None:
    both = {depth: (f"learning_rate=0.{depth}", f"learning_rate=0.{depth}; schedule=cosine") for depth in (2, 4, 6)}
    pieces = scaling_slices(load_study(write_results(tmp_path, recipe_rows(both))))
    assert [(piece.variant, piece.shapes) for piece in pieces] == [
        ("recipe: its own for each size", 9), ("recipe: schedule=cosine", 9)
    ]  # fmt: skip


def test_losses_of_other_latents_are_kept_apart(tmp_path: Path) -> None:
    rows = [result_row(*shape, loss_heldout=0.2 / shape[1]) for shape in SHAPES]
    rows += [row | {"cell": f"vae {row['cell']}", "vae": "trained@0123ab"} for row in rows[:3]]
    rows += [row | {"cell": f"large {row['cell']}", "tokens": row["tokens"] * 4} for row in rows[:3]]
    rows += [row | {"cell": f"unknown {row['cell']}", "tokens": ""} for row in rows[:2]]
    pieces = scaling_slices(load_study(write_results(tmp_path, rows)), LOSS)
    assert [piece.shapes for piece in pieces] == [9, 3, 3, 2]
    assert any("latents of trained@0123ab" in piece.label for piece in pieces)


def test_seeds_become_one_row_per_shape(make_study: Callable[..., Path]) -> None:
    table = load_study(make_study(seeds=(0, 1)))
    rows = per_shape(table)
    assert len(rows) == 9
    assert set(rows["repeats"]) == {2}
    first = table[(table["depth"] == 2) & (table["patch_size"] == 4)]["frechet"]
    mean = rows[(rows["depth"] == 2) & (rows["patch_size"] == 4)]["frechet"].iloc[0]
    assert mean == pytest.approx((first.iloc[0] * first.iloc[1]) ** 0.5)
    assert isinstance(rows, pd.DataFrame)
