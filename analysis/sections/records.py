"""What was run and what came out, row by row: results, samples, costs, attempts, provenance."""

from __future__ import annotations

import pandas as pd

from analysis.conditions import comparable_groups
from analysis.figures.samples import find_samples, sample_sheet
from analysis.names import METRIC, listed, plural
from analysis.page import Page, Section, Table
from analysis.printed import row_table
from analysis.table import missing_rows
from harness.runs.columns import ATTEMPT_COLUMNS, RESULT_COLUMNS, printed_title

_MOST_PICTURES = 36  # on the contact sheet; if there are more, one seed per model is shown

#: The first columns of the table of results; all other titled columns of results.csv follow.
_FIRST = (
    "name", "source", "size", "patch_size", "block", "tokens", "params_m", "gmacs", "seed", "step", "train_gmacs",
    METRIC, "kid", "precision", "recall", "inception_score", "sfid", "loss_train", "loss_heldout",
)  # fmt: skip


def results(page: Page, table: pd.DataFrame) -> None:
    """Every row of the table, group by group; and the rows without a metric."""
    section = page.section("results", "Results", "Every row of the table.")
    text = "Values within one table were measured alike and compare; values of different tables do not."
    section.paragraphs.append(f"{text} Empty: not measured.")
    for group in comparable_groups(table):
        section.tables.append(_result_table(group.table, _capital(group.brief), group.conditions["extractor"]))
    unmeasured = table[table["extractor"] == ""]
    if not unmeasured.empty:
        section.tables.append(_result_table(unmeasured, "Trained, not evaluated yet", ""))
    absent = missing_rows(table[~_only_losses(table)])
    for row in absent.itertuples():
        page.omit(f"{row.name}, step {row.step:,}", "it has no Fréchet distance")
    if not absent.empty:
        many = f"{len(absent)} of {len(table)} rows"
        page.summary.append(f"{many} have no Fréchet distance; they are named in the report")


def _only_losses(table: pd.DataFrame) -> pd.Series[bool]:
    """Which rows lack nothing, although they were not evaluated: of a study that asks for losses only, or of a step
    between the evaluated ones of a cell.
    """
    evaluated = table["evaluation"] != ""
    done = table[evaluated]
    return ~evaluated & (~table["study"].isin(done["study"]) | table["cell"].isin(done["cell"]))


def _result_table(rows: pd.DataFrame, label: str, extractor: str) -> Table:
    study = ("study",) if rows["study"].nunique() > 1 else ()
    columns = dict.fromkeys((*study, *_FIRST, *(column.name for column in RESULT_COLUMNS.values() if column.title)))
    titles = {column: printed_title(column, extractor) or "Study" for column in columns if column in rows}
    return row_table(f"{label or 'All rows'}. Gflops are multiply-adds.", rows, titles)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def samples(page: Page, table: pd.DataFrame) -> None:
    """The contact sheet of samples/*.png."""
    section = page.section("samples", "Samples", "What the models generate, drawn from the samples that were scored.")
    cells = table.drop_duplicates("cell")
    pictures = find_samples(page.folder, cells)
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
        lambda: sample_sheet(pictures, shown, "Generated images; each panel shows one cell"),
    )  # fmt: skip


def costs(page: Page, table: pd.DataFrame, attempts_table: pd.DataFrame) -> None:
    """Time and compute of every cell, and their totals; the time that was estimated beside the true one."""
    section = page.section("costs", "Costs", "What every cell took.")
    cells = table.groupby("cell", sort=False).agg(
        name=("name", "last"),
        step=("step", "last"),
        train_gmacs=("train_gmacs", "last"),
        train_seconds=("train_seconds", "max"),
        sample_seconds=("sample_seconds", lambda seconds: seconds.sum(min_count=1)),
        **{column: (column, "last") for column in ("images_per_s", "tflops", "mfu") if column in table},
    )
    total = cells[["train_gmacs", "train_seconds", "sample_seconds"]].sum(min_count=1)
    rows = pd.concat([cells, pd.DataFrame([{"name": "in all", **total}])])
    titles = {
        "name": "Cell", "step": "Steps", "train_gmacs": "Training Gflops", "train_seconds": "Training, s",
        "sample_seconds": "Sampling and scoring, s", "images_per_s": "Images/s", "tflops": "TFLOP/s", "mfu": "MFU",
    }  # fmt: skip
    caption = "Training Gflops: 3 × GMACs × batch × steps. Seconds are wall time, all attempts. "
    caption += "TFLOP/s: 6 × GMACs × images per second; MFU: over the rate of a large matrix product on that machine."
    always = ("name", "step", "train_gmacs", "train_seconds", "sample_seconds")
    section.tables.append(row_table(caption, rows, {t: titles[t] for t in titles if t in rows}, always))
    _estimates(section, cells, attempts_table)


