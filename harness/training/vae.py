"""Autoencoders at work: images to moments, latents to images, and a small trainer for the data at hand.

The networks are diffusers' `AutoencoderKL` (Rombach et al. 2022, section 3.1; here without adversary and perceptual
loss). Training is exact in resuming, as that of a cell is: everything random is a function of (seed, step).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from harness.data import autoencoders
from harness.data.batches import PixelBatches
from harness.data.dataset import Dataset
from harness.data.draws import sample_indices, stream
from harness.data.vae import Autoencoder, build
from harness.errors import NonFiniteLossError
from harness.files import write_atomic, write_json
from harness.spec.data import Data, TrainedVae
from harness.training import checkpoint
from harness.training.hooks import Hooks, StoppedError

_STATE = "state.safetensors"


def train_vae(
    data: Data,
    dataset: Dataset,
    folder: Path,
    *,
    device: str,
    conditions: dict[str, Any],
    measure: Callable[[Autoencoder], dict[str, Any]],
    checkpoint_seconds: float,
    hooks: Hooks,
) -> dict[str, Any]:
    """Train the autoencoder that `data` names and leave a diffusers folder with a card; the caller holds the folder.

    AdamW with a rate that falls to 0 along a cosine; loss: mean absolute error a value, plus `kl_weight` times the mean
    Kullback-Leibler divergence a latent value. Half of the images are mirrored, as both ways are encoded.

    Args:
        data: names a `TrainedVae`.
        dataset: the images.
        folder: where it goes; a state in it is resumed.
        device: "cpu" or "cuda".
        conditions: what decides the bits; for the card.
        measure: how well the trained autoencoder reconstructs; for the card.
        checkpoint_seconds: time between states.
        hooks: see `harness.training.hooks.Hooks`.

    Returns:
        The card.

    Raises:
        NonFiniteLossError: the loss became non-finite.
        StoppedError: asked to stop; the state is written.
    """
    spec = data.vae
    assert isinstance(spec, TrainedVae)
    network = build(spec, data.image_shape).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=spec.learning_rate, weight_decay=0.0, fused=True)
    step, earlier = _resume(network, optimizer, folder / _STATE)
    images = PixelBatches(dataset.train, device)
    begun = last = time.monotonic()
    first = step
    while step < spec.steps:
        loss = _train_step(network, optimizer, spec, images, step)
        step += 1
        moment = time.monotonic()
        seconds = earlier + moment - begun
        stop = hooks.should_stop() and step < spec.steps
        if stop or moment - last >= checkpoint_seconds or step == spec.steps:
            _save(network, optimizer, folder / _STATE, step, seconds)
            last = time.monotonic()
        if stop:
            raise StoppedError(f"stopped at step {step} of {spec.steps}; the same command goes on from there")
        speed = (step - first) * spec.batch_size / max(moment - begun, 1e-9)
        hooks.report({"stage": "train-vae", "done": step, "total": spec.steps, "loss": loss, "images_per_s": speed})
        earlier_seconds = seconds
    trained = earlier_seconds if first < spec.steps else earlier
    _write_diffusers(network, folder)
    card = {
        "id": folder.name.rpartition("-")[2],
        "data": autoencoders.describe(data),
        "fingerprint": dataset.fingerprint,
        "weights": autoencoders.weights_hash(folder),
        "parameters": sum(p.numel() for p in network.parameters()),
        "train_seconds": round(trained, 1),
        "conditions": conditions,
        "reconstruction": measure(Autoencoder(network, device)),
    }
    write_json(folder / autoencoders.CARD, card)  # last: it says that the rest is whole
    (folder / _STATE).unlink(missing_ok=True)
    return card


def _train_step(network: Any, optimizer: torch.optim.AdamW, spec: TrainedVae, images: PixelBatches, step: int) -> float:
    """One step; returns the loss."""
    indices = sample_indices(spec.seed, step, spec.batch_size, len(images.labels))
    mirror = stream("vae-flip", spec.seed, step).random(spec.batch_size) < 0.5
    x = images.x0(indices, mirror, stream("none"))  # (N, C, H, W)
    posterior = network.encode(x).latent_dist
    noise = stream("vae-noise", spec.seed, step).standard_normal(tuple(posterior.mean.shape), dtype=np.float32)
    z = posterior.mean + posterior.std * torch.from_numpy(noise).to(x.device)
    error = F.l1_loss(network.decode(z).sample, x)
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss = error + spec.kl_weight * divergence
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteLossError(
            f"the autoencoder's loss became {value} at step {step + 1}; lower data.vae.learning_rate"
        )
    for group in optimizer.param_groups:
        group["lr"] = spec.learning_rate * (0.5 + 0.5 * math.cos(math.pi * step / spec.steps))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return value


def _save(network: Any, optimizer: torch.optim.AdamW, path: Path, step: int, seconds: float) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{key}"] = value
    checkpoint.save(path, tensors, {"step": step, "seconds": seconds})


def _resume(network: Any, optimizer: torch.optim.AdamW, path: Path) -> tuple[int, float]:
    """Step and seconds of the state at `path`, taken over; 0 and 0 without a whole one."""
    try:
        tensors, meta = checkpoint.load(path)
    except FileNotFoundError:
        return 0, 0.0
    except checkpoint.CorruptCheckpointError as error:
        print(f"removed a corrupt checkpoint, beginning anew: {error}", flush=True)
        path.unlink()
        return 0, 0.0
    network.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for name, parameter in network.named_parameters():
        prefix = f"optimizer.{name}."
        optimizer.state[parameter] = {
            k.removeprefix(prefix): v.clone() if k == f"{prefix}step" else v.to(parameter.device)
            for k, v in tensors.items()
            if k.startswith(prefix)
        }
    return int(meta["step"]), float(meta["seconds"])


def _write_diffusers(network: Any, folder: Path) -> None:
    """Write `config.json` and the weights, each whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=".diffusers-", dir=folder) as temporary:
        network.save_pretrained(temporary, safe_serialization=True)
        for name in (autoencoders.CONFIG, autoencoders.WEIGHTS):
            content = (Path(temporary) / name).read_bytes()
            write_atomic(folder / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
