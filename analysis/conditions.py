"""How values were measured: which rows of a table can be compared, and how the others differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.names import NOT_STATED, listed
from harness.errors import InputError
from harness.runs.columns import PROTOCOL_COLUMNS, metric_name

#: Rows that differ in one of these were measured differently and are never fitted or ranked together.
CONDITIONS = (*PROTOCOL_COLUMNS, "decoder")

_NAMES = {column: column.replace("_", " ") for column in CONDITIONS} | {
    "samples": "N", "vae": "autoencoder", "labels": "classes of the samples", "ema": "weights",
    "sampling_steps": "sampler steps",
}  # fmt: skip

_LABELS = {"balanced": "classes in turn", "training": "classes as in training"}

#: A condition that follows from another: if both differ, only the other is named.
_IMPLIED = {"reference": "data", "guidance_channels": "guidance"}


@dataclass(frozen=True)
class Group:
    """Rows measured alike: they agree in `CONDITIONS`, so their metrics compare."""

    conditions: Mapping[str, Any]
    table: pd.DataFrame
    others: tuple[str, ...] = ()  #: in words, how other rows of the same table differ; those do not compare

    @property
    def metric(self) -> str:
        """Printed name of the metric, see `harness.runs.columns.metric_name`."""
        return metric_name(self.conditions["extractor"])

    @property
    def label(self) -> str:
        """The conditions in words, for captions: N, extractor, reference and so on; and what does not compare."""
        text = describe_conditions(self.conditions)
        return f"{text}; not comparable with other {listed(*self.others)}" if self.others else text

    @property
    def brief(self) -> str:
        """The label where nothing else says how values were measured, otherwise the letters of `with_ways`."""
        if "way" not in self.table:
            return self.label
        ways = [str(way) for way in self.table["way"].drop_duplicates() if way]
        return f"measured as {listed(*ways)}" if ways else ""


def describe_conditions(conditions: Mapping[str, Any]) -> str:
    """The conditions of a measurement as one line of text; those that are empty or vary are left out."""
    have = {key: value for key, value in conditions.items() if not pd.isna(value) and value != ""}
    steps = f", {int(have['sampling_steps'])} steps" if "sampling_steps" in have else ""
    where = " on the first three channels" if have.get("guidance_channels") == "first-three" else ""
    words: dict[str, Callable[[Any], str]] = {
        "samples": lambda count: f"N = {int(count):,}",
        "extractor": lambda label: f"extractor {label}",
        "reference": lambda label: f"reference {label}",
        "sampler": lambda name: f"{name.upper() if name.islower() else name}{steps}",
        "guidance": lambda scale: "no guidance" if scale == 1 else f"guidance {scale:g}{where}",
        "labels": lambda labels: _LABELS.get(labels, ""),
        "vae": lambda name: f"latents of {name}",
        "ema": lambda averaged: "EMA weights" if averaged else "raw weights",
        "decoder": lambda name: f"decoder {name}",
    }
    return "; ".join(filter(None, (say(have[key]) for key, say in words.items() if key in have)))


def with_ways(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Give every way of measuring in a table a letter, so that captions need not repeat the conditions.

    Returns:
        The table with a column `way`, and letter to conditions in words. With one way only the column is empty and the
        key is empty.
    """
    groups = comparable_groups(table)
    names = [_letter(index) for index in range(len(groups))] if len(groups) > 1 else [""] * len(groups)
    way = pd.Series("", index=table.index, dtype=object)
    for name, group in zip(names, groups, strict=True):
        way[group.table.index] = name
    described = {name: describe_conditions(group.conditions) for name, group in zip(names, groups, strict=True)}
    return table.assign(way=way), described


