"""The paper's Tables 1 to 4, from its published numbers."""

from __future__ import annotations

import pandas as pd

from analysis.page import Page, Table, number
from analysis.table import METRIC, block_name

_MODEL_COLUMNS = ("Model", "Layers N", "Hidden size d", "Heads", "Parameters (M)", "Gflops (patch 8)", "(4)", "(2)")
_RUN_COLUMNS = ("Model", "Block", "Training steps", "Gflops", "Parameters (M)", "FID-50K")
_SOTA = (
    (METRIC, "FID"),
    ("sfid", "sFID"),
    ("inception_score", "IS"),
    ("precision", "Precision"),
    ("recall", "Recall"),
)


def paper_tables(page: Page, table: pd.DataFrame, others: pd.DataFrame) -> None:
    """Tables 1 (models), 2 and 3 (ImageNet 256 and 512 against other models) and 4 (all runs)."""
    section = page.section("tables", "The paper’s tables")
    runs = table[table["decoder"] == "ft-MSE"]
    runs = runs[runs["samples"] == runs["samples"].max()]
    section.tables.append(_models(runs))
    for name, resolution in (("Table 2", 256), ("Table 3", 512)):
        section.tables.append(_state_of_the_art(name, resolution, table, others))
    section.tables.append(_runs(runs))


def _models(runs: pd.DataFrame) -> Table:
    """Table 1, with the Gflops of Table 4: the paper’s own gives them at one patch size."""
    rows = []
    models = runs[(runs["resolution"] == 256) & (runs["block"] == "adaln-zero")].drop_duplicates(["size", "patch_size"])
    for size, cells in models.groupby("size", sort=False):
        gflops = cells.set_index("patch_size")["gmacs"]
        first = cells.iloc[0]
        shape = (number(first[k]) for k in ("depth", "width", "heads", "params_m"))
        rows.append((f"DiT-{size}", *shape, *(number(gflops.get(p), 5) for p in (8, 4, 2))))
    return Table("Table 1: the models, and their Gflops (multiply-adds) at 256 x 256.", _MODEL_COLUMNS, tuple(rows))


def _state_of_the_art(name: str, resolution: int, table: pd.DataFrame, others: pd.DataFrame) -> Table:
    """Table 2 or 3: the other models, then DiT-XL/2 with the ft-EMA decoder."""
    rows = [
        (str(row["model"]), *(number(row[key]) for key, _ in _SOTA))
        for _, row in others[others["resolution"] == resolution].iterrows()
    ]
    ours = table[(table["decoder"] == "ft-EMA") & (table["resolution"] == resolution)]
    for _, row in ours.iterrows():
        guidance = f" (cfg={row['guidance']:.2f})" if row["guidance"] != 1 else ""
        rows.append((f"DiT-{row['size']}/{row['patch_size']}{guidance}", *(number(row.get(key)) for key, _ in _SOTA)))
    caption = (
        f"{name}: class-conditional ImageNet {resolution} x {resolution}, FID-50K and its company. Empty: not given."
    )
    return Table(caption, ("Model", *(title for _, title in _SOTA)), tuple(rows))


def _runs(runs: pd.DataFrame) -> Table:
    """Table 4: every run, ft-MSE decoder, no guidance."""
    rows = []
    for _, row in runs.sort_values(["resolution", "gmacs", "step"]).iterrows():
        name = f"DiT-{row['size']}/{row['patch_size']}" + (
            f" ({row['resolution']} px)" if row["resolution"] != 256 else ""
        )
        numbers = (number(row["step"]), number(row["gmacs"], 5), number(row["params_m"]), number(row[METRIC]))
        rows.append((name, block_name(str(row["block"])), *numbers))
    return Table("Table 4: all runs, ft-MSE decoder, no guidance.", _RUN_COLUMNS, tuple(rows))
