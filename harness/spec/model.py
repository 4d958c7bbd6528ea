"""The shape of a network: the base of every spec of a network, and the spec of the Diffusion Transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import Field, PlainValidator, SerializeAsAny, model_validator

from harness.spec.data import InputShape
from harness.spec.identity import Spec, spec_of_kind
from harness.spec.kinds import Kind


class BlockFacts(NamedTuple):
    """Where the code of a block is."""

    at: str


#: The four designs of the paper, and adaln-gate: adaLN-Zero's gates without its zero initialisation.
BLOCKS = Kind(
    "BLOCKS",
    {
        "in-context": BlockFacts("harness.model.blocks.in_context:InContextBlock"),
        "cross-attention": BlockFacts("harness.model.blocks.cross_attention:CrossAttentionBlock"),
        "adaln": BlockFacts("harness.model.blocks.adaln:AdaLNBlock"),
        "adaln-zero": BlockFacts("harness.model.blocks.adaln_zero:AdaLNZeroBlock"),
        "adaln-gate": BlockFacts("harness.model.blocks.adaln_gate:AdaLNGateBlock"),
    },
)


#: Widest model, and most values of a tensor: torch counts bytes with 64 bits.
_MOST_WIDTH = 1_000_000
_MOST_VALUES = 2**55


def nearest_heads(width: int) -> int:
    """Number of attention heads when none is given: the divisor of `width` that brings a head nearest to 64 channels.

    All published sizes but XL have 64 channels a head. A tie goes to more heads.
    """
    small = [h for h in range(1, math.isqrt(width) + 1) if width % h == 0]
    divisors = {*small, *(width // h for h in small)}
    return min(divisors, key=lambda h: (abs(width / h - 64), -h))


class NetworkFacts(NamedTuple):
    """Where the code of a network is, and its spec."""

    at: str
    Spec: type[ModelSpec]


_BUILT_IN: dict[str, NetworkFacts] = {}  # filled below, after the specs

NETWORKS = Kind("NETWORKS", _BUILT_IN)


class ModelSpec(Spec):
    """Base of every network's spec: what sweeps, plans and tables need to know without torch."""

    network: Annotated[str, NETWORKS] = Field(default="dit", description="what predicts; it decides the other fields")

    #: Named sizes: the fields that each one sets.
    sizes: ClassVar[Mapping[str, Mapping[str, int]]] = MappingProxyType({})
    #: Fields that `readable_name` contains.
    named: ClassVar[frozenset[str]] = frozenset()
    #: Fields that the name of a cell leaves out if their axis also sets another field: field -> other field.
    follows: ClassVar[Mapping[str, str]] = MappingProxyType({})

    @property
    def size(self) -> str | None:
        """Its named size, if it has one."""
        for name, fields in self.sizes.items():
            if all(getattr(self, field, None) == value for field, value in fields.items()):
                return name
        return None

    @property
    def readable_name(self) -> str:
        """The beginning of a cell's name."""
        return self.size or self.network

    @property
    def layers(self) -> int:
        """Number of consecutive layers; each costs some time, however small it is."""
        return 1

    @property
    def in_columns(self) -> frozenset[str]:
        """Fields that the columns of a table already show."""
        return frozenset()

    def tokens(self, shape: InputShape) -> int:
        """Number of positions at its finest resolution: the length of a transformer's sequence."""
        return shape.size**2

    def macs_proxy(self, shape: InputShape) -> float:
        """A rough count of the multiply-adds of one forward pass of one image, to order a queue by.

        Where it is not known, the network counts as large.
        """
        return 1e9 * self.tokens(shape)

    def check_fits(self, shape: InputShape, source: str) -> None:
        """Check that it takes inputs of this shape.

        Args:
            shape: of the input.
            source: what a message calls it, such as "input of digits".

        Raises:
            ValueError: it does not; one line with what is allowed.
        """


#: The published sizes (Peebles & Xie 2023, Table 1): depth, width, heads.
SIZES: dict[str, dict[str, int]] = {
    "S": {"depth": 12, "width": 384, "heads": 6},
    "B": {"depth": 12, "width": 768, "heads": 12},
    "L": {"depth": 24, "width": 1024, "heads": 16},
    "XL": {"depth": 28, "width": 1152, "heads": 16},
}


