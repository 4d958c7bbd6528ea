"""The autoencoder: building it from a recipe, loading it from a folder, encoding and decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.data import autoencoders
from harness.data.latents import open_latents
from harness.data.pixels import to_model
from harness.errors import InputError, first_line
from harness.model.formats import require_finite
from harness.runs.study import Shared
from harness.spec.data import Data, InputShape, TrainedVae

#: Latents decoded at once: a 512 px image takes about 1 GB. Fixed, because it changes the last bits.
DECODE_BATCH = 25


class Autoencoder:
    """A diffusers `AutoencoderKL` in evaluation mode, for arrays of images and scaled latents."""

    def __init__(self, network: Any, device: str) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self._device = device

    @classmethod
    def load(cls, folder: Path, device: str) -> Autoencoder:
        """Read a diffusers folder, from safetensors only: nothing is unpickled.

        Raises:
            InputError: it cannot be read, or its weights are not finite.
        """
        read = _architecture().from_pretrained
        try:
            network = read(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
        except Exception as error:  # diffusers raises errors of many kinds
            raise InputError(f"{folder}: no readable AutoencoderKL ({first_line(error)})") from error
        require_finite(network.state_dict(), str(folder))
        return cls(network.float(), device)

    @torch.inference_mode()
    def moments(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Images (n, H, W, channels) -> mean and standard deviation of their latents, (n, 2, C, S, S), unscaled."""
        x = to_model(torch.from_numpy(images).to(self._device))
        posterior = self.network.encode(x.contiguous()).latent_dist
        both: NDArray[np.float32] = torch.stack((posterior.mean, posterior.std), dim=1).cpu().numpy()
        return both

    @torch.inference_mode()
    def decode(self, latents: Tensor, scaling: float) -> Tensor:
        """Scaled latents (N, C, S, S) -> images (N, channels, H, W), in about [-1, 1], in batches."""
        parts = [self.network.decode(part / scaling).sample for part in torch.split(latents, DECODE_BATCH)]
        return torch.cat(parts)


def _architecture() -> Any:
    """AutoencoderKL; diffusers is slow to import, and has no types."""
    from diffusers import AutoencoderKL

    return AutoencoderKL


def decoder(data: Data, shared: Shared, device: str) -> Callable[[Tensor], Tensor]:
    """A function that turns the model's output, pixels or latents of `data`, into images.

    Raises:
        InputError: the autoencoder is missing, or another one made the latents.
    """
    if data.vae is None:
        return lambda x: x
    latents = open_latents(data, shared)
    folder = autoencoders.find(data, shared, "SWEEP")
    found = autoencoders.weights_hash(folder)
    if found != latents.weights:
        raise InputError(f"{folder}: not the VAE that made the latents (weights {found}, theirs {latents.weights})")
    autoencoder = Autoencoder.load(folder, device)
    return lambda x: autoencoder.decode(x, latents.scaling)


def build(spec: TrainedVae, shape: InputShape) -> Any:
    """The untrained network of a recipe: residual blocks of convolutions, no attention. The seed decides the weights.

    It has `width` channels at full resolution, and twice as many after every halving. At full resolution each group of
    a group norm has four channels: a group of one would lose the mean of its channel, the brightness.
    """
    levels = int(math.log2(spec.factor)) + 1
    with torch.random.fork_rng(devices=[]):  # diffusers draws from the global generator
        torch.manual_seed(spec.seed)
        network: Any = _architecture()
        return network(
            in_channels=shape.channels,
            out_channels=shape.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(spec.width * 2**level for level in range(levels)),
            layers_per_block=1,
            latent_channels=spec.channels,
            norm_num_groups=max(1, math.gcd(spec.width, 128) // 4),
            sample_size=shape.size,
            mid_block_add_attention=False,
            scaling_factor=1.0,  # measured when the data is encoded, and recorded there
            force_upcast=False,
        )
