"""Files in the formats of what is published, with random numbers in them: Inception, ADM's reference, decoder, DiT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as network

from harness.evaluation import adm
from harness.model.dit import DiT
from harness.model.official import write_official
from harness.spec.data import InputShape
from harness.spec.model import DiTSpec


def write_random_inception(path: Path) -> Path:
    """A file like that of FID's Inception."""
    state: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(network, "load_state_dict_from_url", lambda *_, **__: {})
        extractor: Any = network.FeatureExtractorInceptionV3
        patch.setattr(extractor, "load_state_dict", lambda self, _: state.update(self.state_dict()))
        extractor("any", ["2048"])
    torch.save(state, path)
    return path


def write_random_reference(path: Path, size: int, images: int = 6) -> Path:
    """A reference of the ADM suite for images of this size."""
    arrays: dict[str, Any] = {}
    for name, shape in adm.STATISTICS.items():
        arrays[name] = np.eye(shape[0], dtype=np.float32) if len(shape) == 2 else np.zeros(shape, dtype=np.float32)
    arrays[adm.IMAGES] = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    np.savez(path, **arrays)
    return path


def write_random_decoder(folder: Path, width: int = 8) -> Path:
    """A diffusers folder of an autoencoder with Stable Diffusion's shape: factor 8, four latent channels."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(width,) * 4,
            norm_num_groups=4,
            latent_channels=4,
            mid_block_add_attention=False,
        )
    autoencoder.save_pretrained(folder)
    return folder


def write_random_dit(path: Path, model: DiTSpec, shape: InputShape, seed: int = 0) -> Path:
    """An official checkpoint; unlike at the start of a training, no weights are zero."""
    dit = DiT(model, shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    write_official(dit, path)
    return path
