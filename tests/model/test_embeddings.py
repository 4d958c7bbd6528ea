"""Patches, positions and timesteps against formulas written out anew."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from harness.model.embeddings import PatchEmbedding, TimestepEmbedding, sincos_positions, unpatchify


@pytest.mark.parametrize(("side", "width"), [(1, 4), (3, 8), (5, 20), (16, 384)])
def test_positions_follow_the_formula(side: int, width: int) -> None:
    table = sincos_positions(side, width)
    assert table.shape == (side * side, width)
    assert table.dtype == torch.float32
    quarter = width // 4
    expected = torch.empty(side * side, width, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for i in range(quarter):
                omega = 1 / 10000 ** (i / quarter)
                parts = (
                    math.sin(column * omega),
                    math.cos(column * omega),
                    math.sin(row * omega),
                    math.cos(row * omega),
                )
                for part, value in enumerate(parts):
                    expected[row * side + column, part * quarter + i] = value
    torch.testing.assert_close(table, expected.float(), rtol=0, atol=1e-7)


def test_positions_of_the_first_half_encode_the_column() -> None:
    table = sincos_positions(4, 16).view(4, 4, 16)  # row, column, channel
    assert (table[:, :, :8] == table[:1, :, :8]).all()
    assert (table[:, :, 8:] == table[:, :1, 8:]).all()
    assert not (table[:, :, 8:] == table[:1, :, 8:]).all()


@pytest.mark.parametrize(("channels", "size", "patch_size"), [(1, 8, 2), (3, 9, 3), (4, 5, 5), (2, 7, 1)])
def test_patch_embedding_is_the_strided_convolution(channels: int, size: int, patch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = PatchEmbedding(channels, patch_size, 12)
    with torch.no_grad():
        embedding.weight.normal_(generator=generator)
        embedding.bias.normal_(generator=generator)
    x = torch.randn(2, channels, size, size, generator=generator)
    expected = F.conv2d(x, embedding.weight, embedding.bias, stride=patch_size).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embedding(x), expected, rtol=1e-5, atol=1e-5)
    # a transposed view is as good as a contiguous image
    expected = F.conv2d(x.mT.contiguous(), embedding.weight, embedding.bias, stride=patch_size)
    torch.testing.assert_close(embedding(x.mT), expected.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_unpatchify_puts_every_value_where_it_belongs() -> None:
    side, p, channels = 3, 2, 5
    tokens = torch.arange(side * side * p * p * channels).view(1, side * side, -1)
    image = unpatchify(tokens, p)
    assert image.shape == (1, channels, side * p, side * p)
    for c in range(channels):
        for row in range(side * p):
            for column in range(side * p):
                token = (row // p) * side + column // p
                inside = ((row % p) * p + column % p) * channels + c
                assert image[0, c, row, column] == tokens[0, token, inside]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_timestep_sinusoids(dtype: torch.dtype) -> None:
    embedding = TimestepEmbedding(8)
    seen = []
    embedding.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    timesteps = torch.tensor([0, 1, 7, 250, 999], dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert embedding(timesteps).shape == (5, 8)
    (sinusoids,) = seen
    assert sinusoids.dtype == torch.float32
    assert sinusoids.shape == (5, 256)
    for n, t in enumerate(timesteps.tolist()):
        for i in (0, 1, 64, 127):
            angle = t * 10000 ** (-i / 128)
            assert sinusoids[n, i].item() == pytest.approx(math.cos(angle), abs=1e-4)
            assert sinusoids[n, 128 + i].item() == pytest.approx(math.sin(angle), abs=1e-4)
