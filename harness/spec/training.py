"""The recipe of a training."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.spec.identity import Spec


class Training(Spec):
    """The recipe. The defaults are the paper's (section 4): AdamW, constant rate, no decay, no warm-up, EMA 0.9999."""

    steps: int = Field(default=400_000, gt=0, description="optimizer steps")
    batch_size: int = Field(default=256, gt=0, description="images of a step, over all ranks")
    learning_rate: float = Field(default=1e-4, gt=0, description="constant learning rate of AdamW")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of AdamW")
    label_dropout: float = Field(default=0.1, ge=0, le=1, description="share of labels replaced by the null class")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="of the arithmetic; bf16: autocast with fp32 weights"
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
