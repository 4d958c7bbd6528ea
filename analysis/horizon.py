"""Which rows are the end of a training: with a learning rate that falls to 0, those at its end alone.

With a constant rate every checkpoint is what a shorter training would have reached. With a falling one it is not: a
shorter training would have let its rate fall sooner (Hoffmann et al. 2022, arXiv:2203.15556, section 3).
"""

from __future__ import annotations

import pandas as pd

from analysis.names import plural


def is_end(table: pd.DataFrame) -> pd.Series[bool]:
    """Whether each row is the end of a training; all are in a table without the column `horizon`."""
    if "horizon" not in table:
        return pd.Series(True, index=table.index)
    return table["horizon"].isna() | (table["step"] >= table["horizon"])


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that are the end of a training: what fits, frontiers and comparisons may use."""
    return table[is_end(table)]


def decays(table: pd.DataFrame) -> bool:
    """Whether the learning rate of a row's training falls to 0."""
    return "horizon" in table and bool(table["horizon"].notna().any())


def horizon_warning(table: pd.DataFrame) -> str | None:
    """One sentence if rows stand before the end of their learning rate's fall; otherwise None."""
    early = table[~is_end(table)]
    if early.empty:
        return None
    cells = early["cell"].nunique()
    return (
        f"{plural(len(early), 'row')} of {plural(cells, 'cell')} {'is' if len(early) == 1 else 'are'} from before the "
        "end of a training whose learning rate falls to 0. A shorter training would reach another value, so fits, "
        "frontiers and comparisons leave them out; only curves over steps show them"
    )
