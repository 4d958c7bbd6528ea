"""Compare conditioning blocks at the same shape, and shapes at the same compute, claiming no more than seeds show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.fit import FEW_POINTS, NARROW_RANGE, Array
from analysis.slices import per_shape, require_repeats
from analysis.table import METRIC, block_name, require_comparable

BASELINE = "adaln-zero"

_SHAPE = ["depth", "width", "patch_size", "batch_size", "step"]


@dataclass(frozen=True)
class BlockComparison:
    """One block design against the baseline at one shape, training step and batch size; lower metrics are better."""

    block: str
    baseline: str
    shape: str  #: "XL/2": size and patch size
    step: int
    gmacs: float  #: of the block's own model
    metric: float  #: mean over training seeds
    baseline_metric: float
    seeds: int
    baseline_seeds: int
    interval: tuple[float, float] | None  #: 95 % of the difference; None where seeds are too few to give one
    multiplier: float | None  #: compute multiplier of the baseline, see `compute_multiplier`
    multiplier_interval: tuple[float | None, float | None] | None  #: 95 %, from `interval`; None: beyond the baseline
    multiplier_note: str  #: why there is none
    matched: float | None  #: metric over the baseline's at the block's own compute (interpolated); None without
    verdict: str  #: "better", "worse" (than the baseline) or "inconclusive"
    reason: str

    @property
    def difference(self) -> float:
        """Block minus baseline, in the unit of the metric: positive where the baseline is better."""
        return self.metric - self.baseline_metric

    def rows_of(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table at this comparison's shape and step, of every block."""
        shape = table["size"] + "/" + table["patch_size"].astype(str)
        return table[(shape == self.shape) & (table["step"] == self.step)]


def compute_multiplier(gmacs: float, metric: float, curve_gmacs: Array, curve_metric: Array) -> float:
    """A design's own compute over the compute at which the baseline reaches the same metric.

    Args:
        gmacs: compute of the design.
        metric: what it reaches.
        curve_gmacs: compute of the baseline's models, shape [n], of one patch size.
        curve_metric: what they reach, shape [n]; interpolated log-log between neighbours.

    Returns:
        Above 1: the baseline needs less compute.

    Raises:
        ValueError: fewer than two baseline models, a baseline that does not improve with compute, or a metric outside
            what the baseline's models reach (no extrapolation).
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
    """Every block design against the baseline, wherever both have the same shape, batch size and training step.

    With two or more training seeds on both sides the difference has a Welch 95 % interval (sampling seeds of a run
    are averaged first), and the verdict follows from it. With one seed the verdict is "inconclusive".

    Args:
        table: comparable rows; those without the metric are left out.
        metric: its column; lower is better.
        baseline: the block to compare with.
        seed_sigma: known standard deviation of ln(metric) between training seeds, from elsewhere. Where seeds are too
            few, it stands in for them, and the reason says so.

    Returns:
        Comparisons ordered by shape, step and metric; empty where the table holds one block only.

    Raises:
        InputError: rows that were measured differently.
    """
    rows = table[table[metric].notna()]
    require_comparable(rows)
    require_repeats(rows, [*_SHAPE, "block"])
    rows = rows[[*_SHAPE, "block", "size", "gmacs", "seed", metric]]  # rows of a whole table are slow to take
    found = []
    cells: pd.DataFrame
    for _, cells in rows.groupby(_SHAPE, dropna=False, sort=True):
        _, _, patch, batch, step = (cells[column].iloc[0] for column in _SHAPE)
        runs = {str(block): _per_seed(group, metric) for block, group in cells.groupby("block")}
        if baseline not in runs:
            continue
        curve = rows[(rows["block"] == baseline) & (rows["patch_size"] == patch) & (rows["step"] == step)]
        curve = curve[(curve["batch_size"] == batch) | curve["batch_size"].isna()]
        known = curve.groupby("gmacs")[metric].mean()
        for block in sorted(set(runs) - {baseline}, key=lambda name: float(runs[name].mean())):
            own = cells[cells["block"] == block].iloc[0]
            verdict, reason, interval = _verdict(runs[block], runs[baseline], seed_sigma)
            curve_g, curve_m = known.index.to_numpy(float), known.to_numpy(float)
            multiplier, note = None, ""
            try:
                multiplier = compute_multiplier(float(own["gmacs"]), float(runs[block].mean()), curve_g, curve_m)
            except ValueError as error:
                note = str(error)
            ends = None
            if interval is not None and multiplier is not None:
                low, high = (float(runs[baseline].mean()) + end for end in interval)
                ends = tuple(_multiplier_or_none(float(own["gmacs"]), end, curve_g, curve_m) for end in (low, high))
            found.append(
                BlockComparison(
                    block=block,
                    baseline=baseline,
                    shape=f"{own['size']}/{patch}",
                    step=int(step),
                    gmacs=float(own["gmacs"]),
                    metric=float(runs[block].mean()),
                    baseline_metric=float(runs[baseline].mean()),
                    seeds=len(runs[block]),
                    baseline_seeds=len(runs[baseline]),
                    interval=interval,
                    multiplier=multiplier,
                    multiplier_interval=ends,  # type: ignore[arg-type]
                    multiplier_note=note,
                    matched=_matched(float(own["gmacs"]), float(runs[block].mean()), curve_g, curve_m),
                    verdict=verdict,
                    reason=reason,
                )
            )
    return found


@dataclass(frozen=True)
class ComputePair:
    """Two shapes of about the same compute, and how far their metrics are apart."""

    better: str
    worse: str
    gmacs: tuple[float, float]  #: of the better and the worse
    metrics: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Worse metric over better metric; 1 where equal compute buys an equal metric."""
        return self.metrics[1] / self.metrics[0]


