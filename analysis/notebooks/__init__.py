"""Notebooks as py:percent sources; they call the library and compute nothing themselves."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from analysis.table import load_table


def study_table(folder: str | None = None) -> pd.DataFrame:
    """The table of a study; by default of the one that DIT_STUDY names, or else the paper's numbers.

    Raises:
        InputError: as `analysis.table.load_table`.
    """
    root = next(place for place in (Path.cwd(), *Path.cwd().parents) if (place / "analysis").is_dir())
    return load_table(root / Path(folder or os.environ.get("DIT_STUDY", "results/paper")).expanduser())
