"""How often the intervals hold the truth, on made-up models with a known law: `python -m tests.analysis.coverage`.

Prints the table that stands in docs/analysis.md: 12 models at the paper's Gflops, parameters and tokens, log-normal
noise of 25 %, as the twelve published models scatter around their power law.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

from analysis.fit.bootstrap import bootstrap_exponent
from analysis.fit.common import Pair
from analysis.fit.floor import fit_floor
from analysis.fit.lines import fit_line
from analysis.fit.surface import fit_interaction

DRAWS = 1000
NOISE = 0.25
GMACS = np.array([0.36, 1.41, 6.06, 1.42, 5.56, 23.01, 5.01, 19.70, 80.71, 7.39, 29.05, 118.64])
PARAMS = np.repeat([33e6, 130e6, 458e6, 675e6], 3)
TOKENS = np.tile([64.0, 256.0, 1024.0], 4)


def coverage(draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Share of draws whose 95 % interval holds the true parameter.

    Args:
        draws: made-up tables.
        seed: of their noise.

    Returns:
        One row per form and interval: columns form, parameter, interval, coverage (0 to 1). The semi-log form has
        additive noise, the others noise of ln y; bootstrap refits are fewer than in a report, to save time.
    """
    rng = np.random.default_rng(seed)
    log_n, log_t = np.log(PARAMS), np.log(TOKENS)
    hits: dict[tuple[str, str, str], list[bool]] = {}

    def note(form: str, parameter: str, interval: str, pair: Pair, truth: float) -> None:
        hits.setdefault((form, parameter, interval), []).append(bool(pair[0] <= truth <= pair[1]))

    for draw in range(draws):
        noise = rng.normal(0, NOISE, len(GMACS))
        line = fit_line(GMACS, 126 - 23.6 * np.log(GMACS) + 40 * noise, "semi-log")
        y = 138 * GMACS**-0.365 * np.exp(noise)
        law = fit_line(GMACS, y, "power law")
        for name, fit, truth in (("semi-log", line, -23.6), ("power law", law, -0.365)):
            for kind, pair in (("t", fit.slope_t), ("HC3", fit.slope_hc3), ("wild bootstrap", fit.slope_wild)):
                note(name, "slope", kind, pair, truth)
        rows = pd.DataFrame({"gmacs": GMACS, "frechet": y, "block": "made-up", "size": range(12)})
        rows = rows.assign(patch_size=1, step=1, seed=0)
        note(
            "power law", "slope", "pairs bootstrap", bootstrap_exponent(rows, resamples=999, seed=draw).interval, 0.365
        )
        new = float(np.exp(rng.normal(0, NOISE)) * 138 * 300**-0.365)
        band = law.predict(np.array([300.0]))
        note("power law", "a new model of 300 Gflops", "prediction", (band["low"][0], band["high"][0]), new)
        y = 4e4 * np.exp(-0.05 * log_n - 0.05 * log_t - 0.02 * log_n * log_t + noise)
        surface = fit_interaction(PARAMS, TOKENS, y)
        for kind, pairs in (
            ("t", surface.intervals),
            ("HC3", surface.intervals_hc3),
            ("wild bootstrap", surface.intervals_wild),
        ):
            note("params and tokens", "ln N ln T", kind, pairs[3], -0.02)
        curve = fit_floor(GMACS, 138 * GMACS**-0.6 * np.exp(noise / 2.5) + 10, resamples=199)
        name = "power law with floor"
        note(name, "floor", "likelihood ratio", curve.floor_interval, 10)
        note(name, "floor", "wild bootstrap", curve.floor_wild, 10)
        for kind, pair in (
            ("t", curve.exponent_t),
            ("HC3", curve.exponent_hc3),
            ("wild bootstrap", curve.exponent_wild),
        ):
            note(name, "exponent", kind, pair, 0.6)
    return pd.DataFrame(
        [(*key, float(np.mean(found))) for key, found in hits.items()],
        columns=["form", "parameter", "interval", "coverage"],
    )


def main() -> None:
    """Print the table in Markdown; the number of draws may be given."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else DRAWS
    table = coverage(draws).sort_values(["form", "parameter"], kind="stable")
    print(f"| form | parameter | 95 % interval | coverage, {draws:,} draws |\n|---|---|---|---|")
    for row in table.itertuples():
        print(f"| {row.form} | {row.parameter} | {row.interval} | {row.coverage:.1%} |")


if __name__ == "__main__":
    main()
