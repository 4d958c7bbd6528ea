"""`dit-harness fit` on tables of anyone's runs: what it prints and writes, and one line for bad input."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.table_laws import TableColumns, fit_table
from harness.cli import main as command
from harness.errors import InputError

from ..analysis.coverage_laws import isoflop_runs

COLUMNS = TableColumns("loss", "Model Size", "tokens")


@pytest.fixture(autouse=True)
def _quick_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fonts are cut for PDFs, which takes most of the time."""
    monkeypatch.setattr("analysis.figures.style._pdf", lambda _: b"%PDF-")


def write(
    path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ("name", "Model Size", "tokens", "loss")
) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def rows_of(count: int = 45) -> list[list[object]]:
    runs = isoflop_runs(9, budgets=5)
    values = zip(runs.size, runs.data, runs.loss, strict=True)
    return [[f"run {index}", *map(float, row)] for index, row in enumerate(values)][:count]


def test_it_prints_the_law_and_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write(tmp_path / "theirs.csv", rows_of())
    arguments = ["fit", str(table), "--loss", "loss", "--size", "Model Size", "--data", "tokens"]
    monkeypatch.setattr("sys.argv", ["dit-harness", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for text in ("loss = E + A / N^alpha + B / D^beta, 45 runs", "1.8172", "482.01", "parabolas", "5 of 5"):
        assert text in said
    fits = json.loads((tmp_path / "fits.json").read_text())
    assert fits["law"]["constants"]["B"] == pytest.approx(2085.43, rel=1e-6)
    assert len(str(fits["law"]["constants"]["A"])) > 8  # unrounded
    assert fits["approaches"]["parametric"]["size_exponent"] == pytest.approx(0.5126, abs=1e-4)
    assert {path.name for path in (tmp_path / "figures").glob("*.png")} == {"law.png", "best-size.png", "isoflops.png"}
    fit_table(table, COLUMNS, 1e-3, tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((3, 1, ""), "row 5, column Model Size: nothing; allowed: a number above 0"),
        ((3, 2, "0"), "row 5, column tokens: '0'; allowed"),
        ((0, 3, "-2.5"), "row 2, column loss: '-2.5'; allowed"),
        ((0, 3, "much"), "row 2, column loss: 'much'; allowed"),
        ((0, 3, "nan"), "row 2, column loss: 'nan'; allowed"),
        ((0, 1, "inf"), "row 2, column Model Size: 'inf'; allowed"),
    ],
)
def test_a_value_that_is_no_number_is_named(tmp_path: Path, change: tuple[int, int, str], reason: str) -> None:
    rows = rows_of()
    rows[change[0]][change[1]] = change[2]
    refused(write(tmp_path / "theirs.csv", rows), reason)


def test_tables_without_a_law_are_refused(tmp_path: Path) -> None:
    refused(write(tmp_path / "few.csv", rows_of(5)), "few.csv: 5 runs for 5 constants; needed: 6")
    refused(write(tmp_path / "one.csv", rows_of(9)), r"all runs have one budget, C = 6e\+18")
    refused(write(tmp_path / "none.csv", []), "has no rows")
    alike = [[name, size, 1e9, loss] for name, size, _, loss in rows_of()]
    refused(write(tmp_path / "alike.csv", alike), r"D is 1.000e\+09 in every run")


def test_columns_and_folders_are_checked(tmp_path: Path) -> None:
    table = write(tmp_path / "theirs.csv", rows_of())
    with pytest.raises(
        InputError, match=r"column 'Loss' is missing \(did you mean loss\?\); there are: name, Model Size"
    ):
        fit_table(table, TableColumns("Loss", "Model Size", "tokens"), 1e-3, tmp_path)
    with pytest.raises(InputError, match="name the same column"):
        fit_table(table, TableColumns("loss", "loss", "tokens"), 1e-3, tmp_path)
    with pytest.raises(InputError, match="--delta"):
        fit_table(table, COLUMNS, 0.0, tmp_path)
    with pytest.raises(InputError, match="there is no such file"):
        fit_table(tmp_path / "no.csv", COLUMNS, 1e-3, tmp_path)
    (tmp_path / "fits.json").write_text('{"study": "mine"}')  # of a report
    refused(table, r"fits.json is there already, and not of theirs.csv; allowed: another folder")
    assert (tmp_path / "fits.json").read_text() == '{"study": "mine"}'


def refused(table: Path, reason: str) -> None:
    before = set(table.parent.iterdir())
    with pytest.raises(InputError, match=reason):
        fit_table(table, COLUMNS, 1e-3, table.parent)
    assert set(table.parent.iterdir()) == before
