"""The objective: what a network learns. Each has a spec with the fields of its own."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import lru_cache
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PlainValidator, SerializeAsAny

from harness.spec.identity import Spec, spec_of_kind
from harness.spec.kinds import Kind


class ObjectiveFacts(NamedTuple):
    """Where the code of an objective is, and what must be known about it before torch is imported.

    Attributes:
        at: its class, a `harness.diffusion.objective.Objective`.
        samplers: names of its samplers.
        outputs: values that the network predicts for each value of its input.
        discrete: time has `timesteps` steps, and sampling takes at most as many; else time is continuous.
        passes: forward passes in a step of its samplers, by name; those left out make one.
        formats: formats of other programs that hold weights trained for it, see `harness.evaluation.export`.
    """

    at: str
    samplers: Collection[str]
    outputs: int = 1
    discrete: bool = False
    passes: Mapping[str, int] = MappingProxyType({})
    formats: Collection[str] = ()


OBJECTIVES = Kind(
    "OBJECTIVES",
    {
        "ddpm-hybrid": ObjectiveFacts(
            "harness.diffusion.ddpm:DdpmHybrid",
            ("ddpm", "ddim", "ddim-clip"),
            outputs=2,
            discrete=True,
            formats=("official", "diffusers"),
        ),
        "flow": ObjectiveFacts(
            "harness.diffusion.flow:Flow",
            ("euler", "heun", "sde"),
            outputs=2,
            passes={"heun": 2},
            formats=("official",),
        ),
    },
)


#: Bins of time of the measured error, equally wide from clean to noise.
LOSS_BINS = 8

#: Most timesteps: the network reads a step as a float32, which tells this many apart with room to spare.
_MOST_TIMESTEPS = 1_000_000

#: Nearest to 0 and 1 that a beta, or what a sampling step leaves of the signal, may be: float64 still has four digits
#: of its distance from 1.
_MARGIN = 1e-12

#: Least share of signal variance at the last step: samplers divide by its square root, in float32.
_LEAST_SIGNAL = 1e-60


def respaced_steps(timesteps: int, steps: int) -> list[int]:
    """The timesteps that a sampler of `steps` steps visits, ascending: evenly from the first to the last.

    The stride (T - 1) / (steps - 1) is added up in floats and rounded, ties to the even step, as in the published code:
    its rounding errors decide some ties, so i * stride gives other steps. A single step is the last, all noise.
    """
    if steps == 1:
        return [timesteps - 1]
    stride = (timesteps - 1) / (steps - 1)
    return [round(position) for position in accumulate([0.0] + [stride] * (steps - 1))]


@lru_cache(maxsize=4)
def _log_signal(timesteps: int, beta_start: float, beta_end: float) -> tuple[float, ...]:
    """Log of alpha_bar, the share of signal variance left, after every step of the linear schedule."""
    slope = (beta_end - beta_start) / (timesteps - 1)
    return tuple(accumulate(math.log1p(-beta_start - slope * t) for t in range(timesteps)))


class DiffusionSpec(Spec):
    """Base of every objective's spec."""

    objective: Annotated[str, OBJECTIVES] = Field(
        default="ddpm-hybrid",
        description="what is learned; it decides the other fields. ddpm-hybrid: noise MSE plus the variational term "
        "that trains the learned variance; flow: velocity MSE on a straight path (SiT)",
    )

    @property
    def outputs(self) -> int:
        """Values that the network predicts for each value of its input."""
        return self._facts.outputs

    @property
    def label(self) -> str:
        """The objective in a table."""
        return str(OBJECTIVES.identity(self.objective))

    @property
    def in_columns(self) -> frozenset[str]:
        """Fields that the label shows."""
        return frozenset({"objective"})

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of its samplers."""
        return tuple(self._facts.samplers)

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of other programs that hold weights trained for it."""
        return tuple(self._facts.formats)

    def sampling_passes(self, sampler: str, steps: int, guidance: float = 1.0) -> int:
        """Forward passes of the network for one sample; guidance doubles them."""
        return steps * self._facts.passes.get(sampler, 1) * (2 if guidance != 1 else 1)

    def check_training(self) -> None:
        """Check what training and its measured losses need.

        Raises:
            ValueError: it is not there; one line that begins with the field and says what is allowed.
        """

    def check_sampling(self, sampler: str, steps: int) -> None:
        """Check that the objective has this sampler and allows this number of sampling steps.

        Raises:
            ValueError: it does not; one line that begins with the field and says what is allowed.
        """
        if sampler not in self.samplers:
            raise ValueError(
                f"sampler: unknown sampler {sampler!r} for objective {self.objective}; "
                f"allowed: {', '.join(self.samplers)}"
            )

    @property
    def _facts(self) -> ObjectiveFacts:
        return OBJECTIVES.facts(self.objective)


