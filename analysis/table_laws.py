"""The law of a table of anyone's runs: its file to fits.json and figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.csvfile import read_numbers
from analysis.figures.laws import best_sizes, isoflops, law_against_compute
from analysis.figures.style import CannotDrawError, Drawing, save, shortened
from analysis.laws.parametric import LawFit
from analysis.laws.runs import Words, separate_runs
from analysis.laws.summary import LawSummary, summarise
from analysis.numbers import rounded
from analysis.printed_laws import law_values
from harness.errors import InputError
from harness.files import write_bytes


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns of a table of runs."""

    loss: str
    size: str
    data: str


@dataclass(frozen=True)
class TableLaw:
    """The law of a table, what else it says, and the files written."""

    summary: LawSummary
    fit: LawFit
    paths: tuple[Path, ...]  #: fits.json first


def fit_table(path: Path, columns: TableColumns, delta: float, output: Path) -> TableLaw:
    """Fit the law to a table, every row of which is a run of its own, and write `output`/fits.json and figures.

    Args:
        path: a CSV file.
        columns: its loss, its sizes (parameters N), its data (tokens D); compute is C = 6 N D.
        delta: residual of ln loss from which a run counts linearly.
        output: a folder; one that holds the fits.json of something else is refused.

    Raises:
        InputError: the table cannot be read or carries no law, or the folder is not for it; nothing is written then.
    """
    names = (columns.loss, columns.size, columns.data)
    if len(set(names)) < len(names):
        raise InputError("--loss, --size, --data: name the same column; needed: three columns")
    if not 0 < delta < np.inf:
        raise InputError(f"--delta: {delta} is not allowed; allowed: a number above 0")
    loss, size, data = read_numbers(path, names)
    fits = output / "fits.json"
    _check_own(fits, path)
    words = Words("N", "D", f"{shortened(columns.size)}, N", f"{shortened(columns.data)}, D", shortened(columns.loss))
    summary = summarise(path.name, separate_runs(size, data, loss), words, delta)
    if summary.fit is None:
        raise InputError(f"{path}: {summary.omitted[0][1]}")
    values = {"table": path.name, "columns": {"loss": names[0], "size": names[1], "data": names[2]}}
    paths = [fits, *_draw(summary, summary.fit, output / "figures")]
    text = json.dumps(rounded(values | law_values(summary)), indent=1, ensure_ascii=False)
    write_bytes(fits, (text + "\n").encode())
    return TableLaw(summary, summary.fit, tuple(paths))


def _check_own(fits: Path, path: Path) -> None:
    """Refuse to replace the fits.json of a report or of another table."""
    try:
        there = json.loads(fits.read_text(encoding="utf-8")).get("table")
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError):
        there = None
    if there != path.name:
        raise InputError(f"--output: {fits} is there already, and not of {path.name}; allowed: another folder")


def _draw(summary: LawSummary, fit: LawFit, folder: Path) -> list[Path]:
    caption, words, approach = summary.label, summary.words, summary.approach("parabolas")
    panels = {caption: (summary.budgets, approach)} if summary.budgets and approach else {}
    drawings: dict[str, Callable[[], Drawing]] = {
        "law": lambda: law_against_compute(summary.runs, fit, words, caption),
        "best-size": lambda: best_sizes(summary.approaches, words, caption),
        "isoflops": lambda: isoflops(panels, words, caption),
    }
    paths: list[Path] = []
    for name, draw in drawings.items():
        try:
            paths += save(draw(), folder, name)
        except CannotDrawError:
            continue  # the tables say why there are no optima
    return paths
