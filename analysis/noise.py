"""Is it real? How far a value moves when a model is trained again, and when one network is sampled again.

The values are ln of a distance or loss, so a standard deviation of 0.01 is a coefficient of variation of 1 %. The seeds
of a study are crossed: trainings of two models share the draws of one seed, samplings of two networks the noise of one
sampling seed. So y = model + training + sampling seed + what is left, and components are sums and differences of mean
squares (`analysis.mean_squares`); tables with gaps are split by unweighted means (Burdick & Graybill 1992).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.fit.common import Array, CannotFitError, Pair
from analysis.mean_squares import Codes, Term, effective_freedom, large_sample_interval, split


@dataclass(frozen=True)
class Component:
    """A standard deviation of ln of a value."""

    sd: float
    interval: Pair  #: 95 %, cut at 0
    freedom: float  #: degrees of freedom


@dataclass(frozen=True)
class Noise:
    """What chance does to a value."""

    models: int
    trainings: int  #: of the model that has most
    samplings: int  #: of the training that has most
    mean: float  #: geometric, of the models' means
    training: Component | None  #: between trainings of a model; None: none was trained twice
    sampling: Component | None  #: between samplings of a network, without `shared`; None: none was sampled twice
    shared: Component | None  #: what a sampling seed does to all trainings alike; None: they share none

    @property
    def mixed(self) -> bool:
        """Whether the component of the trainings has that of one sampling in it: there was one each."""
        return self.training is not None and self.sampling is None

    def sd(self, samplings: int = 1) -> float:
        """Standard deviation between trainings that are sampled so often with the same seeds, each a mean of samplings.

        Raises:
            CannotFitError: no model was trained twice.
        """
        if self.training is None:
            raise CannotFitError("no model was trained twice")
        within = 0.0 if self.sampling is None else self.sampling.sd
        return math.sqrt(self.training.sd**2 + within**2 / samplings)


def noise_of(values: Array, model: Codes, training: Codes, sampling: Codes) -> Noise:
    """The components of noise in values of one or several models.

    Several models are taken together: the trainings of all of them have one standard deviation in ln, as the literature
    finds at every size (Dufour et al. 2026, arXiv:2606.20536).

    Args:
        values: of a distance or loss, above 0; shape [n].
        model: of each value, as a number 0, 1, ...; shape [n].
        training: likewise; equal numbers of two models are trainings that share their draws.
        sampling: likewise; equal numbers of two trainings are samplings that share their noise.

    Raises:
        CannotFitError: a value has no logarithm, or nothing was repeated.
    """
    if not (np.isfinite(values) & (values > 0)).all():
        raise CannotFitError("a value is missing or not positive, so it has no logarithm")
    runs, run = np.unique(np.stack([model, training]), axis=1, return_inverse=True)
    run = run.ravel()
    own, again = runs
    sampled = split(np.log(values), run, sampling)
    trained = split(sampled.means, own, again)
    if not sampled.within and not trained.within:
        raise CannotFitError("nothing was repeated: every model has one training, and every training one sampling")
    terms = trained.within
    if terms and sampled.error is not None:
        share = sampled.error_share(own)
        terms = (*terms, Term(-share, sampled.error.square, sampled.error.freedom))
    return Noise(
        models=len(trained.means),
        trainings=int(trained.counts.max()),
        samplings=int(sampled.counts.max()),
        mean=float(np.exp(trained.means.mean())),
        training=_component(terms),
        sampling=_component((Term(1.0, error.square, error.freedom),) if (error := sampled.error) else ()),
        shared=_component(sampled.shared),
    )


def _component(terms: tuple[Term, ...]) -> Component | None:
    if not terms:
        return None
    low, high = large_sample_interval(terms)
    variance = max(0.0, sum(term.value for term in terms))
    return Component(math.sqrt(variance), (math.sqrt(low), math.sqrt(high)), effective_freedom(terms))
