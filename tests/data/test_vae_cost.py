"""What autoencoders and feature extractors cost, against a count of the network itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import inception_v3

from harness.data.vae import build
from harness.data.vae_cost import VaeCost, vae_cost
from harness.evaluation.classifier import ARCHITECTURES, Classifier
from harness.spec.data import Data, TrainedVae
from harness.spec.evaluation import EXTRACTORS


def counted(network: Any, data: Data) -> VaeCost:
    images, latents = data.image_shape, data.shape
    network = network.to("meta")
    x = torch.zeros(1, images.channels, images.size, images.size, device="meta")
    z = torch.zeros(1, latents.channels, latents.size, latents.size, device="meta")
    with FlopCounterMode(display=False) as encoding:
        network.encode(x)
    with FlopCounterMode(display=False) as decoding:
        network.decode(z)
    return VaeCost(encoding.get_total_flops() // 2, decoding.get_total_flops() // 2)


@pytest.mark.parametrize("factor", [2, 4])
def test_one_trained_here_costs_what_is_counted(factor: int) -> None:
    vae = {"kind": "trained", "factor": factor, "channels": 3, "width": 8}
    data = Data.model_validate({"name": "fashion-mnist", "vae": vae})
    assert isinstance(data.vae, TrainedVae)
    assert vae_cost(data) == counted(build(data.vae, data.image_shape), data)


def test_a_pretrained_one_costs_what_stable_diffusion_s_does() -> None:
    from diffusers import AutoencoderKL

    vae = {"kind": "pretrained", "name": "stabilityai/sd-vae-ft-mse"}
    data = Data.model_validate({"name": "imagenet", "resolution": 64, "vae": vae})
    with torch.device("meta"):
        network = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    assert vae_cost(data) == counted(network, data)
    assert vae_cost(Data()) == VaeCost(0, 0)


@pytest.mark.parametrize("name", ["digits-cnn", "fashion-cnn", "inception-v3-compat"])
def test_extractors_cost_what_their_facts_say(name: str) -> None:
    if name in ARCHITECTURES:
        shape = ARCHITECTURES[name].shape
        network, size, channels = Classifier(ARCHITECTURES[name]).to("meta"), shape.size, shape.channels
    else:  # torchvision's has the same convolutions
        with torch.device("meta"):
            network, size, channels = inception_v3(weights=None, aux_logits=False, init_weights=False), 299, 3
    with FlopCounterMode(display=False) as counting:
        network.eval()(torch.zeros(1, channels, size, size, device="meta"))
    assert counting.get_total_flops() / 2e9 == pytest.approx(EXTRACTORS.facts(name).gmacs, rel=0.1)
