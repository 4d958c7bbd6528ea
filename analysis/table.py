"""Read what `collect` wrote, and the published numbers, into data frames that say what may be compared with what.

A table that passes here has the right columns and types, no contradicting rows, and no zero that means "missing".
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import InputError
from harness.runs.columns import (
    ATTEMPT_COLUMNS,
    CURVE_COLUMNS,
    NESTED_COLUMNS,
    PROTOCOL_COLUMNS,
    RESULT_COLUMNS,
    metric_name,
)

#: The metric the scaling figures show; its printed name depends on the extractor, see `metric_name`.
METRIC = "frechet"

#: Rows that differ in one of these were measured differently and are never fitted or ranked together.
CONDITIONS = (*PROTOCOL_COLUMNS, "decoder")

_CONDITION_NAMES = {column: column.replace("_", " ") for column in CONDITIONS} | {
    "samples": "N", "vae": "autoencoder", "labels": "classes of the samples", "ema": "weights",
    "sampling_steps": "sampler steps",
}  # fmt: skip

#: The published sizes (Peebles & Xie 2023, Table 1): (depth, width) to name.
PUBLISHED_SIZES = {(12, 384): "S", (12, 768): "B", (24, 1024): "L", (28, 1152): "XL"}

#: How the literature writes the four block designs; adaLN-gate is this project's own.
BLOCK_NAMES = {
    "adaln-zero": "adaLN-Zero",
    "adaln": "adaLN",
    "cross-attention": "Cross-attention",
    "in-context": "In-context",
    "adaln-gate": "adaLN-gate",
}

#: Gflops of one forward pass of the baselines of the paper's Figure 2 (right), at 256 x 256, as quoted there.
BASELINE_GFLOPS = {"ADM": 1120.0, "ADM-U": 742.0, "LDM-4": 104.0, "LDM-8": 57.0}

_TEXT = {"study", "cell", "name", "data", "block", "evaluation", "sampler", "extractor", "reference"} | {
    "guidance_channels", "outcome", "started", "ended", "host", "device", "torch", "commit", "message",
    "source", "model", "decoder", "labels", "protocol", "vae", "recipe", "cause", "diff",
}  # fmt: skip
_WHOLE = {"depth", "width", "heads", "patch_size", "tokens", "params", "seed", "step", "batch_size", "samples"} | {
    "sampling_steps", "sampling_seed", "attempt", "threads", "resolution", "frechet_fold_samples",
    "ranks",
}  # fmt: skip
_FLAG = {"ema"}
_MAY_BE_ZERO = {"seed", "sampling_seed", "step"}
_POSITIVE = {"gmacs"}
#: Columns of the first tables. One that is not here was added later: where it is absent it reads as not measured.
_FIRST = {
    "study", "cell", "name", "data", "block", "depth", "width", "heads", "patch_size", "tokens", "params", "params_m",
    "gmacs", "seed", "step", "batch_size", "train_gmacs", "loss_train", "loss_heldout", "evaluation", "samples",
    "sampler", "sampling_steps", "guidance", "ema", "sampling_seed", "extractor", "reference", "frechet", "kid",
    "precision", "recall", "inception_score", "train_seconds", "sample_seconds", "loss", "attempt", "outcome",
    "started", "ended", "seconds", "host", "device", "threads", "torch", "commit", "message", "source", "model",
    "resolution", "steps_k", "gflops", "cfg_scale", "decoder", "fid",
}  # fmt: skip
#: Columns that may not be empty: without them a row is neither identified nor placed on an axis.
_REQUIRED_RESULT = ("study", "cell", "name", "block", "depth", "width", "patch_size", "gmacs", "step")

_PUBLISHED_COLUMNS = (
    "source", "model", "resolution", "patch_size", "depth", "width", "heads", "block", "steps_k", "gflops", "params_m",
    "cfg_scale", "sampling_steps", "samples", "decoder", "fid", "sfid", "inception_score", "precision", "recall",
)  # fmt: skip
_BASELINE_COLUMNS = ("source", "model", "resolution", "fid", "sfid", "inception_score", "precision", "recall")
_PUBLISHED_BATCH = 256  # Peebles & Xie 2023, section 4
_PUBLISHED_VAE_FACTOR = 8  # side of an image over the side of its latent


# --- reading -------------------------------------------------------------------------------------------------------


def load_study(folder: Path) -> pd.DataFrame:
    """The results of a study: `folder`/results.csv, with a column `size` added.

    Returns:
        One row per cell, step and evaluation, columns and units as `harness.runs.columns.RESULT_COLUMNS`, sorted by
        compute, name and step, otherwise as in the file. Required whole numbers are int64, other whole numbers Int64,
        measures float64 with NaN where not measured. `size` is "S", "B", "L", "XL" or "d<depth>-w<width>".

    Raises:
        InputError: file missing or without rows, wrong columns, a wrong value, or two rows of the same cell, step
            and evaluation that disagree. One line: file, row, column, what is allowed.
    """
    path = folder / "results.csv"
    table = _read(path, tuple(RESULT_COLUMNS), _REQUIRED_RESULT)
    if table.empty:
        raise InputError(f"{path}: has no rows; at least one trained cell is needed")
    bad = table[(table["extractor"] != "") & ~table["extractor"].str.fullmatch(r"[^@]+@[^@]+")]
    if not bad.empty:
        raise InputError(f"{path}: column extractor: {bad['extractor'].iloc[0]!r} is not allowed; allowed: name@hash")
    table = _without_duplicates(table, path)
    table["size"] = _sizes(table)
    return table.sort_values(["gmacs", "name", "cell", "step"], kind="stable", ignore_index=True)


def load_table(folder: Path) -> pd.DataFrame:
    """The results of a study, or the published numbers: whichever `folder` holds.

    Raises:
        InputError: the folder holds neither, or as `load_study`.
    """
    if (folder / "results.csv").exists():
        return load_study(folder)
    if (folder / "published.csv").exists():
        return load_published(folder)
    raise InputError(f"{folder}: holds neither results.csv nor published.csv; `dit-harness collect` writes the former")


def load_studies(folders: Sequence[Path]) -> pd.DataFrame:
    """The results of several studies as one table, rows as `load_study`; a cell that two studies share is one cell.

    Raises:
        InputError: as `load_study`; also two studies that disagree on the same cell, step and evaluation.
    """
    tables = [load_study(folder) for folder in folders]
    if not tables:
        raise InputError("no study is given; needed: one folder or more")
    table = pd.concat(tables, ignore_index=True)
    derived = ("study", "protocol", "vae", "recipe", "train_seconds", "sample_seconds")
    measured = [column for column in table.columns if column not in derived]
    table = _without_duplicates(table.drop_duplicates(measured), folders[0].parent)
    return table.sort_values(["gmacs", "name", "cell", "step"], kind="stable", ignore_index=True)


def load_curves(folder: Path) -> pd.DataFrame:
    """Losses over training: `folder`/curves.csv, with `CURVE_COLUMNS`; empty without the file.

    Raises:
        InputError: as `load_study`.
    """
    required = ("study", "cell", "name", "step")
    return _read_if_there(folder / "curves.csv", CURVE_COLUMNS, required, ["name", "cell", "step"])


def load_nested(folder: Path) -> pd.DataFrame:
    """Distances at nested sample counts: `folder`/nested.csv, columns as `NESTED_COLUMNS`; empty without the file.

    Raises:
        InputError: as `load_study`.
    """
    required = ("study", "cell", "name", "step", "evaluation", "samples")
    order = ["name", "cell", "step", "evaluation", "samples"]
    return _read_if_there(folder / "nested.csv", NESTED_COLUMNS, required, order)


def load_attempts(folder: Path) -> pd.DataFrame:
    """Every attempt at a cell: `folder`/attempts.csv, with `ATTEMPT_COLUMNS`; empty without it.

    Raises:
        InputError: as `load_study`.
    """
    required = ("study", "cell", "name", "attempt", "outcome")
    return _read_if_there(folder / "attempts.csv", ATTEMPT_COLUMNS, required, ["name", "cell", "attempt"])


def load_published(folder: Path) -> pd.DataFrame:
    """The numbers of Peebles & Xie (2023): `folder`/published.csv under the names of results.csv.

    Returns:
        One row per published value. gflops becomes gmacs (the paper counts a multiply-add as one), fid becomes
        frechet, steps_k * 1000 step; batch_size is 256, train_gmacs = 3 * gmacs * batch_size * step, tokens follow
        from the VAE's factor 8. source, model, resolution, decoder and cfg_scale are kept.

    Raises:
        InputError: as `load_study`.
    """
    path = folder / "published.csv"
    raw = _read(path, _PUBLISHED_COLUMNS, ("source", "model", "block", "depth", "width", "patch_size", "gflops", "fid"))
    if raw.empty:
        raise InputError(f"{path}: has no rows")
    table = raw.rename(columns={"gflops": "gmacs", "fid": METRIC})
    side = table["resolution"].astype(int)
    table["step"] = (table.pop("steps_k") * 1000).round().astype("int64")
    table["study"] = "paper"
    table["name"] = table["model"]
    table["cell"] = [
        re.sub(r"[^a-z0-9]+", "-", f"{model.removesuffix('-G')} {block} {pixels}".lower())
        for model, block, pixels in zip(table["model"], table["block"], side, strict=True)
    ]
    table["evaluation"] = [
        f"{row.source}, {row.decoder}, cfg {row.cfg_scale:g}, {row.samples}/{row.sampling_steps}"
        for row in table.itertuples()
    ]
    table["data"] = [f"imagenet-{pixels}" for pixels in side]
    table["tokens"] = ((side // _PUBLISHED_VAE_FACTOR // table["patch_size"]) ** 2).astype("Int64")
    table["params"] = (table["params_m"] * 1e6).round().astype("Int64")
    table["seed"] = pd.array([pd.NA] * len(table), dtype="Int64")
    table["sampling_seed"] = table["seed"]
    table["batch_size"] = pd.array([_PUBLISHED_BATCH] * len(table), dtype="Int64")
    table["train_gmacs"] = 3 * table["gmacs"] * _PUBLISHED_BATCH * table["step"]
    table["sampler"] = "ddpm"
    table["guidance"] = table["cfg_scale"]
    table["guidance_channels"] = ["" if scale == 1 else "first-three" for scale in table["cfg_scale"]]
    table["labels"] = "uniform"
    table["protocol"] = table["vae"] = table["recipe"] = ""
    table["ema"] = pd.array([True] * len(table), dtype="boolean")
    table["extractor"] = "inception-v3"
    table["reference"] = [f"imagenet-{pixels}/train" for pixels in side]
    table["size"] = _sizes(table)
    for column in RESULT_COLUMNS:
        if column not in table:
            table[column] = math.nan
    table = _without_duplicates(table, path)
    kept = [*RESULT_COLUMNS, "size", "source", "model", "resolution", "decoder", "cfg_scale", "sfid"]
    return table[list(dict.fromkeys(kept))].sort_values(
        ["gmacs", "name", "block", "step"], kind="stable", ignore_index=True
    )


def load_baselines(folder: Path) -> pd.DataFrame:
    """Other models of the paper's Tables 2 and 3: `folder`/baselines.csv; empty without the file.

    Returns:
        Columns source, model, resolution, frechet (FID), sfid, inception_score, precision, recall, and gmacs for the
        four models whose Gflops the paper's Figure 2 (right) gives at 256 x 256, NaN otherwise.

    Raises:
        InputError: as `load_study`.
    """
    path = folder / "baselines.csv"
    if not path.exists():
        return pd.DataFrame(columns=[*_BASELINE_COLUMNS, "gmacs"]).rename(columns={"fid": METRIC})
    table = _read(path, _BASELINE_COLUMNS, ("source", "model", "resolution", "fid")).rename(columns={"fid": METRIC})
    table["gmacs"] = table["model"].map(BASELINE_GFLOPS).where(table["resolution"] == 256).astype(float)
    return table


def block_name(block: str) -> str:
    """The block design as the literature writes it; an unknown one as it is."""
    return BLOCK_NAMES.get(block, block)


def size_name(depth: int, width: int) -> str:
    """Name of a shape: "S", "B", "L" or "XL" for the published ones, "d4-w64" otherwise."""
    return PUBLISHED_SIZES.get((depth, width), f"d{depth}-w{width}")


def size_order(table: pd.DataFrame) -> list[str]:
    """The sizes in the table, smallest first (width squared times depth, what parameters grow with)."""
    shapes = table[["size", "depth", "width"]].drop_duplicates()
    keys = [(int(depth) * int(width) ** 2, int(depth), str(size)) for size, depth, width in shapes.to_numpy()]
    return list(dict.fromkeys(size for _, _, size in sorted(keys)))


# --- what compares with what ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Rows measured alike: they agree in `CONDITIONS`, so their metrics compare."""

    conditions: Mapping[str, Any]
    table: pd.DataFrame
    others: tuple[str, ...] = ()  #: what other rows of the same table differ in, in words: they do not compare

    @property
    def metric(self) -> str:
        """Printed name of the metric, see `metric_name`."""
        return metric_name(str(self.conditions["extractor"]))

    @property
    def label(self) -> str:
        """The conditions in words, for captions: N, extractor, reference and so on; and a warning of others."""
        text = describe_conditions(self.conditions)
        return f"{text}; not comparable with other {_listed(self.others)}" if self.others else text