def _letter(index: int) -> str:
    """A to Z, then A2 to Z2, ..."""
    return chr(ord("A") + index % 26) + (str(index // 26 + 1) if index >= 26 else "")


def comparable_groups(table: pd.DataFrame, vary: Iterable[str] = ()) -> list[Group]:
    """Split rows into groups measured alike.

    Args:
        table: rows of `load_study` or `load_published`.
        vary: conditions that may differ inside a group (for example sampling_steps for a sampling-compute figure).

    Returns:
        The groups, most cells and steps first (sampling seeds count once). Ties are in the order of their first row:
        what the sweep itself asks for comes before what was measured later. Rows that were never evaluated are left
        out; see `missing_rows`.
    """
    keys = [column for column in CONDITIONS if column in table and column not in set(vary)]
    others = tuple(_NAMES[column] for column in independent(mixed_conditions(table)) if column in keys)
    groups = [
        Group(dict(zip(keys, key, strict=True)), rows, others)
        for key, rows in table[table["extractor"] != ""].groupby(keys, dropna=False, sort=False)
    ]
    return sorted(
        groups, key=lambda group: (first_topic(group.table), -len(group.table[["cell", "step"]].drop_duplicates()))
    )


def first_topic(rows: pd.DataFrame) -> int:
    """The place of rows in a table of several studies, see `analysis.topics.ranked`; 0 for one study."""
    return int(rows["topic"].min()) if "topic" in rows else 0


def mixed_conditions(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """The conditions in which measured rows of a table differ, with their printed values in the order of the rows."""
    measured = table[table["extractor"] != ""] if "extractor" in table else table
    found = {column: measured[column].drop_duplicates() for column in CONDITIONS if column in table}
    shown = {column: tuple(condition_text(column, value) for value in found[column]) for column in found}
    return {column: values for column, values in shown.items() if len(values) > 1}


def independent(mixed: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Leave out the conditions that follow from another one that differs too."""
    return {column: values for column, values in mixed.items() if _IMPLIED.get(column) not in mixed}


def condition_text(column: str, value: Any) -> str:
    """The value of a condition in a sentence; an empty autoencoder is none, anything else that is empty not stated."""
    if pd.isna(value) or value == "":
        return "none" if column == "vae" else NOT_STATED
    return ("EMA weights" if value else "raw weights") if column == "ema" else str(value)


def condition_name(column: str) -> str:
    """What a condition is called in a sentence."""
    return _NAMES[column]


def mixture_warning(table: pd.DataFrame) -> str | None:
    """One sentence if a table holds values that do not compare; otherwise None."""
    mixed = independent(mixed_conditions(table))
    if not mixed:
        return None
    shown = {column: ", ".join(values[:4]) + ", ..." * (len(values) > 4) for column, values in mixed.items()}
    parts = (f"{_NAMES[column]} ({values})" for column, values in shown.items())
    return (
        f"Values measured in {len(comparable_groups(table))} ways meet in this study. They do not compare and are not "
        f"fitted together; they differ in {listed(*parts)}"
    )


def draws_warning(table: pd.DataFrame) -> str | None:
    """One sentence if the trainings of a table had random draws of several versions; otherwise None."""
    if "draws" not in table or (versions := table["draws"].fillna(1).astype(int)).nunique() < 2:
        return None
    counts = versions.value_counts().sort_index()
    parts = [f"version {version} ({count} rows)" for version, count in counts.items()]
    return (
        f"Trainings with random draws of {listed(*parts)} meet in this study: one seed means other noise in each, so "
        "comparisons by seed are not paired"
    )


def require_comparable(table: pd.DataFrame, vary: Iterable[str] = ()) -> None:
    """Refuse a table whose rows were measured differently.

    Raises:
        InputError: naming each condition that differs and the values found.
    """
    mixed = mixed_conditions(table)
    different = [f"{column} ({', '.join(values)})" for column, values in mixed.items() if column not in set(vary)]
    if different:
        raise InputError(
            f"rows that were measured differently cannot be fitted or ranked together; they differ in "
            f"{'; '.join(different)}; split them with comparable_groups first"
        )
