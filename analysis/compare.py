"""Compare designs at the same shape; claim no more than the seeds show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.conditions import require_comparable
from analysis.fit.common import Array, Pair, floats, pair, range_flags
from analysis.judge import Sides
from analysis.names import BASELINE, METRIC, SHAPE, block_name
from analysis.recipes import SAME_PLACE, without_other_recipes
from analysis.slices import per_shape, require_repeats
from analysis.trainings import training_of


@dataclass(frozen=True)
class BlockComparison:
    """One design against the baseline at one shape, training step and batch size; lower metrics are better."""

    block: str
    baseline: str
    shape: str  #: "XL/2": size and patch size; of a U-Net those of the DiT of equal compute
    step: int
    gmacs: float  #: of the block's own model
    baseline_gmacs: float
    metric: float  #: geometric mean over training seeds
    baseline_metric: float
    seeds: int
    baseline_seeds: int
    seed_sd: float | None  #: SD of ln metric between training seeds, pooled over both; None: one seed on each side
    pair_sd: float | None  #: SD of the differences of ln metric at the same seed; None: not compared in pairs
    interval: Pair | None  #: 95 % of the ratio; None if there are too few seeds
    multiplier: float | None  #: compute multiplier of the baseline, see `compute_multiplier`
    multiplier_interval: tuple[float | None, float | None] | None  #: 95 %, from `interval`; None: beyond the baseline
    multiplier_note: str  #: why there is no multiplier; empty if there is one
    matched: float | None  #: metric over the baseline's at the block's own compute, interpolated; None if it cannot be
    verdict: str  #: "better", "worse" (than the baseline) or "inconclusive"
    reason: str

    @property
    def ratio(self) -> float:
        """Metric of the block over that of the baseline: above 1 where the baseline is better."""
        return self.metric / self.baseline_metric

    @property
    def pairing_gain(self) -> float | None:
        """Variance of a difference of two seeds over that at the same seed: above 1 where pairs make it surer."""
        if not self.pair_sd or self.seed_sd is None:
            return None
        return 2 * self.seed_sd**2 / self.pair_sd**2

    @property
    def conclusive(self) -> bool:
        """Whether the seeds show a difference."""
        return self.verdict != "inconclusive"

    def rows_of(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table at this comparison's shape and step, of every block."""
        return table[(table["place"] == self.shape) & (table["step"] == self.step)]


def compute_multiplier(gmacs: float, metric: float, curve_gmacs: Array, curve_metric: Array) -> float:
    """A design's own compute over the compute at which the baseline reaches the same metric.

    Args:
        gmacs: compute of the design.
        metric: of the design.
        curve_gmacs: compute of the baseline's models, shape [n], of one patch size.
        curve_metric: their metrics, shape [n]; interpolated log-log between neighbours.

    Returns:
        Above 1: the baseline needs less compute.

    Raises:
        ValueError: fewer than two baseline models, a baseline that does not improve with compute, or a metric outside
            the range of the baseline's models (no extrapolation).
    """
    if len(curve_gmacs) < 2:
        raise ValueError(f"needs two or more models of the baseline at this patch size, there are {len(curve_gmacs)}")
    if not (curve_metric > 0).all() or metric <= 0:
        raise ValueError("a metric is not positive")
    order = np.argsort(curve_gmacs)
    log_g, log_m = np.log(curve_gmacs[order]), np.log(curve_metric[order])
    if (np.diff(log_m) >= 0).any():
        raise ValueError("the baseline does not improve with every step in compute")
    if not log_m[-1] <= math.log(metric) <= log_m[0]:
        low, high = np.exp(log_m[-1]), np.exp(log_m[0])
        raise ValueError(f"{metric:.4g} is outside what the baseline's models reach, {low:.4g} to {high:.4g}")
    return float(gmacs / np.exp(np.interp(math.log(metric), log_m[::-1], log_g[::-1])))


