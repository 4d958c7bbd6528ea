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
    def label(self) -> str:
        """Its block; the name of the network where it has none. The column `block` of a table."""
        return str(getattr(self, "block", self.network))

    @property
    def layers(self) -> int:
        """Number of consecutive layers; each costs some time, however small it is."""
        return 1

    @property
    def compiled_layers(self) -> int:
        """Number of layers that are compiled one by one, for they do not share their code."""
        return self.layers

    @property
    def in_columns(self) -> frozenset[str]:
        """Fields that the columns of a table already show, the name of the cell among them."""
        return frozenset({"network"})

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
    named = frozenset({"network", "depth", "width", "patch_size"})
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
    def compiled_layers(self) -> int:
        """One: all blocks share their code."""
        return 1

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


class UNetSpec(ModelSpec):
    """Shape of a U-Net: levels of residual blocks, each at half the side of the one before, down and up again.

    Raises:
        ValidationError: channels that `norm_groups` does not divide; a level of `attention` that there is not.
    """

    channels: tuple[Annotated[int, Field(gt=0, le=_MOST_WIDTH)], ...] = Field(
        strict=False, min_length=1, description="channels of each level, the finest first"
    )
    blocks: int = Field(
        default=2, gt=0, le=1000, description="residual blocks of a level on the way down; one more on the way up"
    )
    attention: tuple[int, ...] = Field(
        default=(), strict=False, description="levels with self-attention, 0 the finest; the middle always has it"
    )
    norm_groups: int = Field(default=32, gt=0, le=32, description="groups of a group norm; they divide all channels")

    named = frozenset({"network", "channels", "blocks", "attention", "norm_groups"})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if odd := [channels for channels in self.channels if channels % self.norm_groups]:
            raise ValueError(
                f"channels {odd[0]} is not divisible by norm_groups {self.norm_groups}; "
                "allowed: multiples of it, or fewer groups"
            )
        levels = range(len(self.channels))
        if [*self.attention] != sorted({*self.attention} & {*levels}):
            allowed = f"the levels 0 to {levels[-1]}" if levels[-1] else "level 0"
            raise ValueError(f"attention {[*self.attention]}; allowed: {allowed}, each once and in this order")
        return self

    @property
    def readable_name(self) -> str:
        """Channels and blocks, the levels with attention where there are any, and another number of groups than 32."""
        parts = [self.network, *map(str, self.channels), f"b{self.blocks}"]
        parts += [f"a{'.'.join(map(str, self.attention))}"] if self.attention else []
        parts += [f"g{self.norm_groups}"] if self.norm_groups != 32 else []
        return "-".join(parts)

    @property
    def layers(self) -> int:
        """Number of residual blocks, the two of the middle included."""
        return len(self.channels) * (2 * self.blocks + 1) + 2

    @property
    def in_columns(self) -> frozenset[str]:
        """All its fields: its shape is in the name of the cell."""
        return self.named

    @property
    def head_channels(self) -> int:
        """Channels of an attention head: the divisor of all channels with attention that is nearest to 64."""
        common = math.gcd(self.channels[-1], *(self.channels[level] for level in self.attention))
        return common // nearest_heads(common)

    @classmethod
    def usual(cls, shape: InputShape, norm_groups: int) -> UNetSpec:
        """A U-Net for inputs of this shape: up to four levels, the coarsest of 4 positions a side or more.

        The first level has half the channels of the others. All but the first have attention.
        """
        levels = 1
        while levels < 4 and shape.size % 2**levels == 0 and shape.size >> levels >= 4:
            levels += 1
        channels = (norm_groups, *[2 * norm_groups] * (levels - 1))
        attention = tuple(range(1, levels))
        return cls(network="unet", channels=channels, attention=attention, norm_groups=norm_groups)

    @property
    def units(self) -> int:
        """Channels of its widest level, in groups."""
        return max(self.channels) // self.norm_groups

    def resized(self, units: int) -> UNetSpec:
        """The same U-Net with so many `units`, its other levels in proportion, in whole groups."""
        groups = (max(1, round(units * channels / max(self.channels))) for channels in self.channels)
        return self.model_copy(update={"channels": tuple(self.norm_groups * n for n in groups)})

    def macs_proxy(self, shape: InputShape) -> float:
        """The multiply-adds of the 3x3 convolutions of residual blocks alone; on the way up they read skips, too."""
        sides = [shape.size / 2**level for level in range(len(self.channels))]
        convolutions = 2 * self.blocks + 3 * (self.blocks + 1)
        blocks = sum(9 * (side * c) ** 2 for side, c in zip(sides, self.channels, strict=True)) * convolutions
        return float(blocks + 4 * 9 * (sides[-1] * self.channels[-1]) ** 2)

    def check_fits(self, shape: InputShape, source: str) -> None:
        """See `ModelSpec`: every level but the last halves the side, and sizes stay numbers of 64 bits."""
        most = max(self.channels)
        if (largest := most * max(18 * most, 4 * shape.classes, shape.channels * shape.size**2)) > _MOST_VALUES:
            raise ValueError(
                f"model: a tensor of {largest:.1g} values, from {most} channels and {source} ({shape.size} a side, "
                f"{shape.channels} channels, {shape.classes} classes); allowed: up to {_MOST_VALUES:.1g}"
            )
        halvings = len(self.channels) - 1
        if shape.size % 2**halvings:
            possible = (shape.size & -shape.size).bit_length()
            raise ValueError(
                f"model.channels {[*self.channels]}: {halvings + 1} levels halve the {shape.size}x{shape.size} "
                f"{source} {halvings} times; allowed: up to {possible} level{'s' * (possible > 1)}"
            )


_BUILT_IN["dit"] = NetworkFacts("harness.model.dit:DiT", DiTSpec)
_BUILT_IN["unet"] = NetworkFacts("harness.model.unet:UNet", UNetSpec)


def _of_its_network(value: Any) -> ModelSpec:
    return spec_of_kind(value, ModelSpec, "network", lambda name: NETWORKS.facts(name).Spec)


#: Type of a field that holds the spec of any network; its field `network` says which.
AnyModel = Annotated[SerializeAsAny[ModelSpec], PlainValidator(_of_its_network)]