def equal_compute_pairs(table: pd.DataFrame, metric: str = METRIC, within: float = 0.25) -> list[ComputePair]:
    """Pairs of models whose compute differs by less than `within`: does equal compute buy an equal metric?

    Args:
        table: comparable rows, one per model (`analysis.table.per_shape`), of one block and step, metric > 0.
        metric: its column; lower is better.
        within: largest relative difference in compute.

    Returns:
        Pairs ordered by the ratio of their metrics, largest first.

    Raises:
        InputError: rows that were measured differently.
    """
    require_comparable(table)
    pairs = []
    for one, other in combinations(table.to_dict("records"), 2):
        if abs(math.log(one["gmacs"] / other["gmacs"])) < math.log(1 + within) and min(one[metric], other[metric]) > 0:
            good, bad = sorted((one, other), key=lambda row: float(row[metric]))
            pairs.append(
                ComputePair(
                    better=f"{good['size']}/{good['patch_size']}",
                    worse=f"{bad['size']}/{bad['patch_size']}",
                    gmacs=(float(good["gmacs"]), float(bad["gmacs"])),
                    metrics=(float(good[metric]), float(bad[metric])),
                )
            )
    return sorted(pairs, key=lambda pair: (-pair.ratio, pair.better, pair.worse))


@dataclass(frozen=True)
class BlockSlope:
    """The power law's exponent of one block design over several shapes, and how it differs from the baseline's."""

    block: str
    baseline: str
    patch_size: int
    step: int
    models: int
    exponent: float
    exponent_t: tuple[float, float]  #: 95 %, Student t
    difference: float  #: exponent minus the baseline's; positive where the block gains more from compute
    difference_t: tuple[float, float]  #: 95 %, Student t, both lines fitted together
    verdict: str  #: "steeper", "shallower" (than the baseline), "inconclusive", or "baseline" for itself
    flags: tuple[str, ...]