def _estimates(section: Section, cells: pd.DataFrame, attempts_table: pd.DataFrame) -> None:
    """What was estimated when a cell began, and what it took; nothing where no attempt holds an estimate."""
    if "estimated_seconds" not in attempts_table:
        return
    known = attempts_table.dropna(subset=["estimated_seconds"]).sort_values("attempt").groupby("cell").head(1)
    done = attempts_table["cell"][attempts_table["outcome"] == "done"]
    rows = known[known["cell"].isin(done)].merge(cells.reset_index()[["cell", "train_seconds", "sample_seconds"]])
    rows["true"] = rows["train_seconds"] + rows["sample_seconds"].fillna(0)
    rows = rows.dropna(subset=["true"])
    if rows.empty:
        return
    rows["ratio"] = rows["true"] / rows["estimated_seconds"]
    for source, group in rows.groupby("estimate_source", sort=False):
        spans = group.dropna(subset=["estimated_least", "estimated_most"])
        inside = spans["true"].between(spans["estimated_least"], spans["estimated_most"]).sum()
        text = f"Estimates {source}: {plural(len(group), 'cell')}, the true time is {group['ratio'].median():.2f} times"
        text += f" the estimated one (median; {group['ratio'].min():.2f} to {group['ratio'].max():.2f})"
        section.paragraphs.append(
            text + (f"; {inside} of {len(spans)} lie inside the interval." if len(spans) else ".")
        )
    titles = {
        "name": "Cell", "estimated_seconds": "Estimated, s", "estimated_least": "From, s", "estimated_most": "To, s",
        "true": "True, s", "ratio": "True / estimated", "estimate_source": "Estimate",
    }  # fmt: skip
    caption = "Estimated when the first attempt began, and true: wall time of training, sampling and scoring."
    section.tables.append(row_table(caption, rows, titles))


def attempts(page: Page, table: pd.DataFrame) -> None:
    """Every attempt: its machine, and the reason of a failure."""
    section = page.section("attempts", "Attempts", "What ran where, and what failed.")
    if table.empty:
        page.omit("The attempts and what they ran on", "there is no attempts.csv, or it has no rows")
        return
    counts = table["outcome"].value_counts()
    section.paragraphs.append(", ".join(f"{counts[outcome]} {outcome}" for outcome in sorted(counts.index)) + ".")
    last = table.sort_values("attempt").groupby("cell").tail(1)
    if "cpu" in last and (kinds := last.loc[last["cpu"] != "", "cpu"].value_counts()).size > 1:
        machines = listed(*(f"{kind} ({plural(cells, 'cell')})" for kind, cells in kinds.items()))
        section.paragraphs.append(f"The cells ran on {machines}: one seed gives other bits on each kind of processor.")
    failed = last[last["outcome"].isin(["failed", "lost"])]
    if not failed.empty:
        page.summary.append(f"{plural(len(failed), 'cell')} failed: {', '.join(sorted(failed['name']))}")
        told = failed["cause"].where(failed["cause"] != "", "not told")
        causes = [(str(cause), len(names), ", ".join(sorted(names))) for cause, names in failed["name"].groupby(told)]
        section.tables.append(Table.of("Cells that failed, by cause.", "Cause | Cells | Names", causes))
    titles = {column.name: column.title for column in ATTEMPT_COLUMNS.values() if column.title}
    section.tables.append(row_table("Every attempt at every cell.", table, titles))


def provenance(page: Page, attempts_table: pd.DataFrame, command: str, sources: list[str]) -> None:
    """Where the numbers come from and how to make this page again."""
    section = page.section("provenance", "Provenance", "Where the numbers come from and how this page is made again.")
    rows = [
        ("Made again with", command),
        ("From", ", ".join(source for source in sources if any(page.folder.glob(source)))),
    ]
    titles = {"torch": "torch", "commit": "Commit", "host": "Host", "device": "Device", "threads": "CPU threads"}
    for column in titles if not attempts_table.empty else ():
        if values := sorted({str(v) for v in attempts_table[column] if not pd.isna(v) and v != ""}):
            rows.append((titles[column], ", ".join(values)))
    section.tables.append(Table.of("Origin of this page.", "What | Value", rows))
