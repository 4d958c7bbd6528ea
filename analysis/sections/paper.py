"""The paper's Tables 1 to 4, from its published numbers."""

from __future__ import annotations

import pandas as pd

from analysis.names import METRIC, block_name
from analysis.numbers import number
from analysis.page import Page, Table
from analysis.printed import row_table
from harness.runs.columns import printed_title

_STATE_OF_THE_ART = (METRIC, "sfid", "inception_score", "precision", "recall")


def paper_tables(page: Page, table: pd.DataFrame, others: pd.DataFrame) -> None:
    """Tables 1 (models), 2 and 3 (ImageNet 256 and 512 against other models) and 4 (all runs)."""
    section = page.section("tables", "The paper’s tables", "Tables 1 to 4 as the paper prints them.")
    runs = table[table["decoder"] == "ft-MSE"]
    runs = runs[runs["samples"] == runs["samples"].max()]
    section.tables.append(_models(runs))
    for name, resolution in (("Table 2", 256), ("Table 3", 512)):
        section.tables.append(_state_of_the_art(name, resolution, table, others))
    section.tables.append(_runs(runs))


def _models(runs: pd.DataFrame) -> Table:
    """Table 1, with the Gflops of Table 4: the paper’s Table 1 has them for one patch size only."""
    rows = []
    models = runs[(runs["resolution"] == 256) & (runs["block"] == "adaln-zero")].drop_duplicates(["size", "patch_size"])
    for size, cells in models.groupby("size", sort=False):
        gflops = cells.set_index("patch_size")["gmacs"]
        first = cells.iloc[0]
        shape = (first[k] for k in ("depth", "width", "heads", "params_m"))
        rows.append((f"DiT-{size}", *shape, *(number(gflops.get(p), 5) for p in (8, 4, 2))))
    columns = "Model | Layers N | Hidden size d | Heads | Parameters (M) | Gflops (patch 8) | (4) | (2)"
    return Table.of("Table 1: the models, and their Gflops (multiply-adds) at 256 x 256.", columns, rows)


def _state_of_the_art(name: str, resolution: int, table: pd.DataFrame, others: pd.DataFrame) -> Table:
    """Table 2 or 3: the other models, then DiT-XL/2 with the ft-EMA decoder."""
    ours = table[(table["decoder"] == "ft-EMA") & (table["resolution"] == resolution)]
    guidance = [f" (cfg={scale:.2f})" if scale != 1 else "" for scale in ours["guidance"]]
    ours = ours.assign(model="DiT-" + ours["size"] + "/" + ours["patch_size"].astype(str) + guidance)
    shown = pd.concat([others[others["resolution"] == resolution], ours])
    caption = f"{name}: class-conditional ImageNet {resolution} x {resolution}, FID-50K and its company."
    titles = {column: printed_title(column, "inception-v3") for column in _STATE_OF_THE_ART}
    return row_table(f"{caption} Empty: not given.", shown, {"model": "Model"} | titles, always=_STATE_OF_THE_ART)


def _runs(runs: pd.DataFrame) -> Table:
    """Table 4: every run, ft-MSE decoder, no guidance."""
    rows = []
    for _, row in runs.sort_values(["resolution", "gmacs", "step"]).iterrows():
        pixels = f" ({row['resolution']} px)" if row["resolution"] != 256 else ""
        name, block = f"DiT-{row['size']}/{row['patch_size']}{pixels}", block_name(str(row["block"]))
        rows.append((name, block, row["step"], number(row["gmacs"], 5), row["params_m"], row[METRIC]))
    columns = "Model | Block | Training steps | Gflops | Parameters (M) | FID-50K"
    return Table.of("Table 4: all runs, ft-MSE decoder, no guidance.", columns, rows)
