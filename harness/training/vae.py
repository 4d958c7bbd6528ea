"""A small trainer of autoencoders for a sweep's own images.

The networks are diffusers' `AutoencoderKL` (Rombach et al. 2022, section 3.1; here without adversary and perceptual
loss). As for a cell, a resumed training gives the same bits: everything random is a function of (seed, step).
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
from harness.data.dataset import LoadedData
from harness.data.draws import sample_indices, stream
from harness.data.vae import Autoencoder, build
from harness.errors import NonFiniteError, non_finite_in
from harness.files import write_atomic, write_json
from harness.spec.data import Data, TrainedVae
from harness.training import checkpoint
from harness.training.adamw import AdamW
from harness.training.cadence import Cadence
from harness.training.conditions import NumericConditions
from harness.training.hooks import Hooks, StoppedError
from harness.training.state import State

_STATE = "state.safetensors"


def train_vae(
    data: Data,
    dataset: LoadedData,
    folder: Path,
    *,
    device: str,
    conditions: NumericConditions,
    measure: Callable[[Autoencoder], dict[str, Any]],
    checkpoint_seconds: float | None,
    hooks: Hooks,
) -> dict[str, Any]:
    """Train the autoencoder that `data` names and leave a diffusers folder with a card; the caller holds the folder.

    The optimiser is AdamW; its rate falls to 0 along a cosine. The loss is the mean absolute error per pixel value plus
    `kl_weight` times the mean Kullback-Leibler divergence per latent value. Half of the images are mirrored, because
    mirror images are encoded too.

    Args:
        data: names a `TrainedVae`.
        dataset: the images.
        folder: where it goes; a state in it is resumed.
        device: "cpu" or "cuda".
        conditions: what decides the last bits; for the card.
        measure: how well the trained autoencoder reconstructs; for the card.
        checkpoint_seconds: time between states, see `harness.training.cadence`.
        hooks: see `harness.training.hooks.Hooks`.

    Returns:
        The card.

    Raises:
        NonFiniteError: the loss or the weights became non-finite, or what the autoencoder makes of images.
        StoppedError: asked to stop; the state is written.
    """
    spec = data.vae
    assert isinstance(spec, TrainedVae)
    network = build(spec, data.image_shape).to(device).train()
    optimizer = AdamW(network.parameters(), lr=spec.learning_rate)
    state = State(network, optimizer, data.encoding_id)
    if found := checkpoint.newest([folder / _STATE], lambda _, meta: meta.get("cell", state.owner) == state.owner):
        state.load(found)
    images = PixelBatches(dataset.train, device)
    begun, cadence = time.monotonic(), Cadence(checkpoint_seconds)
    first, earlier = state.step, state.seconds
    while state.step < spec.steps:
        loss = _train_step(state, spec, images)
        moment = time.monotonic()
        state.seconds = earlier + moment - begun
        stop = hooks.should_stop() and state.step < spec.steps
        if stop or cadence.is_due(state.seconds) or state.step == spec.steps:
            with non_finite_in(f"the autoencoder after step {state.step} (lower data.vae.learning_rate)"):
                state.save(folder / _STATE)
            cadence.saved(time.monotonic() - moment)
        if stop:
            raise StoppedError(f"stopped at step {state.step} of {spec.steps}; the same command goes on from there")
        speed = (state.step - first) * spec.batch_size / max(moment - begun, 1e-9)
        hooks.report(
            {"stage": "train-vae", "done": state.step, "total": spec.steps, "loss": loss, "images_per_s": speed}
        )
    _write_diffusers(network, folder)
    card = {
        "id": state.owner,
        "data": autoencoders.describe(data),
        "fingerprint": dataset.fingerprint,
        "weights": autoencoders.weights_hash(folder),
        "parameters": sum(p.numel() for p in network.parameters()),
        "train_seconds": round(state.seconds, 1),
        "conditions": conditions,
        "reconstruction": measure(Autoencoder(network, device)),
    }
    write_json(folder / autoencoders.CARD, card)  # last: it says that the rest is whole
    (folder / _STATE).unlink(missing_ok=True)
    return card


def _train_step(state: State, spec: TrainedVae, images: PixelBatches) -> float:
    """One step; returns the loss."""
    network, optimizer, step = state.network, state.optimizer, state.step
    indices = sample_indices(spec.seed, step, spec.batch_size, len(images.labels))
    mirror = stream("vae-flip", spec.seed, step).random(spec.batch_size) < 0.5
    x = images.x0(indices, mirror, None)  # (N, C, H, W)
    posterior = network.encode(x).latent_dist
    noise = stream("vae-noise", spec.seed, step).standard_normal(tuple(posterior.mean.shape), dtype=np.float32)
    z = posterior.mean + posterior.std * torch.from_numpy(noise).to(x.device)
    error = F.l1_loss(network.decode(z).sample, x)
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    loss = error + spec.kl_weight * divergence
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteError(f"the autoencoder's loss became {value} at step {step + 1}; lower data.vae.learning_rate")
    optimizer.lr = spec.learning_rate * (0.5 + 0.5 * math.cos(math.pi * step / spec.steps))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    state.step += 1
    return value


def _write_diffusers(network: Any, folder: Path) -> None:
    """Write `config.json` and the weights, each whole or not at all."""
    with tempfile.TemporaryDirectory(prefix=".diffusers-", dir=folder) as temporary:
        network.save_pretrained(temporary, safe_serialization=True)
        for name in (autoencoders.CONFIG, autoencoders.WEIGHTS):
            content = (Path(temporary) / name).read_bytes()
            write_atomic(folder / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