def compare_blocks(
    table: pd.DataFrame, metric: str = METRIC, baseline: str = BASELINE, seed_sigma: float | None = None
) -> list[BlockComparison]:
    """Every design against the baseline, wherever both have the same place, batch size, recipe and training step.

    What has no partner of its own recipe is left out; `not_compared` names it.

    Trainings of two designs that share a seed share their draws. Where all seeds of the side with fewer of them, and
    two or more, are those of the other side, the seeds in common alone are compared, in pairs: ln of the ratio has the
    t interval of the pairs. Other seeds, two or more a side, have a Welch interval. Sampling seeds of a run are
    averaged first. The verdict follows from the interval; with one seed it is "inconclusive".

    Args:
        table: comparable rows; those without a positive metric are left out.
        metric: its column; lower is better.
        baseline: the block to compare with.
        seed_sigma: standard deviation of ln(metric) between training seeds, known from elsewhere. It is used where
            there are too few seeds, and the reason says so.

    Returns:
        Comparisons ordered by compute, step and metric; empty where the table holds one design only.

    Raises:
        InputError: rows that were measured differently.
    """
    rows = table[table[metric] > 0]
    require_comparable(rows)
    require_repeats(rows, [*SAME_PLACE, "block"])
    rows = without_other_recipes(rows, baseline)
    rows = rows.assign(training=training_of(rows))
    rows = rows[[*SAME_PLACE, "patch_size", "block", "gmacs", "training", metric]]  # selecting wide rows is slow
    found = []
    cells: pd.DataFrame
    for _, cells in rows.groupby(SAME_PLACE, dropna=False, sort=True):
        place, batch, step = (cells[column].iloc[0] for column in SAME_PLACE)
        runs = {
            str(block): group[metric].map(math.log).groupby(group["training"]).mean()
            for block, group in cells.groupby("block")
        }
        if baseline not in runs:
            continue
        patch = cells.loc[cells["block"] == baseline, "patch_size"].iloc[0]
        known = rows[(rows["block"] == baseline) & (rows["step"] == step)]
        known = known[(known["patch_size"] == patch) | (known["patch_size"].isna() & pd.isna(patch))]
        known = known[(known["batch_size"] == batch) | known["batch_size"].isna()]
        means = known[metric].map(math.log).groupby(known["gmacs"]).mean().map(math.exp)
        curve = means.index.to_numpy(float), means.to_numpy(float)
        for block in sorted(set(runs) - {baseline}, key=lambda name: float(runs[name].mean())):
            own = cells[cells["block"] == block].iloc[0]
            sides = Sides.of(runs[block], runs[baseline])
            gmacs = float(own["gmacs"])
            value, base = (math.exp(side.mean()) for side in (sides.own, sides.base))
            judged = sides.judge(seed_sigma)
            multiplier, note = _multiplier(gmacs, value, *curve)
            ends = None
            ratios = None if judged.interval is None else (math.exp(judged.interval[0]), math.exp(judged.interval[1]))
            if ratios is not None and multiplier is not None:
                ends = _multiplier(gmacs, base * ratios[0], *curve)[0], _multiplier(gmacs, base * ratios[1], *curve)[0]
            found.append(
                BlockComparison(
                    block=block,
                    baseline=baseline,
                    shape=str(place),
                    step=int(step),
                    gmacs=gmacs,
                    baseline_gmacs=float(cells.loc[cells["block"] == baseline, "gmacs"].iloc[0]),
                    metric=value,
                    baseline_metric=base,
                    seeds=len(sides.own),
                    baseline_seeds=len(sides.base),
                    seed_sd=sides.seed_sd,
                    pair_sd=sides.pair_sd,
                    multiplier=multiplier,
                    multiplier_interval=ends,
                    multiplier_note=note,
                    matched=_matched(gmacs, value, *curve),
                    interval=ratios,
                    verdict=judged.verdict,
                    reason=judged.reason,
                )
            )
    return sorted(found, key=lambda c: (c.baseline_gmacs, c.shape, c.step))


@dataclass(frozen=True)
class BlockSlope:
    """The power law's exponent of one block design over several shapes, and how it differs from the baseline's."""

    block: str
    baseline: str
    patch_size: int
    step: int
    models: int
    exponent: float
    exponent_t: Pair  #: 95 %, Student t
    difference: float  #: exponent minus the baseline's; positive where the block gains more from compute
    difference_t: Pair  #: 95 %, Student t, both lines fitted together
    verdict: str  #: "steeper", "shallower" (than the baseline), "inconclusive", or "baseline" for itself
    flags: tuple[str, ...]