class DiTSpec(ModelSpec):
    """Shape of a Diffusion Transformer (paper, section 3.2).

    Raises:
        ValidationError: `width` not divisible by `heads`, or by 4 (sin-cos positions need sine and cosine of two axes).
    """

    depth: int = Field(gt=0, description="transformer blocks")
    width: int = Field(gt=0, le=_MOST_WIDTH, description="hidden size D")
    #: Left out, it follows from the width (see `_fill_heads`). No spec holds the 0, so that heads count in every id.
    heads: int = Field(
        default=0, gt=0, description="attention heads", json_schema_extra={"default": "about 64 channels a head"}
    )
    patch_size: int = Field(gt=0, description="side p of a square patch; tokens T = (size / p)^2")
    block: Annotated[str, BLOCKS] = Field(default="adaln-zero", description="how timestep and label condition a block")
    mlp_ratio: float = Field(default=4.0, gt=0, le=1000, description="hidden size of the MLP, as a multiple of width")
    qk_norm: bool = Field(
        default=False,
        description="normalise every head's queries and keys by RMSNorm with a learned scale; not in the paper",
    )

    sizes = SIZES
    named = frozenset({"depth", "width", "patch_size"})
    follows = MappingProxyType({"heads": "width"})

    @model_validator(mode="before")
    @classmethod
    def _fill_heads(cls, values: Any) -> Any:
        if isinstance(values, dict) and "heads" not in values:
            width = values.get("width")  # if invalid, one head: the only error is then about the width
            heads = nearest_heads(width) if isinstance(width, int) and 0 < width <= _MOST_WIDTH else 1
            return {**values, "heads": heads}
        return values

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not divisible by 4, as the sin-cos positions need")
        return self

    @property
    def readable_name(self) -> str:
        """As in the paper, such as XL-2; depth, width and patch size where the size has no name."""
        return f"{self.size}-{self.patch_size}" if self.size else f"d{self.depth}-w{self.width}-p{self.patch_size}"

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return self.depth

    @property
    def in_columns(self) -> frozenset[str]:
        """Includes the heads if they follow from the width."""
        implied = self.size is not None or self.heads == nearest_heads(self.width)
        return self.named | {"block"} | ({"heads"} if implied else frozenset())

    def tokens(self, shape: InputShape) -> int:
        """T = (S / p)^2, the length of the patch sequence."""
        return int((shape.size // self.patch_size) ** 2)

    def macs_proxy(self, shape: InputShape) -> float:
        """The multiply-adds of the blocks alone, without their conditioning."""
        T, D = self.tokens(shape), self.width
        return float(self.depth * T * D * (D * (4 + 2 * self.mlp_ratio) + 2 * T))

    def check_fits(self, shape: InputShape, source: str) -> None:
        """See `ModelSpec`: patches tile the input, the MLP has a hidden unit, and sizes stay numbers of 64 bits."""
        pixels = min(self.patch_size, shape.size) ** 2
        rows = (shape.channels * pixels, self.tokens(shape), shape.classes, self.mlp_ratio * self.width)
        if (largest := max(self.width * max(rows), shape.channels * shape.size**2)) > _MOST_VALUES:
            raise ValueError(
                f"model: a tensor of {largest:.1g} values, from width {self.width} and {source} ({shape.size} a side, "
                f"{shape.channels} channels, {shape.classes} classes); allowed: up to {_MOST_VALUES:.1g}"
            )
        if int(self.mlp_ratio * self.width) < 1:
            raise ValueError(
                f"model.mlp_ratio {self.mlp_ratio} leaves no hidden unit at width {self.width}; "
                f"allowed: at least {1 / self.width:.3g}"
            )
        if shape.size % self.patch_size:
            allowed = ", ".join(str(p) for p in range(1, shape.size + 1) if shape.size % p == 0)
            raise ValueError(
                f"model.patch_size {self.patch_size} does not divide the {shape.size}x{shape.size} {source}; "
                f"allowed: {allowed}"
            )


_BUILT_IN["dit"] = NetworkFacts("harness.model.dit:DiT", DiTSpec)


def _of_its_network(value: Any) -> ModelSpec:
    return spec_of_kind(value, ModelSpec, "network", lambda name: NETWORKS.facts(name).Spec)


#: Type of a field that holds the spec of any network; its field `network` says which.
AnyModel = Annotated[SerializeAsAny[ModelSpec], PlainValidator(_of_its_network)]