def block_slopes(table: pd.DataFrame, metric: str = METRIC, baseline: str = BASELINE) -> list[BlockSlope]:
    """The slope of every block that has three shapes or more at a patch size and step where the baseline has them too.

    The lines of a block and of the baseline are fitted together (ln metric against ln compute, one noise level), so
    that their difference has an interval. Seeds are averaged first: shapes count, not seeds.

    Args:
        table: comparable rows; those without a positive metric are left out.
        metric: its column.
        baseline: the block to compare with.

    Returns:
        Slopes ordered by patch size, step and block, those of the baseline first.

    Raises:
        InputError: rows that were measured differently.
    """
    rows = table[table[metric] > 0]
    require_comparable(rows)
    rows = rows[[*_SHAPE, *(["recipe"] if "recipe" in rows else []), "block", "gmacs", metric]]
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
    log_g, log_m = np.log(both["gmacs"].to_numpy(float)), np.log(both[metric].to_numpy(float))
    columns = [np.ones(len(both)), log_g] + ([is_base, is_base * log_g] if is_base.any() else [])
    model = OLS(log_m, np.column_stack(columns)).fit()
    intervals = -model.conf_int(alpha=0.05)[:, ::-1]
    ratio = float(own["gmacs"].max() / own["gmacs"].min())
    flags = [f"few points: {len(own)}"] if len(own) < FEW_POINTS else []
    flags += [f"narrow range: compute varies by a factor of {ratio:.3g} only"] if ratio < NARROW_RANGE else []
    difference, ends = 0.0, (0.0, 0.0)
    if is_base.any():  # the coefficient of is_base * ln G: the baseline's slope minus the block's
        difference, ends = float(model.params[3]), (float(-intervals[3][1]), float(-intervals[3][0]))
    verdict = "steeper" if ends[0] > 0 else "shallower" if ends[1] < 0 else "inconclusive"
    verdict = "baseline" if block == baseline else verdict
    return BlockSlope(
        block=block,
        baseline=baseline,
        patch_size=int(own["patch_size"].iloc[0]),
        step=int(own["step"].iloc[0]),
        models=len(own),
        exponent=float(-model.params[1]),
        exponent_t=(float(intervals[1][0]), float(intervals[1][1])),
        difference=difference,
        difference_t=ends,
        verdict=verdict,
        flags=tuple(flags),
    )


def _multiplier_or_none(gmacs: float, metric: float, curve_gmacs: Array, curve_metric: Array) -> float | None:
    try:
        return compute_multiplier(gmacs, metric, curve_gmacs, curve_metric)
    except ValueError:
        return None


def _matched(gmacs: float, metric: float, curve_gmacs: Array, curve_metric: Array) -> float | None:
    """Metric over the baseline's at the same compute, log-log interpolated; None outside its models' compute."""
    if len(curve_gmacs) < 2 or not (curve_metric > 0).all() or not curve_gmacs.min() <= gmacs <= curve_gmacs.max():
        return None
    order = np.argsort(curve_gmacs)
    there = np.interp(math.log(gmacs), np.log(curve_gmacs[order]), np.log(curve_metric[order]))
    return float(metric / np.exp(there))


def _per_seed(cells: pd.DataFrame, metric: str) -> Array:
    """One value per training seed, its sampling seeds averaged; shape [seeds]."""
    return np.asarray(cells.groupby("seed", dropna=False)[metric].mean().to_numpy(float))


def _verdict(own: Array, base: Array, seed_sigma: float | None) -> tuple[str, str, tuple[float, float] | None]:
    from scipy import stats

    difference = float(own.mean() - base.mean())
    if len(own) >= 2 and len(base) >= 2:
        if np.ptp(own) == 0 and np.ptp(base) == 0:
            return "inconclusive", "the seeds agree exactly, so they say nothing about noise", None
        test = stats.ttest_ind(own, base, equal_var=False)
        low, high = test.confidence_interval(0.95)
        interval, how = (float(low), float(high)), f"Welch interval over {len(own)} and {len(base)} seeds"
    elif seed_sigma is not None:
        wide = 1.96 * seed_sigma * math.hypot(own.mean() / math.sqrt(len(own)), base.mean() / math.sqrt(len(base)))
        interval, how = (difference - wide, difference + wide), f"assumed seed deviation {seed_sigma:.3g} of the log"
    else:
        fewest = min(len(own), len(base))
        reason = f"{fewest} training seed{'s' * (fewest != 1)} on a side: the difference cannot be told from seed noise"
        return "inconclusive", reason, None
    if interval[0] <= 0 <= interval[1]:
        return "inconclusive", f"the interval of the difference includes 0 ({how})", interval
    return ("worse" if difference > 0 else "better"), how, interval


def describe(comparison: BlockComparison, metric: str) -> str:
    """The comparison as one sentence."""
    name, base = block_name(comparison.block), block_name(comparison.baseline)
    text = (
        f"{name} {comparison.metric:.4g} against {base} {comparison.baseline_metric:.4g} {metric} at {comparison.shape}"
    )
    if comparison.multiplier is not None:
        text += f", {comparison.multiplier:.2f} x the compute at which {base} gets there"
        if comparison.multiplier_interval is not None:
            low, high = ("beyond its models" if end is None else f"{end:.2f}" for end in comparison.multiplier_interval)
            text += f" (95 %: {low} to {high})"
    return f"{text}: {comparison.verdict} ({comparison.reason})"
