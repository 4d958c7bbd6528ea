"""Which rows of a table are of one training, and which trainings of two designs share their random draws."""

from __future__ import annotations

import pandas as pd


def training_of(rows: pd.DataFrame) -> pd.Series[str]:
    """The seeds of each row's training, such as "3" or "3; noise=1"; the cell where no seed is known.

    Among cells of one design and place each value is one training. Trainings of two designs with the same value share
    their draws: order, timesteps and noise.
    """
    seeds = rows["seed"].astype(object).where(rows["seed"].notna(), rows["cell"]).astype(str)
    parts = [rows["seeds"].fillna("")] if "seeds" in rows else []
    if "draws" in rows and rows["draws"].fillna(1).nunique() > 1:
        parts.append("draws=" + rows["draws"].fillna(1).astype(str))  # one seed means other noise in each version
    for part in parts:
        seeds += ("; " + part).where(part != "", "")
    return seeds


def apart(rows: pd.DataFrame) -> tuple[str, ...]:
    """What alone differs between the trainings of a model, such as "noise", where their `seed` is one.

    Empty where trainings differ in `seed`, in everything that chance decides.
    """
    if "seeds" not in rows or rows["seed"].nunique() > 1:
        return ()
    named = (field.partition("=")[0] for text in rows["seeds"].fillna("").unique() for field in text.split("; "))
    return tuple(dict.fromkeys(filter(None, named)))
