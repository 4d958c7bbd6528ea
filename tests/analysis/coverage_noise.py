"""How well the noise is found, on made-up tables of known noise: `python -m tests.analysis.coverage_noise`.

Prints the tables that stand in docs/analysis.md: how often the 95 % intervals of the components hold the truth, and
how often a test finds the gap that trainings are said to show with probability 0.8.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np

from analysis.fit.common import Array
from analysis.mean_squares import Codes
from analysis.noise import noise_of
from analysis.power import smallest_gap

DRAWS = 1000


@dataclass(frozen=True)
class Truth:
    """Standard deviations of ln of a value: of a training (shared by the models of a seed, and not), and of a sampling.

    The defaults are near those of SiT-B/2 (Dufour et al. 2026).
    """

    shared: float = 0.0
    training: float = 0.0126
    noise: float = 0.0  #: of a sampling seed, shared by all trainings
    sampling: float = 0.004

    @property
    def between(self) -> float:
        """Between trainings of a model."""
        return math.hypot(self.shared, self.training)


@dataclass(frozen=True)
class Design:
    """How often each training of each model is sampled."""

    counts: tuple[int, ...]
    models: int = 1
    truth: Truth = Truth()
    nested: bool = False  #: every training has sampling seeds of its own

    def codes(self) -> tuple[Codes, Codes, Codes]:
        """Model, training and sampling of every value."""
        rows = [
            (model, training, sampling)
            for model in range(self.models)
            for training, count in enumerate(self.counts)
            for sampling in range(count)
        ]
        model, training, sampling = np.array(rows).T
        if self.nested:
            sampling = np.arange(len(rows))
        return model, training, sampling

    def draw(self, rng: np.random.Generator) -> Array:
        """Values of a made-up table."""
        (model, training, sampling), truth = self.codes(), self.truth
        shared, noise = rng.normal(0, truth.shared, training.max() + 1), rng.normal(0, truth.noise, sampling.max() + 1)
        own = rng.normal(0, truth.training, (self.models, training.max() + 1))
        y = shared[training] + own[model, training] + noise[sampling] + rng.normal(0, truth.sampling, len(model))
        return np.asarray(np.exp(np.log(30) + 0.3 * model + y))


SOME = Truth(training=0.01, sampling=0.01)
CROSSED = Truth(training=0.01, noise=0.006, sampling=0.006)
GAPS = (4, 3, 3, 2, 1, 1)
DESIGNS = {
    "5 trainings, 4 samplings each": Design((4,) * 5),
    "3 trainings, 2 samplings each": Design((2,) * 3),
    "4, 3, 3, 2, 1 and 1 samplings": Design(GAPS),
    "5 x 4, samplings as loud as trainings": Design((4,) * 5, truth=SOME),
    "3 x 2, samplings as loud": Design((2,) * 3, truth=SOME),
    "4, 3, 3, 2, 1, 1, samplings as loud": Design(GAPS, truth=SOME),
    "5 x 4, noise shared at a sampling seed": Design((4,) * 5, truth=CROSSED),
    "3 x 2, shared noise": Design((2,) * 3, truth=CROSSED),
    "4, 3, 3, 2, 1, 1, shared noise": Design(GAPS, truth=CROSSED),
    "5 x 4, sampling seeds of their own": Design((4,) * 5, nested=True),
    "4, 3, 3, 2, 1, 1, sampling seeds of their own": Design(GAPS, truth=SOME, nested=True),
    "4 models, each 3 x 2": Design((2,) * 3, models=4),
    "4 models, each 3 x 2, draws shared at a seed": Design((2,) * 3, 4, Truth(shared=0.01, training=0.008)),
}


def coverage(design: Design, draws: int, seed: int = 0) -> dict[str, float]:
    """Share of draws whose 95 % interval holds the truth, by component; those that are 0 or not known are left out."""
    rng, codes, truth = np.random.default_rng(seed), design.codes(), design.truth
    known = {"training": truth.between, "sampling": truth.sampling, "shared": truth.noise}
    hits: dict[str, list[bool]] = {name: [] for name, sd in known.items() if sd}
    for _ in range(draws):
        found = noise_of(design.draw(rng), *codes)
        for name, held in hits.items():
            low, high = getattr(found, name).interval
            held.append(bool(low <= known[name] <= high))
    return {name: float(np.mean(held)) for name, held in hits.items()}


def power(trainings: int, samplings: int, draws: int, paired: bool = False, seed: int = 0) -> float:
    """How often a t test at 5 % finds the smallest gap that so many trainings are said to show."""
    from scipy import stats

    truth, rng = Truth(), np.random.default_rng(seed)
    shared = 0.01 if paired else 0.0
    sd = math.hypot(truth.training, truth.sampling / math.sqrt(samplings))
    gap = smallest_gap(sd * math.sqrt(2) if paired else sd, trainings, paired)
    seeds = rng.normal(0, shared, (draws, 1, trainings, 1))
    values = rng.normal(0, truth.training, (draws, 2, trainings, 1)) + seeds
    means = (values + rng.normal(0, truth.sampling, (draws, 2, trainings, samplings))).mean(axis=-1)
    own, base = means[:, 0] + gap, means[:, 1]
    found = stats.ttest_rel(own, base, axis=-1) if paired else stats.ttest_ind(own, base, axis=-1)
    return float(np.mean(np.asarray(found.pvalue) < 0.05))


def main() -> None:
    """Print both tables in Markdown; the number of draws may be given."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else DRAWS
    print(f"| held by 95 % intervals in {draws:,} draws | training | sampling | sampling, shared |\n|---|---|---|---|")
    for name, design in DESIGNS.items():
        found = coverage(design, draws)
        cells = (f"{found[part]:.1%}" if part in found else "" for part in ("training", "sampling", "shared"))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\n| trainings x samplings | a gap of power 0.8 is found, not paired | paired |\n|---|---|---|")
    for trainings, samplings in ((2, 1), (3, 2), (5, 4), (12, 4)):
        shares = [power(trainings, samplings, 10 * draws, paired) for paired in (False, True)]
        print(f"| {trainings} x {samplings} | {shares[0]:.1%} | {shares[1]:.1%} |")


if __name__ == "__main__":
    main()
