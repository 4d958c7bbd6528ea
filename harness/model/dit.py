"""The Diffusion Transformer (Peebles & Xie 2023, section 3.2) and its initialisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from harness.errors import InputError
from harness.model.blocks import BLOCKS, layer_norm, modulate, modulation
from harness.model.embeddings import PatchEmbedding, TimestepEmbedding, sincos_positions, unpatchify
from harness.spec.data import InputShape
from harness.spec.model import Model


class DiT(nn.Module):
    """Predicts noise and variance of noised images (or latents) from timestep and label.

    Shapes in the comments: N images, C channels, S positions a side, p patch size, T = (S / p)^2 tokens, D width,
    K condition vectors (2 with labels, 1 without).

    The model holds no random state: a caller that wants label dropout passes `null_class` for the dropped labels.
    Torch fills the weights with its own defaults; call `initialise` for the published ones. For bf16 use autocast, not
    `.bfloat16()`, which would round positions and timestep frequencies.

    Raises:
        InputError: the patch size does not divide the input, or the MLP has no hidden unit.
    """

    positions: Tensor

    def __init__(self, model: Model, shape: InputShape) -> None:
        super().__init__()
        channels, size, classes = shape
        p, width = model.patch_size, model.width
        if size % p:
            raise InputError(f"patch_size {p} does not divide the input of {size}x{size}")
        if int(model.mlp_ratio * width) < 1:
            raise InputError(f"mlp_ratio {model.mlp_ratio} leaves no hidden unit at width {width}")
        block = BLOCKS[model.block]
        self.model, self.shape = model, shape
        self.adaptive, self.in_context = block.adaptive, block.in_context

        self.patch_embedding = PatchEmbedding(channels, p, width)
        self.timestep_embedding = TimestepEmbedding(width)
        self.label_embedding = nn.Embedding(classes + 1, width) if classes else None  # the last row: no label
        self.blocks = nn.ModuleList(block(model) for _ in range(model.depth))
        self.final = FinalLayer(width, p * p * 2 * channels, self.adaptive)
        self.register_buffer("positions", sincos_positions(size // p, width), persistent=False)

    @property
    def null_class(self) -> int:
        """The label that stands for "no label": the number of classes.

        Raises:
            InputError: the model has no classes.
        """
        if not self.shape.classes:
            raise InputError("a model without classes has no null class")
        return self.shape.classes

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict noise and variance.

        Args:
            x: noised images (N, C, S, S).
            t: timesteps (N,), integer or float, in steps of the training schedule.
            y: labels (N,), int64, `null_class` where dropped; None in a model without classes, and only there.

        Returns:
            (N, 2C, S, S): C channels of predicted noise, then C of variance, -1 meaning the posterior variance and +1
            the forward one (Nichol & Dhariwal 2021, equation 15).
        """
        c = self.condition(t, y)  # (N, D) or (N, K, D)
        x = self.patch_embedding(x) + self.positions  # (N, T, D)
        if self.in_context:
            x = torch.cat((x, c), dim=1)  # (N, T + K, D)
        for block in self.blocks:
            x = block(x, c)  # (N, T, D), in context (N, T + K, D)
        if self.in_context:
            x = x[:, : len(self.positions)]  # (N, T, D)
        x = self.final(x, c)  # (N, T, p*p*2C)
        return unpatchify(x, self.model.patch_size)  # (N, 2C, S, S)

    def condition(self, t: Tensor, y: Tensor | None) -> Tensor:
        """Embed timestep and label: their sum (N, D) for adaptive blocks, else the sequence (N, K, D)."""
        if (y is None) != (self.label_embedding is None):
            wanted = "needs labels y (N,)" if y is None else "takes no labels: pass y = None"
            raise InputError(f"a model of {self.shape.classes} classes {wanted}")
        parts: list[Tensor] = [self.timestep_embedding(t)]  # (N, D)
        if self.label_embedding is not None:
            parts.append(self.label_embedding(y))  # (N, D)
        if self.adaptive:
            return parts[0] + parts[1] if len(parts) == 2 else parts[0]
        return torch.stack(parts, dim=1)


class FinalLayer(nn.Module):
    """LayerNorm and Linear to the pixels of a patch; the LayerNorm adapts to c where the blocks do."""

    def __init__(self, width: int, outputs: int, adaptive: bool) -> None:
        super().__init__()
        self.norm = layer_norm(width, affine=not adaptive)
        self.modulation = modulation(width, 2) if adaptive else None
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D), condition -> (N, T, outputs)."""
        x = self.norm(x)
        if self.modulation is not None:
            shift, scale = self.modulation(c).unsqueeze(1).chunk(2, dim=2)  # each (N, 1, D)
            x = modulate(x, shift, scale)
        x = self.linear(x)  # (N, T, outputs)
        return x


@torch.no_grad()
def initialise(dit: DiT, seed: int) -> None:
    """Overwrite every parameter of `dit` with the published initialisation, decided by `seed` alone.

    - Biases 0; LayerNorm scales 1.
    - The final Linear, the final modulation, and every modulation of adaLN-Zero blocks: 0, so that an adaLN-Zero block
      starts as the identity and the model starts by predicting 0.
    - Label table and both weights of the timestep MLP: normal, mean 0, standard deviation 0.02.
    - Every other matrix: Xavier uniform, +-sqrt(6 / (fan in + fan out)), where a fused qkv counts as one matrix and
      the patch weight as (D, C*p*p). The modulations of plain adaLN and of adaln-gate are among these, as any other
      Linear: for plain adaLN the paper does not say (at zero it would start without its condition, yet with its
      branches on), for adaln-gate it is the point.

    The draws come from a generator of their own, on the CPU and in float32 whatever the device and type of `dit`, in
    the order of `dit.named_parameters()`: patches, timestep, labels, blocks from first to last. Constants draw nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in dit.named_parameters():
        zero = name.startswith("final.") or (".modulation." in name and dit.model.block == "adaln-zero")
        if name.endswith(".bias") or (zero and parameter.ndim > 1):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1)
        elif name.startswith(("timestep_embedding.", "label_embedding.")):
            parameter.copy_(torch.empty(parameter.shape, device="cpu").normal_(0, 0.02, generator=generator))
        else:
            rows, columns = parameter.flatten(1).shape
            bound = math.sqrt(6 / (rows + columns))
            parameter.copy_(torch.empty(parameter.shape, device="cpu").uniform_(-bound, bound, generator=generator))
