"""How well laws of size and data are found, on made-up runs with a known law: `python -m tests.analysis.coverage_laws`.

Prints the tables that stand in docs/analysis.md: how often the 95 % intervals of the parametric form hold the truth,
and by how much the best size's exponent is off, by each of the three approaches. The truth is the law of Besiroglu et
al. (2024, arXiv:2404.10102).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.fit.common import Array, CannotFitError
from analysis.laws.approaches import Approach, envelope, parabolas
from analysis.laws.law import Law
from analysis.laws.parametric import fit_law
from analysis.laws.runs import Runs, separate_runs

TRUTH = Law(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)
EXACT = TRUTH.size_exponent
MIDDLE = 1.3e20  # operations, the middle of the budgets
DRAWS = 200
NOISE = 0.005  # of ln loss


def isoflop_runs(sizes: int = 27, low: float = 1 / 5, high: float = 5.0, budgets: int = 9) -> Runs:
    """Separate runs at some budgets, their sizes from `low` to `high` times the best one; losses without noise."""
    compute = np.repeat(np.geomspace(6e18, 3e21, budgets), sizes)
    size = TRUTH.best_size(compute) * np.tile(np.geomspace(low, high, sizes), budgets)
    data = compute / 6 / size
    return separate_runs(size, data, TRUTH.predict(size, data))


def checkpoint_runs(models: int = 12, checkpoints: int = 5) -> Runs:
    """Models of several sizes, each with checkpoints at the same amounts of data; losses without noise."""
    size = np.repeat(np.geomspace(5e7, 1e10, models), checkpoints)
    data = np.tile(np.geomspace(1e9, 1e11, checkpoints), models)
    return replace(
        separate_runs(size, data, TRUTH.predict(size, data)), model=np.repeat(np.arange(models), checkpoints)
    )


def noisy(runs: Runs, rng: np.random.Generator, own: float = 1.0, shared: float = 0.0, noise: float = NOISE) -> Runs:
    """The runs with noise of their own, and with noise that all runs of a model share, in units of `noise`."""
    _, model = np.unique(runs.model, return_inverse=True)
    off = own * rng.normal(0, noise, len(model)) + shared * rng.normal(0, noise, model.max() + 1)[model]
    return replace(runs, loss=runs.loss * np.exp(off))


#: Designs: runs without noise, delta of the fit (None: its own), noise that the runs of a model share.
DESIGNS: dict[str, tuple[Callable[[], Runs], float | None, float]] = {
    "240 runs of a table, delta 0.001": (lambda: isoflop_runs(27).where(np.arange(243) < 240), 1e-3, 0.0),
    "48 runs, 8 sizes at 6 budgets": (lambda: isoflop_runs(8, budgets=6), None, 0.0),
    "12 models, 5 checkpoints each": (checkpoint_runs, None, 0.0),
    "the same, noise shared by a model": (checkpoint_runs, None, 1.0),
    "6 models, 5 checkpoints each": (lambda: checkpoint_runs(6), None, 0.0),
}


def coverage(design: str, draws: int, resamples: int = 300, seed: int = 0) -> dict[str, float]:
    """Share of draws whose 95 % interval holds the truth, by constant; a draw that cannot be fitted is an error."""
    make, delta, shared = DESIGNS[design]
    runs, rng = make(), np.random.default_rng(seed)
    truth = {"E": TRUTH.E, "alpha": TRUTH.alpha, "beta": TRUTH.beta, "size exponent": EXACT}
    hits: dict[str, list[bool]] = {name: [] for name in truth}
    for _ in range(draws):
        found = fit_law(noisy(runs, rng, shared=shared), delta=delta, resamples=resamples).intervals
        for name, value in truth.items():
            hits[name].append(bool(found[name][0] <= value <= found[name][1]))
    return {name: float(np.mean(held)) for name, held in hits.items()}


#: Sizes for the bias, the same at every budget: the best one goes from 2e8 to 4e9 over the budgets.
CHOICES = {
    "16 sizes, 5e7 to 2e10": np.geomspace(5e7, 2e10, 16),
    "8 sizes, 5e7 to 2e10": np.geomspace(5e7, 2e10, 8),
    "8 sizes, 2e6 to 5e11: wide": np.geomspace(2e6, 5e11, 8),
    "8 sizes, 1.5e8 to 5e11: lopsided": np.geomspace(1.5e8, 5e11, 8),
}


def curves(sizes: Array) -> Runs:
    """Models with 12 checkpoints each, between the budgets 6e18 and 3e21; losses without noise."""
    size, compute = np.repeat(sizes, 12), np.tile(np.geomspace(6e18, 3e21, 12), len(sizes))
    data = compute / 6 / size
    return replace(separate_runs(size, data, TRUTH.predict(size, data)), model=np.repeat(np.arange(len(sizes)), 12))


def bias(draws: int, seed: int = 0) -> pd.DataFrame:
    """Mean error of the best size's exponent, by choice of sizes and noise: of each approach."""
    rows = []
    for name, sizes in CHOICES.items():
        runs, rng = curves(sizes), np.random.default_rng(seed)
        for noise, count in ((0.0, 1), (NOISE, draws)):
            tables = [noisy(runs, rng, noise=noise) for _ in range(count)]
            for way in (envelope, parabolas):
                rows.append((name, noise, way.__name__, *_told([_line(way, table) for table in tables])))
            laws = [fit_law(table, delta=max(noise, 1e-3), resamples=0).law for table in tables]
            found = [(law.size_exponent, float(law.best_size(np.array(MIDDLE)))) for law in laws]
            rows.append((name, noise, "parametric", *_told(found)))
    return pd.DataFrame(rows, columns=["sizes", "noise", "approach", "bias", "sd", "level", "found"])


def _line(way: Callable[..., Approach], runs: Runs) -> tuple[float, float] | None:
    """The exponent, and the best size for the middle budget; None where there is no line."""
    try:
        found = way(runs, resamples=0)
    except CannotFitError:
        return None
    size = found.best_size(MIDDLE)
    return None if found.size_exponent is None or size is None else (found.size_exponent, float(size))


def _told(found: Sequence[tuple[float, float] | None]) -> tuple[float, float, float, float]:
    """Bias and standard deviation of the exponent, mean error of ln best size, and share of tables with a line."""
    known = np.array([line for line in found if line is not None]).reshape(-1, 2)
    if not len(known):
        return float("nan"), float("nan"), float("nan"), 0.0
    level = float(np.mean(np.log(known[:, 1] / TRUTH.best_size(np.array(MIDDLE)))))
    return float(known[:, 0].mean()) - EXACT, float(known[:, 0].std()), level, len(known) / len(found)


def main() -> None:
    """Print both tables in Markdown; the number of draws may be given."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else DRAWS
    print(f"| held by 95 % intervals in {draws} draws | E | alpha | beta | size exponent |\n|---|---|---|---|---|")
    for design in DESIGNS:
        found = coverage(design, draws)
        print(f"| {design} | {' | '.join(f'{share:.1%}' for share in found.values())} |", flush=True)
    print("\n| sizes | noise | approach | bias of the exponent | SD | bias of the size | found |")
    print("|---|---|---|---|---|---|---|")
    for row in bias(draws // 4).itertuples():
        line = f"{row.bias:+.4f} | {row.sd:.4f} | {row.level:+.1%}" if row.found else "none | |"
        print(f"| {row.sizes} | {row.noise:.1%} | {row.approach} | {line} | {row.found:.0%} |")


if __name__ == "__main__":
    main()
