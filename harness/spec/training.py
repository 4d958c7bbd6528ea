"""The recipe of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, model_validator

from harness.spec.identity import Spec

#: What is left of the highest learning rate, by the share of the decay that is behind.
_LEFT: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 + 0.5 * math.cos(math.pi * done),
    "warmup-stable-decay": lambda done: 1 - math.sqrt(done),  # Hägele et al. 2024 (arXiv:2405.18392), section 3
}

#: Share of the steps over which warmup-stable-decay lets the rate fall (Hägele et al. 2024, section 3).
_DECAY_SHARE = 0.2


class RateLaw(Spec):
    """A learning rate that follows the width of the model: base * (model.width / width)^-exponent.

    A sweep puts the number in its place, so a cell has the id of one whose rate is given as that number.
    """

    base: float = Field(gt=0, description="learning rate at `width`")
    width: int = Field(gt=0, description="width at which the rate is `base`")
    exponent: float = Field(
        ge=-3, le=3, description="how fast the rate falls as models get wider; 1: in inverse proportion"
    )

    def at(self, width: int) -> float:
        """The rate at a width, in four digits: no id then depends on how a machine rounds powers."""
        return float(f"{self.base * (width / self.width) ** -self.exponent:.4g}")


#: What the network computes in while it trains; evaluations compute in fp32.
Precision = Literal["fp32", "tf32", "bf16"]

#: What a CPU can do of it.
CPU_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


class Training(Spec):
    """The recipe. The defaults are the paper's (section 4): AdamW, constant rate, no decay, no warm-up, EMA 0.9999."""

    steps: int = Field(default=400_000, gt=0, description="optimizer steps")
    batch_size: int = Field(default=256, gt=0, description="images of a step, over all ranks")
    learning_rate: float = Field(
        default=1e-4,
        gt=0,
        description="highest learning rate of AdamW; a sweep may give a law of the width, see below",
    )
    warmup_steps: int = Field(default=0, ge=0, description="steps over which the rate rises from 0, in a line")
    schedule: Literal["constant", "cosine", "warmup-stable-decay"] = Field(
        default="constant",
        description="the learning rate after the warm-up: it stays; falls to 0 along a cosine; or stays, and falls to "
        "0 over the last fifth of the steps as 1 - sqrt",
    )
    gradient_clip: float | None = Field(
        default=None,
        gt=0,
        description="largest norm of the gradient of all weights together; a longer one is scaled to it",
    )
    beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of AdamW's second moments")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of AdamW")
    label_dropout: float = Field(default=0.1, ge=0, le=1, description="share of labels replaced by the null class")
    precision: Precision = Field(
        default="fp32",
        description="of the network's arithmetic in training; tf32: matrix products and convolutions of a GPU round "
        "their factors to TensorFloat-32; bf16: autocast with fp32 weights; both need a GPU of compute capability 8.0, "
        "bf16 runs on a CPU, too",
    )
    ema_decay: float = Field(
        default=0.9999, ge=0, lt=1, description="decay of the averaged weights (EMA), the same at every step"
    )
    ema_window: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="instead of ema_decay: average over about this share of the steps so far, "
        "so that the averaged weights of a short run are free of the initial ones",
    )

    @model_validator(mode="after")
    def _one_ema(self) -> Self:
        if self.ema_window is not None and self.ema_decay != type(self).model_fields["ema_decay"].default:
            raise ValueError("ema_decay and ema_window exclude each other; give one of them")
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        if self.warmup_steps + self.decay_steps > self.steps:
            most = self.steps - (1 if self.schedule == "cosine" else self.decay_steps)
            raise ValueError(
                f"warmup_steps {self.warmup_steps} does not fit steps {self.steps} with schedule {self.schedule}; "
                f"allowed: 0 to {most}"
            )
        return self

    @property
    def decay_steps(self) -> int:
        """The last steps, over which the rate falls; 0 where it stays."""
        if self.schedule == "constant":
            return 0
        if self.schedule == "cosine":
            return max(1, self.steps - self.warmup_steps)
        return max(1, round(_DECAY_SHARE * self.steps))

    @property
    def rate_varies(self) -> bool:
        """Whether the learning rate is another one at some step."""
        return bool(self.warmup_steps or self.decay_steps)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step; the first step is 1, and no step has the rate 0."""
        if step <= self.warmup_steps:
            return self.learning_rate * (step / self.warmup_steps)
        behind = max(0, step - 1 - (self.steps - self.decay_steps))
        return self.learning_rate * _LEFT[self.schedule](behind / max(1, self.decay_steps))
