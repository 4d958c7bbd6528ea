"""Is it converged: how much the distance, or else the held-out loss, fell since the middle of training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.answer import Answer, cannot, minus
from analysis.horizon import decays
from analysis.names import METRIC, block_name, listed
from analysis.numbers import interval, number
from analysis.recipes import without_other_recipes
from analysis.slices import LOSS, Slice

QUESTION = "Is it converged?"

_SETTLED = {METRIC: (2.0, 5.0), LOSS: (0.5, 1.0)}  # percent fallen since mid-training: converged, nearly converged


@dataclass(frozen=True)
class Fall:
    """How much a metric or loss fell since about the middle of training, in percent, model by model."""

    column: str
    percent: tuple[float, ...]
    blocks: tuple[str, ...]  #: of every model
    share: float  #: of the steps it fell over, median

    @property
    def middle(self) -> float:
        """Median over the models."""
        return float(np.median(self.percent))

    @property
    def by_block(self) -> dict[str, float]:
        """Median of every block, in the order of their names."""
        values = pd.Series(self.percent).groupby(pd.Series(self.blocks)).median()
        return {str(block): float(value) for block, value in values.items()}

    @property
    def settled(self) -> str:
        """Yes, nearly or no: of the block that still falls most."""
        least, most = _SETTLED[self.column]
        worst = max(self.by_block.values())
        return "yes" if worst <= least else "nearly" if worst <= most else "no"


def find_fall(piece: Slice, curves: pd.DataFrame) -> Fall | None:
    """The fall of every model of the slice, and of the other blocks beside it; None where nothing tells.

    With a learning rate that falls, the loss falls with it, and nothing tells what more steps would do.
    """
    siblings = without_other_recipes(piece.siblings, piece.block)
    if decays(siblings):
        return None
    block = siblings.drop_duplicates("cell").set_index("cell")["block"]
    known = curves[curves["cell"].isin(block.index)] if not curves.empty else curves
    for column, rows in ((METRIC, siblings), (LOSS, known)):
        if rows.empty:
            continue
        falls, shares, blocks = [], [], []
        means = rows[rows[column] > 0].groupby(["cell", "step"], as_index=False)[column].mean()
        for cell, run in means.groupby("cell"):
            steps, values = run["step"].tolist(), run[column].tolist()
            last = steps[-1]
            before = [at for at, step in enumerate(steps[:-1]) if last / 4 <= step <= 3 * last / 4]
            if before:
                middle = min(before, key=lambda at: abs(steps[at] - last / 2))
                step = steps[middle]
                falls.append((1 - values[-1] / values[middle]) * 100)
                shares.append((1 - step / last) * 100)
                blocks.append(str(block[cell]))
        if falls:
            return Fall(column, tuple(falls), tuple(blocks), float(np.median(shares)))
    return None


def converged(piece: Slice, fall: Fall | None) -> Answer:
    """Whether the models still improved at their end."""
    if fall is None and decays(piece.siblings):
        return cannot(QUESTION, "the learning rate falls to 0, and the loss with it; only a longer training would tell")
    if fall is None:
        return cannot(QUESTION, "nothing was measured in the middle of training")
    name = piece.metric if fall.column == METRIC else "the held-out loss"
    count, low, high = len(fall.percent), min(fall.percent), max(fall.percent)
    over = f"over the last {fall.share:.0f} % of training"
    span = f"median of {count} runs; {interval((low, high))} %" if count > 1 else "one run"
    told, asked = fall.by_block, set(without_other_recipes(piece.siblings, piece.block)["block"])
    if len(told) > 1:
        span += f"; {', '.join(f'{block_name(block)} {number(value, 3)} %' for block, value in told.items())}"
    elif len(asked) > 1:
        span += f"; {listed(*map(block_name, told))} alone"
    moved = f"{name} {'fell' if fall.middle > 0 else 'rose'} by {number(abs(fall.middle), 3)} % {over} ({span})"
    verdict = {"yes": "Yes", "nearly": "Nearly", "no": "No"}[fall.settled]
    trust = "fair" if count >= 3 else "low"
    why = (
        "from checkpoints of the same runs"
        if fall.column == METRIC
        else f"{piece.metric} was measured at one step only"
    )
    return Answer(QUESTION, f"{verdict}: {minus(moved)}.", f"{trust}: {why}")
