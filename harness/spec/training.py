"""The recipe of a training."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.spec.identity import Spec


class Training(Spec):
    """The recipe. The defaults are the paper's (section 4): AdamW, constant rate, no decay, no warm-up, EMA 0.9999."""

    steps: int = Field(default=400_000, gt=0)
    batch_size: int = Field(default=256, gt=0, description="global batch, whatever the number of ranks")
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    label_dropout: float = Field(default=0.1, ge=0, le=1, description="share of labels replaced by the null class")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast with fp32 weights")
    ema_decay: float = Field(default=0.9999, ge=0, lt=1, description="constant decay of the averaged weights")
    ema_window: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="average over about this share of the run so far instead of a constant decay, "
        "so that a short run does not sample its initial weights",
    )

    @model_validator(mode="after")
    def _one_ema(self) -> Self:
        if self.ema_window is not None and self.ema_decay != type(self).model_fields["ema_decay"].default:
            raise ValueError("ema_decay and ema_window exclude each other; give one of them")
        return self
