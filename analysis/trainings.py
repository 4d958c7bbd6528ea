"""Which rows of a table are of one training, and which trainings of two designs share their random draws."""

from __future__ import annotations

import pandas as pd


def training_of(rows: pd.DataFrame) -> pd.Series[str]:
    """The seeds of each row's training, such as "3" or "3; noise=1"; the cell where no seed is known.

    Among cells of one design and place each value is one training. Trainings of two designs with the same value share
    their draws: order, timesteps and noise.
    """
    seeds = rows["seed"].astype(object).where(rows["seed"].notna(), rows["cell"]).astype(str)
    apart = rows["seeds"].fillna("") if "seeds" in rows else ""
    return (seeds + "; " + apart).str.removesuffix("; ")