def block_slopes(table: pd.DataFrame, metric: str = METRIC, baseline: str = BASELINE) -> list[BlockSlope]:
    """The slope of every block, where both it and the baseline have three shapes or more at a patch size and step.

    The lines of a block and of the baseline are fitted together (ln metric against ln compute, one noise level), which
    gives their difference an interval. Seeds are averaged first: shapes count, not seeds.

    Args:
        table: comparable rows; those without a positive metric are left out.
        metric: its column.
        baseline: the block to compare with.

    Returns:
        Slopes ordered by patch size, step and block, those of the baseline first.

    Raises:
        InputError: rows that were measured differently.
    """
    rows = without_other_recipes(table[(table[metric] > 0) & table["patch_size"].notna()], baseline)
    require_comparable(rows)
    rows = rows[[*SAME_PLACE, *SHAPE, *(["recipe"] if "recipe" in rows else []), "block", "gmacs", metric]]
    found = []
    cells: pd.DataFrame
    for _, cells in rows.groupby(["patch_size", "step", "batch_size"], dropna=False):
        blocks = per_shape(cells, metric).groupby("block")
        lines = {str(block): points for block, points in blocks if points["gmacs"].nunique() >= 3}
        if baseline not in lines or len(lines) < 2:
            continue
        for block in sorted(lines, key=lambda name: (name != baseline, name)):
            found.append(_block_slope(lines[block], lines[baseline], block, baseline, metric))
    return found


def _block_slope(own: pd.DataFrame, base: pd.DataFrame, block: str, baseline: str, metric: str) -> BlockSlope:
    from statsmodels.regression.linear_model import OLS

    both = own if block == baseline else pd.concat([own, base])
    is_base = np.zeros(len(own)) if block == baseline else np.repeat([0.0, 1.0], [len(own), len(base)])
    log_g = np.log(floats(both, "gmacs"))
    columns = [np.ones(len(both)), log_g] + ([is_base, is_base * log_g] if is_base.any() else [])
    model = OLS(np.log(floats(both, metric)), np.column_stack(columns)).fit()
    intervals = [(-high, -low) for low, high in map(pair, model.conf_int(alpha=0.05))]
    difference, ends = 0.0, (0.0, 0.0)
    if is_base.any():  # the coefficient of is_base * ln G: the baseline's slope minus the block's
        (low, high), difference = intervals[3], float(model.params[3])
        ends = -high, -low
    verdict = "steeper" if ends[0] > 0 else "shallower" if ends[1] < 0 else "inconclusive"
    return BlockSlope(
        block=block,
        baseline=baseline,
        patch_size=int(own["patch_size"].iloc[0]),
        step=int(own["step"].iloc[0]),
        models=len(own),
        exponent=float(-model.params[1]),
        exponent_t=intervals[1],
        difference=difference,
        difference_t=ends,
        verdict="baseline" if block == baseline else verdict,
        flags=range_flags(floats(own, "gmacs")),
    )


def _multiplier(gmacs: float, metric: float, curve_gmacs: Array, curve_metric: Array) -> tuple[float | None, str]:
    """The compute multiplier, or None and the reason why there is none."""
    try:
        return compute_multiplier(gmacs, metric, curve_gmacs, curve_metric), ""
    except ValueError as error:
        return None, str(error)


def _matched(gmacs: float, metric: float, curve_gmacs: Array, curve_metric: Array) -> float | None:
    """Metric over the baseline's at the same compute, log-log interpolated; None outside the baseline's range."""
    if len(curve_gmacs) < 2 or not (curve_metric > 0).all() or not curve_gmacs.min() <= gmacs <= curve_gmacs.max():
        return None
    order = np.argsort(curve_gmacs)
    there = np.interp(math.log(gmacs), np.log(curve_gmacs[order]), np.log(curve_metric[order]))
    return float(metric / np.exp(there))


def multiplier_ends(interval: tuple[float | None, float | None]) -> str:
    """The interval of a compute multiplier in words; an end that is None is beyond the baseline's models."""
    low, high = (None if end is None else f"{end:.2f}" for end in interval)
    if low is None and high is None:
        return "both ends beyond the models"
    return f"{low or 'beyond the models'} to {high or 'beyond the models'}"


def describe(comparison: BlockComparison, metric: str) -> str:
    """The comparison as one sentence."""
    name, base = block_name(comparison.block), block_name(comparison.baseline)
    values = f"{name} {comparison.metric:.4g} against {base} {comparison.baseline_metric:.4g}"
    text = f"{values} {metric} at {comparison.shape}"
    if comparison.multiplier is not None and comparison.conclusive:
        text += f", {comparison.multiplier:.2f} x the compute at which {base} gets there"
    if comparison.multiplier_interval is not None and comparison.conclusive:
        text += f" (95 %: {multiplier_ends(comparison.multiplier_interval)})"
    return f"{text}: {comparison.verdict} ({comparison.reason})"