def describe_conditions(conditions: Mapping[str, Any]) -> str:
    """The conditions of a measurement as one line of text; what is empty or varies is left out."""
    have = {key: value for key, value in conditions.items() if not pd.isna(value) and value != ""}
    parts = []
    if "samples" in have:
        parts.append(f"N = {int(have['samples']):,}")
    parts += [f"{key} {have[key]}" for key in ("extractor", "reference") if key in have]
    if "sampler" in have:
        steps = f", {int(have['sampling_steps'])} steps" if "sampling_steps" in have else ""
        parts.append(f"{str(have['sampler']).upper()}{steps}")
    if "guidance" in have:
        where = " on the first three channels" if have.get("guidance_channels") == "first-three" else ""
        parts.append("no guidance" if have["guidance"] == 1 else f"guidance {have['guidance']:g}{where}")
    if have.get("labels", "uniform") != "uniform":
        parts.append("classes in turn" if have["labels"] == "balanced" else "classes as in training")
    if "vae" in have:
        parts.append(f"latents of {have['vae']}")
    if "ema" in have:
        parts.append("EMA weights" if have["ema"] else "raw weights")
    if "decoder" in have:
        parts.append(f"decoder {have['decoder']}")
    return "; ".join(parts)


def comparable_groups(table: pd.DataFrame, vary: Iterable[str] = ()) -> list[Group]:
    """Split rows into groups measured alike.

    Args:
        table: rows of `load_study` or `load_published`.
        vary: conditions that may differ inside a group (for example sampling_steps for a sampling-compute figure).

    Returns:
        The groups, most cells and steps first (sampling seeds count once); ties in the order of their first row, so
        that of equals what the sweep itself asks for comes before what was measured later. Rows that were never
        evaluated are left to `missing_rows`.
    """
    keys = [column for column in CONDITIONS if column in table and column not in set(vary)]
    measured = table[table["extractor"] != ""]
    others = tuple(_CONDITION_NAMES[column] for column in _telling(mixed_conditions(table)) if column in keys)
    groups = [
        Group(dict(zip(keys, key, strict=True)), rows, others)
        for key, rows in measured.groupby(keys, dropna=False, sort=False)
    ]
    return sorted(groups, key=lambda group: -len(group.table[["cell", "step"]].drop_duplicates()))


