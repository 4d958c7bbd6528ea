"""What was run and what came out, row by row: results, samples, costs, attempts, provenance."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis import figures
from analysis.page import Page, Table, number
from analysis.table import METRIC, block_name, comparable_groups, missing_rows
from harness.runs.columns import metric_labels

_MOST_PICTURES = 36  # on the contact sheet; where there are more, one seed per model

_RESULT_COLUMNS = (
    ("name", "Model"), ("source", "Source"), ("size", "Size"), ("patch_size", "Patch"), ("block", "Block"),
    ("tokens", "Tokens"), ("params_m", "Params, M"), ("gmacs", "Gflops"), ("seed", "Seed"), ("step", "Steps"),
    ("train_gmacs", "Training Gflops"), (METRIC, ""), ("kid", ""), ("precision", ""), ("recall", ""),
    ("inception_score", ""), ("sfid", ""), ("loss_train", "Loss, train"), ("loss_heldout", "Loss, held-out"),
    ("reconstruction_frechet", "Autoencoder alone"),
)  # fmt: skip


def results(page: Page, table: pd.DataFrame) -> None:
    """Every row of the table, group by group, and which rows have no metric."""
    section = page.section("results", "Results")
    section.paragraphs.append(
        "Values within one table were measured alike and compare; values of different tables do not. "
        "Empty: not measured."
    )
    for group in comparable_groups(table):
        section.tables.append(_result_table(group.table, group.label, str(group.conditions["extractor"])))
    unmeasured = table[table["extractor"] == ""]
    if not unmeasured.empty:
        section.tables.append(_result_table(unmeasured, "Trained, not evaluated yet", ""))
    absent = missing_rows(table)
    for row in absent.itertuples():
        page.omit(f"{row.name}, step {row.step:,}", "it has no Fréchet distance")
    if not absent.empty:
        page.summary.append(
            f"{len(absent)} of {len(table)} rows have no Fréchet distance; they are named in the report"
        )


def _result_table(rows: pd.DataFrame, label: str, extractor: str) -> Table:
    names = metric_labels(extractor)
    shown = [
        (column, names.get(column, title)) for column, title in _RESULT_COLUMNS if column in rows and _any(rows[column])
    ]
    printed = tuple(tuple(_print(column, row[column]) for column, _ in shown) for _, row in rows.iterrows())
    return Table(f"{label}. Gflops are multiply-adds.", tuple(title for _, title in shown), printed)


def _any(column: pd.Series[Any]) -> bool:
    return bool((column.notna() & (column.astype(str) != "")).any())


def _print(column: str, value: Any) -> str:
    if column == "block":
        return block_name(str(value))
    return value if isinstance(value, str) else number(value)


def samples(page: Page, table: pd.DataFrame) -> None:
    """The contact sheet of samples/*.png."""
    section = page.section("samples", "Samples")
    cells = table.drop_duplicates("cell")
    pictures = figures.find_samples(page.folder, cells)
    if not pictures:
        page.omit("The sample grid (Figure 7)", "there are no pictures of these cells in samples/")
        return
    for row in cells[~cells["cell"].isin(list(pictures))].itertuples():
        page.omit(f"Samples of {row.name}", "there is no picture of this cell in samples/")
    shown = cells[cells["cell"].isin(list(pictures))]
    if len(shown) > _MOST_PICTURES:
        shown = shown.sort_values(["seed", "gmacs"], kind="stable").drop_duplicates(["block", "size", "patch_size"])
        shown = shown.sort_values("gmacs", kind="stable").tail(_MOST_PICTURES)
        why = f"one seed per model is drawn, and {_MOST_PICTURES} models of most compute at most; see samples/"
        page.omit(f"Samples of {len(pictures) - len(shown)} more cells", why)
    pictures = {cell: pictures[cell] for cell in shown["cell"]}
    page.draw(
        section, "samples", f"Contact sheet of generated images of {len(pictures)} cells, by size and patch size.",
        "As the paper’s Figure 7.",
        lambda: figures.sample_sheet(pictures, shown, "Generated images; each panel shows one cell"),
    )  # fmt: skip


def costs(page: Page, table: pd.DataFrame) -> None:
    """Time and compute of every cell, and in all."""
    section = page.section("costs", "Costs")
    cells = []
    for _, rows in table.groupby("cell", sort=False):
        last = rows.sort_values("step").iloc[-1]
        train, sample = rows["train_seconds"].max(), rows["sample_seconds"].sum(min_count=1)
        cells.append((str(last["name"]), int(last["step"]), last["train_gmacs"], train, sample))
    printed: list[tuple[str, ...]] = [(n, *(number(value) for value in values)) for n, *values in cells]
    total = [pd.Series([c[i] for c in cells], dtype=float).sum(min_count=1) for i in (2, 3, 4)]
    printed.append(("in all", "", *(number(value) for value in total)))
    columns = ("Cell", "Steps", "Training Gflops", "Training, s", "Sampling and scoring, s")
    section.tables.append(
        Table(
            "Training Gflops: 3 × GMACs × batch × steps. Seconds are wall time, all attempts.", columns, tuple(printed)
        )
    )


_ATTEMPT_COLUMNS = (
    ("name", "Cell"), ("attempt", "Attempt"), ("outcome", "Outcome"), ("started", "Started, UTC"),
    ("seconds", "Seconds"), ("host", "Host"), ("cause", "Cause"), ("message", "Reason"),
)  # fmt: skip


def attempts(page: Page, table: pd.DataFrame) -> None:
    """Every attempt, failures with their reasons, and what it ran on."""
    section = page.section("attempts", "Attempts")
    if table.empty:
        page.omit("The attempts and what they ran on", "there is no attempts.csv, or it has no rows")
        return
    counts = table["outcome"].value_counts()
    section.paragraphs.append(", ".join(f"{counts[outcome]} {outcome}" for outcome in sorted(counts.index)) + ".")
    last = table.sort_values("attempt").groupby("cell").tail(1)
    failed = last[last["outcome"].isin(["failed", "lost"])]
    if not failed.empty:
        page.summary.append(f"{len(failed)} cell{'s' * (len(failed) != 1)} failed: {', '.join(sorted(failed['name']))}")
        causes = failed["cause"].where(failed["cause"] != "", "not told")
        by_cause = tuple(
            (str(cause), str(len(names)), ", ".join(sorted(names))) for cause, names in failed["name"].groupby(causes)
        )
        section.tables.append(Table("Cells that failed, by cause.", ("Cause", "Cells", "Names"), by_cause))
    shown = [(column, title) for column, title in _ATTEMPT_COLUMNS if _any(table[column])]
    rows = tuple(tuple(_print(c, row[c]) for c, _ in shown) for _, row in table.iterrows())
    section.tables.append(Table("Every attempt at every cell.", tuple(t for _, t in shown), rows))


def provenance(page: Page, attempts_table: pd.DataFrame, command: str, sources: list[str]) -> None:
    """Where the numbers come from and how to make this page again."""
    section = page.section("provenance", "Provenance")
    rows: list[tuple[str, str]] = [("Made again with", command), ("From", ", ".join(sources))]
    for column, title in (
        ("torch", "torch"), ("commit", "Commit"), ("host", "Host"), ("device", "Device"), ("threads", "CPU threads"),
    ):  # fmt: skip
        if column in attempts_table:
            values = sorted({str(v) for v in attempts_table[column] if not pd.isna(v) and v != ""})
            if values:
                rows.append((title, ", ".join(values)))
    section.tables.append(Table("Origin of this page.", ("What", "Value"), tuple(rows)))
