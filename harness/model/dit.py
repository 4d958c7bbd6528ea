"""The Diffusion Transformer (Peebles & Xie 2023, section 3.2) and its initialisation."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from harness.errors import InputError
from harness.model.blocks.block import Block, Modulation, fill, layer_norm, modulate, xavier_uniform
from harness.model.embeddings import PatchEmbedding, TimestepEmbedding, sincos_positions, unpatchify
from harness.model.network import CostPart, Network
from harness.spec.data import InputShape
from harness.spec.model import BLOCKS, DiTSpec, ModelSpec


class DiT(Network):
    """Predicts noise and variance (or what the objective asks for) from noised images, timestep and label.

    Shapes in the comments: N images, C channels, S positions a side, p patch size, T = (S / p)^2 tokens, D width,
    K condition vectors (2 with labels, 1 without).

    Torch fills the weights with its own defaults; call `initialise` for the published ones. For bf16 use autocast, not
    `.bfloat16()`, which would round positions and timestep frequencies.

    Raises:
        InputError: the patch size does not divide the input, or the MLP has no hidden unit.
    """

    Spec = DiTSpec
    positions: Tensor

    def __init__(self, model: DiTSpec, shape: InputShape, outputs: int = 2) -> None:
        super().__init__(model, shape, outputs)
        channels, size, classes = shape
        p, width = model.patch_size, model.width
        if size % p:
            raise InputError(f"patch_size {p} does not divide the input of {size}x{size}")
        if int(model.mlp_ratio * width) < 1:
            raise InputError(f"mlp_ratio {model.mlp_ratio} leaves no hidden unit at width {width}")
        block: type[Block] = BLOCKS.load(model.block)
        self.model = model
        self.adaptive, self.in_context = block.adaptive, block.in_context

        self.patch_embedding = PatchEmbedding(channels, p, width)
        self.timestep_embedding = TimestepEmbedding(width)
        self.label_embedding = nn.Embedding(classes + 1, width) if classes else None  # the last row means "no label"
        self.blocks = nn.ModuleList(block(model) for _ in range(model.depth))
        self.final = FinalLayer(width, p * p * outputs * channels, self.adaptive)
        self.register_buffer("positions", sincos_positions(size // p, width), persistent=False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """See `Network.forward`.

        With the hybrid objective the outputs are C channels of predicted noise, then C of variance, -1 meaning the
        posterior variance and +1 the forward one (Nichol & Dhariwal 2021, equation 15).
        """
        c = self.condition(t, y)  # (N, D) or (N, K, D)
        x = self.patch_embedding(x) + self.positions  # (N, T, D)
        if self.in_context:
            x = torch.cat((x, c), dim=1)  # (N, T + K, D)
        for block in self.blocks:
            x = block(x, c)  # (N, T, D), in context (N, T + K, D)
        if self.in_context:
            x = x[:, : len(self.positions)]  # (N, T, D)
        x = self.final(x, c)  # (N, T, p*p*outputs*C)
        return unpatchify(x, self.model.patch_size)  # (N, outputs*C, S, S)

    def regions(self) -> nn.ModuleList:
        """The blocks."""
        return self.blocks

    def condition(self, t: Tensor, y: Tensor | None) -> Tensor:
        """Embed timestep and label: their sum (N, D) for adaptive blocks, otherwise the sequence (N, K, D)."""
        if (y is None) != (self.label_embedding is None):
            wanted = "needs labels y (N,)" if y is None else "takes no labels: pass y = None"
            raise InputError(f"a model of {self.shape.classes} classes {wanted}")
        parts: list[Tensor] = [self.timestep_embedding(t)]  # (N, D)
        if self.label_embedding is not None:
            parts.append(self.label_embedding(y))  # (N, D)
        if self.adaptive:
            return parts[0] + parts[1] if len(parts) == 2 else parts[0]
        return torch.stack(parts, dim=1)

    def initialise(self, seed: int) -> None:
        """Overwrite every parameter with the published initialisation, decided by `seed` alone.

        - Biases 0; LayerNorm scales 1.
        - The final Linear, the final modulation, and what a block's `starts_at_zero` names: 0. So an adaLN-Zero block
          starts as the identity, and the model starts by predicting 0.
        - Label table and both weights of the timestep MLP: normal, mean 0, standard deviation 0.02.
        - Every other matrix: Xavier uniform (see `xavier_uniform`).

        The draws come from their own generator, in this order: patches, timestep, labels, blocks from first to last.
        """
        generator = torch.Generator().manual_seed(seed)
        fill(self.patch_embedding, xavier_uniform(generator))
        for embedding in filter(None, (self.timestep_embedding, self.label_embedding)):
            fill(embedding, lambda matrix: matrix.normal_(0, 0.02, generator=generator))
        for block in self.blocks:
            cast(Block, block).initialise(generator)
        fill(self.final, torch.zero_)

    @classmethod
    def cost_parts(cls, model: ModelSpec) -> list[CostPart]:
        """Depths 1 and 2 give any depth exactly, since all blocks are alike."""
        assert isinstance(model, DiTSpec)
        one, two = (model.model_copy(update={"depth": depth}) for depth in (1, 2))
        return [CostPart(2 - model.depth, one), CostPart(model.depth - 1, two)]


class FinalLayer(nn.Module):
    """LayerNorm and Linear to the pixels of a patch; the LayerNorm adapts to c if the blocks do."""

    def __init__(self, width: int, outputs: int, adaptive: bool) -> None:
        super().__init__()
        self.norm = layer_norm(width, affine=not adaptive)
        self.modulation = Modulation(width, 2) if adaptive else None
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Tokens (N, T, D), condition -> (N, T, outputs)."""
        x = self.norm(x)
        if self.modulation is not None:
            shift, scale = self.modulation.vectors(c)  # each (N, 1, D)
            x = modulate(x, shift, scale)
        x = self.linear(x)  # (N, T, outputs)
        return x
