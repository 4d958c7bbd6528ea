"""Several studies as one: their tables and pictures in a folder of their own, and why some of them do not compare."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from analysis import table as tables
from analysis.conditions import CONDITIONS, condition_name, condition_text, independent
from analysis.names import listed
from analysis.table import CARDS, SOURCES
from harness.errors import InputError
from harness.files import read_json, write_json, write_text
from harness.runs.columns import ATTEMPT_COLUMNS, CURVE_COLUMNS, NESTED_COLUMNS, RESULT_COLUMNS

#: What a folder holds that is a study's own.
_OWN = ("sweep.toml", "cells.json", "runs", "published.csv")

#: Most values of a condition that a sentence names.
_NAMED = 3

#: Sentences about pairs of groups; of more, one names the groups.
_MOST_LINES = 3


def combine(sources: Sequence[Path], names: Sequence[str], folder: Path) -> pd.DataFrame:
    """Write the tables of several studies as those of one, and their pictures of samples; returns results.csv.

    Args:
        sources: see `analysis.table.read_studies`.
        names: what the user calls them, for the line that says how to make the page again.
        folder: a new one, or one that this wrote earlier.

    Raises:
        InputError: `folder` is a study's own, or a table is wrong; nothing is written then.
    """
    own = _OWN if (folder / SOURCES).exists() else (*_OWN, "results.csv")
    if there := [name for name in own if (folder / name).exists()]:
        raise InputError(
            f"--output: {folder} holds {there[0]} of a study; allowed: a new folder, or one that several studies went "
            "into before"
        )
    table = tables.read_studies(sources)
    folders = [source for source in sources if source.is_dir() and not tables.is_published(source)]
    cells, made = table.drop_duplicates("cell").set_index("cell"), {"results.csv": table[list(RESULT_COLUMNS)]}
    for name, columns, load, keys in (
        ("nested.csv", NESTED_COLUMNS, tables.load_nested, ["cell", "step", "evaluation"]),
        ("curves.csv", CURVE_COLUMNS, tables.load_curves, ["cell"]),
        ("attempts.csv", ATTEMPT_COLUMNS, tables.load_attempts, ["cell"]),
    ):
        rows = pd.DataFrame(columns=list(columns))
        for found in map(load, folders):  # what an earlier study has already is not taken again
            known = pd.MultiIndex.from_frame(rows[keys])
            new = found[~pd.MultiIndex.from_frame(found[keys]).isin(known)]
            rows = new if rows.empty else pd.concat([rows, new], ignore_index=True)
        rows = rows.copy()
        for column in ("name", "study"):  # one cell has one name in all tables
            rows[column] = rows["cell"].map(cells[column]).fillna(rows[column])
        made[name] = rows[list(columns)]
    write_json(folder / SOURCES, {"sources": list(names), "studies": table.attrs["studies"]})
    for name, rows in made.items():
        write_text(folder / name, rows.to_csv(index=False, lineterminator="\n"))
    _copy_pictures(folders, folder, set(cells.index))
    _copy_cards(folders, folder)
    return table


def sources_of(folder: Path) -> list[str]:
    """What was put together in a folder; empty for one study's own."""
    return [str(name) for name in (read_json(folder / SOURCES) or {}).get("sources", [])]


def studies_of(folder: Path) -> list[str]:
    """The studies that were put together in a folder, in the order in which they were named."""
    return [str(name) for name in (read_json(folder / SOURCES) or {}).get("studies", [])]


def apart(table: pd.DataFrame) -> list[str]:
    """Which studies of a table do not compare, and why: one sentence for two groups of studies that compare."""
    rows = {study: table[table["study"] == study] for study in dict.fromkeys(table["study"])}
    why = {pair: _difference(rows[pair[0]], rows[pair[1]]) for pair in combinations(rows, 2)}
    groups: list[list[str]] = []
    for study in rows:  # a study joins the first group of which it compares with every one
        home = next((group for group in groups if not any(why[other, study] for other in group)), None)
        if home is None:
            groups.append([study])
        else:
            home.append(study)
    lines = []
    for some, others in combinations(groups, 2):
        pairs = [(a, b) if (a, b) in why else (b, a) for a in some for b in others]
        if all(why[pair] for pair in pairs):
            reason = why[pairs[0]] if pairs[0][0] in some else why[pairs[0][::-1]]
            lines.append(_apart(some, others, reason))
        else:
            lines += [_apart([a], [b], why[a, b]) for a, b in pairs if why[a, b]]
    if len(lines) <= _MOST_LINES:
        return lines
    shown = "; ".join(listed(*group) for group in groups)
    return [f"Studies that do not compare are shown apart ({shown}); the ways of measuring say how they differ"]


def _apart(some: Sequence[str], others: Sequence[str], why: str) -> str:
    pair = len(some) == len(others) == 1
    names = listed(some[0], others[0]) if pair else listed(*some)
    be = "do" if len(some) > 1 or pair else "does"
    against = "" if pair else f" with {listed(*others)}"
    return f"{names} {be} not compare{against} and are shown apart: they differ in {why}"


def _difference(one: pd.DataFrame, other: pd.DataFrame) -> str:
    """The fewest conditions in which rows of two studies differ, with their values; empty where some rows compare."""
    evaluated = all((rows["extractor"] != "").any() for rows in (one, other))
    columns = [c for c in CONDITIONS if c in one] if evaluated else ["data", "vae"]
    ways = [
        (rows[rows["extractor"] != ""] if evaluated else rows)[columns].astype(object).drop_duplicates()
        for rows in (one, other)
    ]
    best: dict[str, tuple[str, ...]] | None = None
    for first in ways[0].itertuples(index=False):
        for second in ways[1].itertuples(index=False):
            pairs = (
                (c, condition_text(c, a), condition_text(c, b)) for c, a, b in zip(columns, first, second, strict=True)
            )
            differ = independent({column: (a, b) for column, a, b in pairs if a != b})
            if best is None or len(differ) < len(best):
                best = differ
    if best:
        return listed(*(f"{condition_name(column)} ({'; '.join(values)})" for column, values in best.items()))
    steps = [sorted(set(rows["step"])) for rows in (one, other)]
    if best is None or set(steps[0]) & set(steps[1]):
        return ""
    return f"training steps ({'; '.join(', '.join(f'{step:,}' for step in some[-_NAMED:]) for some in steps)})"


def _copy_pictures(folders: Sequence[Path], folder: Path, cells: set[str]) -> None:
    """Copy the pictures of these cells, of each the first, and remove those of an earlier time."""
    shutil.rmtree(folder / "samples", ignore_errors=True)
    for where in ("samples", "samples/nearest"):
        found: dict[str, Path] = {}
        for path in (path for source in folders for path in sorted((source / where).glob("*.png"))):
            cell = path.stem.rpartition("-")[2]
            if cell in cells:
                found.setdefault(cell, path)
        _copy(found.values(), folder / where)


def _copy_cards(folders: Sequence[Path], folder: Path) -> None:
    """Copy the cards of the studies' own networks, and remove those of an earlier time."""
    shutil.rmtree(folder / CARDS, ignore_errors=True)
    _copy((path for source in folders for path in sorted((source / CARDS).glob("*"))), folder / CARDS)


def _copy(paths: Iterable[Path], folder: Path) -> None:
    for path in paths:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
