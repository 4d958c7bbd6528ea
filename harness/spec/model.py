"""The shape of a network."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, model_validator

from harness.spec.identity import Spec
from harness.spec.kinds import Kind


class BlockFacts(NamedTuple):
    """Where a block is."""

    at: str


#: The four designs of the paper, and adaln-gate: adaLN-Zero's gates without its zero initialisation.
BLOCKS = Kind(
    "BLOCKS",
    {
        "in-context": BlockFacts("harness.model.blocks:InContextBlock"),
        "cross-attention": BlockFacts("harness.model.blocks:CrossAttentionBlock"),
        "adaln": BlockFacts("harness.model.blocks:AdaLNBlock"),
        "adaln-zero": BlockFacts("harness.model.blocks:AdaLNZeroBlock"),
        "adaln-gate": BlockFacts("harness.model.blocks:AdaLNGateBlock"),
    },
)

#: The published sizes (Peebles & Xie 2023, Table 1): depth, width, heads.
SIZES: dict[str, dict[str, int]] = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}


def nearest_heads(width: int) -> int:
    """Number of attention heads when none is given: the divisor of `width` that brings a head nearest to 64 channels.

    All published sizes but XL have 64 channels a head. A tie goes to more heads.
    """
    divisors = [h for h in range(1, width + 1) if width % h == 0]
    return min(divisors, key=lambda h: (abs(width / h - 64), -h))


class Model(Spec):
    """Shape of a Diffusion Transformer (paper, section 3.2).

    Raises:
        ValidationError: `width` not divisible by `heads`, or by 4 (sin-cos positions need sine and cosine of two axes).
    """

    depth: int = Field(gt=0, description="transformer blocks")
    width: int = Field(gt=0, description="hidden size D")
    heads: int = Field(gt=0, description="attention heads", json_schema_extra={"default": "about 64 channels a head"})
    patch_size: int = Field(gt=0, description="side p of a square patch; tokens T = (size / p)^2")
    block: Annotated[str, BLOCKS] = Field(default="adaln-zero", description="how timestep and label condition a block")
    mlp_ratio: float = Field(default=4.0, gt=0, description="hidden size of the MLP, as a multiple of width")

    @model_validator(mode="before")
    @classmethod
    def _fill_heads(cls, values: Any) -> Any:
        if isinstance(values, dict) and "heads" not in values:
            width = values.get("width")
            # of a wrong width, the width alone is to be complained about
            heads = nearest_heads(width) if isinstance(width, int) and width > 0 else 1
            return {**values, "heads": heads}
        return values

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not divisible by 4, as the sin-cos positions need")
        return self
