"""The paper's Tables 1 to 4 as the report prints them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.page import Page
from analysis.sections.paper import paper_tables
from analysis.table import load_baselines, load_published

PAPER = Path(__file__).parents[2] / "results" / "paper"


def test_the_four_tables_hold_the_published_values(tmp_path: Path) -> None:
    page = Page(tmp_path, "t", "l")
    paper_tables(page, load_published(PAPER), load_baselines(PAPER))
    models, at256, at512, runs = (table.frame for table in page.sections[0].tables)
    assert list(models.iloc[3]) == ["DiT-XL", "28", "1,152", "16", "676", "7.39", "29.05", "118.64"]
    best = at256.set_index("Model").loc["DiT-XL/2 (cfg=1.50)"]
    assert list(best) == ["2.27", "4.6", "278.2", "0.83", "0.57"]
    assert at256.set_index("Model").loc["LDM-4-G (cfg=1.50)", "FID"] == "3.6"
    assert at512.set_index("Model").loc["DiT-XL/2 (cfg=1.50)", "FID"] == "3.04"
    assert len(at256) == 12 + 3
    assert len(at512) == 6 + 3
    assert len(runs) == 19
    assert list(runs.iloc[0]) == ["DiT-S/8", "adaLN-Zero", "400,000", "0.36", "33", "153.6"]
    assert isinstance(models, pd.DataFrame)