def mixed_conditions(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """The conditions in which the measured rows of a table differ, with their values as printed, in order of rows."""
    measured = table[table["extractor"] != ""] if "extractor" in table else table
    mixed = {}
    for column in CONDITIONS:
        if column in table:
            values = measured[column].drop_duplicates()
            if len(values) > 1:
                mixed[column] = tuple("none" if pd.isna(v) or v == "" else str(v) for v in values)
    return mixed


def _telling(mixed: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Without the conditions that follow from another one that differs too."""
    implied = {"reference": "data", "guidance_channels": "guidance"}
    return {column: values for column, values in mixed.items() if implied.get(column) not in mixed}


def mixture_warning(table: pd.DataFrame) -> str | None:
    """One sentence where values that do not compare stand in one table; None where all do."""
    mixed = _telling(mixed_conditions(table))
    if not mixed:
        return None
    parts = [
        f"{_CONDITION_NAMES[column]} ({', '.join(values[:4])}{', ...' if len(values) > 4 else ''})"
        for column, values in mixed.items()
    ]
    return (
        f"Values measured in {len(comparable_groups(table))} ways meet in this study. They do not compare and are not "
        f"fitted together; they differ in {_listed(parts)}"
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


def missing_rows(table: pd.DataFrame, column: str = METRIC) -> pd.DataFrame:
    """The rows where `column` was not measured; to be reported, never filled in."""
    return table[table[column].isna()]


# --- helpers -------------------------------------------------------------------------------------------------------


def _listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: commas, and an "and" before the last."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _sizes(table: pd.DataFrame) -> list[str]:
    return [size_name(int(depth), int(width)) for depth, width in zip(table["depth"], table["width"], strict=True)]


def _read_if_there(path: Path, columns: Iterable[str], required: tuple[str, ...], order: list[str]) -> pd.DataFrame:
    """A CSV file as `_read` reads it, sorted; without the file no rows."""
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    return _read(path, tuple(columns), required).sort_values(order, kind="stable", ignore_index=True)


def _read(path: Path, columns: tuple[str, ...], required: tuple[str, ...]) -> pd.DataFrame:
    """A CSV file as a typed frame; `InputError` at the first thing that is wrong."""
    header, rows = _csv_lines(path)
    _check_header(path, header, columns)
    values: dict[str, list[Any]] = {column: [] for column in header}
    absent = [column for column in columns if column not in header]
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise InputError(f"{path}: row {number} has {len(row)} fields; allowed: {len(header)}, as in the header")
        for column, text in zip(header, row, strict=True):
            parse, allowed = _kind(column)
            try:
                value = _parse(text, parse, column in required)
            except ValueError:
                allowed += "" if column in required else ", or empty where not measured"
                raise InputError(
                    f"{path}: row {number}, column {column}: {text!r} is not allowed; allowed: {allowed}"
                ) from None
            values[column].append(value)
    for column in absent:
        values[column] = ["" if column in _TEXT else None] * len(values[header[0]])
    frame: dict[str, Any] = {column: pd.Series(values[column], dtype=_dtype(column, required)) for column in columns}
    return pd.DataFrame(frame)


def _csv_lines(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a CSV file as text."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; `dit-harness collect` writes a study's tables") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV: {error}") from None
    return (lines[0], lines[1:]) if lines else ([], [])


def _check_header(path: Path, header: list[str], columns: tuple[str, ...]) -> None:
    for column in columns:
        if column not in header and column in _FIRST:
            raise InputError(f"{path}: column {column} is missing; needed: {', '.join(columns)}")
    for column in header:
        again = header.count(column) > 1
        if again or column not in columns:
            what = "occurs twice" if again else "is unknown: a newer version may have written the table"
            raise InputError(f"{path}: column {column!r} {what}; allowed: {', '.join(columns)}")


def _parse(text: str, parse: Callable[[str], Any], required: bool) -> Any:
    if text.strip():
        return parse(text)
    if required:
        raise ValueError("empty")
    return "" if parse is str else None


def _kind(column: str) -> tuple[Callable[[str], Any], str]:
    """How a column's values are parsed, and what is allowed, in words."""
    if column in _TEXT:
        return str, "a text"
    if column in _FLAG:
        return _flag, "True or False"
    if column in _WHOLE:
        least = 0 if column in _MAY_BE_ZERO else 1
        return (lambda text: _number(text, least=least, whole=True)), f"a whole number of at least {least}"
    if column in _POSITIVE:
        return (lambda text: _number(text, above=0.0)), "a number above 0"
    return _number, "a finite number"


def _dtype(column: str, required: tuple[str, ...]) -> Any:
    if column in _TEXT:
        return "str"
    if column in _FLAG:
        return "boolean"
    if column in _WHOLE:
        return "int64" if column in required else "Int64"
    return "float64"


def _number(text: str, least: float = -math.inf, above: float = -math.inf, whole: bool = False) -> float | int:
    value = float(text)
    if not math.isfinite(value) or value < least or value <= above or (whole and value != int(value)):
        raise ValueError(text)
    return int(value) if whole else value


def _flag(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("true", "false"):
        raise ValueError(text)
    return word == "true"


def _without_duplicates(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Drop repeated equal rows; refuse rows of the same cell, step and evaluation that disagree."""
    table = table.drop_duplicates(ignore_index=True)
    keys = ["cell", "step", "evaluation"]
    again = table[table.duplicated(keys, keep=False)]
    if again.empty:
        return table
    first = again.iloc[0]
    same = again[(again[keys] == first[keys]).all(axis=1)]
    second = same.iloc[1]
    column = next(c for c in table.columns if first[c] is not second[c] and _differs(first[c], second[c]))
    raise InputError(
        f"{path}: cell {first['cell']}, step {first['step']}, evaluation {first['evaluation'] or 'none'} occurs twice "
        f"with different values in column {column}: {_shown(first[column])} and {_shown(second[column])}; "
        "allowed: one row each"
    )


def _shown(value: Any) -> str:
    return "nothing" if pd.isna(value) or value == "" else repr(value.item() if hasattr(value, "item") else value)


def _differs(one: Any, other: Any) -> bool:
    if pd.isna(one) or pd.isna(other):
        return bool(pd.isna(one) != pd.isna(other))
    return bool(one != other)