class Flow(DiffusionSpec):
    """A straight path between image and noise (SiT, Ma et al. 2024); time is continuous."""

    time_distribution: Literal["uniform", "logit-normal"] = Field(
        default="uniform",
        description="how times are drawn in training; logit-normal: of mean 0 and scale 1 (Esser et al. 2024), seldom "
        "near image and noise",
    )

    @property
    def label(self) -> str:
        """The objective, and times that are not uniform."""
        default = type(self).model_fields["time_distribution"].default
        return self.objective if self.time_distribution == default else f"{self.objective}, {self.time_distribution}"

    @property
    def in_columns(self) -> frozenset[str]:
        """All fields."""
        return frozenset(type(self).model_fields)


class Diffusion(DiffusionSpec):
    """A forward process of steps (paper, section 3.1; Nichol & Dhariwal 2021 for the hybrid loss)."""

    schedule: Literal["linear"] = Field(
        default="linear", description="how beta, the variance of the added noise, goes from beta_start to beta_end"
    )
    timesteps: int = Field(default=1000, gt=1, description="steps T of the forward process, at least 8")
    beta_start: float = Field(default=1e-4, gt=0, lt=1, description="beta at the first timestep")
    beta_end: float = Field(default=2e-2, gt=0, lt=1, description="beta at the last timestep")

    def check_training(self) -> None:
        """See `DiffusionSpec`: neither too few steps nor too many, and betas in the range of floats."""
        if not self._facts.discrete:
            return
        if not LOSS_BINS <= self.timesteps <= _MOST_TIMESTEPS:
            raise ValueError(
                f"diffusion.timesteps {self.timesteps}: the loss is measured in {LOSS_BINS} bins of them; "
                f"allowed: {LOSS_BINS} to {_MOST_TIMESTEPS}"
            )
        for key in ("beta_start", "beta_end"):
            beta = getattr(self, key)
            if not _MARGIN <= beta <= 1 - _MARGIN:
                raise ValueError(f"diffusion.{key} {beta} is too near to 0 or 1; allowed: {_MARGIN} to 1 - {_MARGIN}")
        left = self._log_signal[-1]
        if left < math.log(_LEAST_SIGNAL):
            raise ValueError(
                f"diffusion.timesteps {self.timesteps} with betas from {self.beta_start} to {self.beta_end} leave "
                f"1e{left / math.log(10):.0f} of the signal at the last step, which samplers cannot divide by; "
                f"allowed: at least {_LEAST_SIGNAL}, by fewer timesteps or smaller betas"
            )

    @property
    def _log_signal(self) -> tuple[float, ...]:
        return _log_signal(self.timesteps, self.beta_start, self.beta_end)

    def check_sampling(self, sampler: str, steps: int) -> None:
        """See `DiffusionSpec`: at most as many steps as the process has, and not too few for its betas."""
        discrete = self._facts.discrete
        if discrete and steps > self.timesteps:
            raise ValueError(f"sampling_steps: {steps} exceeds diffusion.timesteps; allowed: 1 to {self.timesteps}")
        super().check_sampling(sampler, steps)
        if discrete:
            visited = [0.0, *(self._log_signal[step] for step in respaced_steps(self.timesteps, steps))]
            left = min(after - before for before, after in pairwise(visited))
            if left < math.log(_MARGIN):
                raise ValueError(
                    f"sampling_steps: {steps} are too few for diffusion.timesteps {self.timesteps} with betas up to "
                    f"{max(self.beta_start, self.beta_end)}: one leaves 1e{left / math.log(10):.0f} of the signal; "
                    f"allowed: at least {_MARGIN}, by more steps or smaller betas"
                )


_SPECS: dict[str, type[DiffusionSpec]] = {"flow": Flow}


def spec_of(objective: str) -> type[DiffusionSpec]:
    """The spec of an objective; of a user's own its attribute `Spec`."""
    own: type[DiffusionSpec] = getattr(OBJECTIVES.facts(objective), "Spec", Diffusion)
    return _SPECS.get(objective, own)


def _of_its_objective(value: Any) -> DiffusionSpec:
    return spec_of_kind(value, DiffusionSpec, "objective", spec_of)


#: Type of a field that holds the spec of any objective; its field `objective` says which.
AnyDiffusion = Annotated[SerializeAsAny[DiffusionSpec], PlainValidator(_of_its_objective)]
