"""A U-Net: diffusers' `UNet2DModel`, the family that the paper's first claim is about."""

from __future__ import annotations

from typing import Any

from diffusers.models.unets.unet_2d import UNet2DModel  # takes seconds; this module is imported when a U-Net is built
from torch import Tensor

from harness.errors import InputError
from harness.model.network import CostPart, Network
from harness.spec.data import InputShape
from harness.spec.model import ModelSpec, UNetSpec


class UNet(Network):
    """Residual blocks of 3x3 convolutions, which add an embedding of timestep and label; attention where asked for.

    What the spec leaves open is diffusers' default: the timestep is embedded by `channels[0]` sinusoids, the embedding
    is added to the features of a block (ADM scales them, too), and nothing but torch's own initialisation is used
    (`Network.initialise`): no layer starts at zero, as the last ones of a block do in ADM. For bf16 use autocast.
    """

    Spec = UNetSpec

    def __init__(self, model: UNetSpec, shape: InputShape, outputs: int = 2) -> None:
        super().__init__(model, shape, outputs)
        attends = [level in model.attention for level in range(len(model.channels))]
        self.unet: Any = UNet2DModel(
            in_channels=shape.channels,
            out_channels=outputs * shape.channels,
            block_out_channels=model.channels,
            layers_per_block=model.blocks,
            down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
            up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)),
            attention_head_dim=model.head_channels,
            norm_num_groups=model.norm_groups,
            num_class_embeds=shape.classes + 1 if shape.classes else None,  # the last row means "no label"
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """See `Network.forward`."""
        if (y is None) != (not self.shape.classes):
            wanted = "needs labels y (N,)" if y is None else "takes no labels: pass y = None"
            raise InputError(f"a model of {self.shape.classes} classes {wanted}")
        predicted: Tensor = self.unet(x, t, y, return_dict=False)[0]
        return predicted

    @classmethod
    def cost_parts(cls, model: ModelSpec) -> list[CostPart]:
        """Itself; the groups of its norms cost nothing."""
        return [CostPart(1, model.model_copy(update={"norm_groups": 1}))]
