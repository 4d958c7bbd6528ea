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
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from harness import checkpoint
from harness.cell import Data, Evaluation, InputShape, TrainedVae
from harness.data import autoencoders
from harness.data.batches import PixelBatches, to_model
from harness.data.latents import open_latents
from harness.data.order import sample_indices, stream
from harness.data.sources import Dataset, Images
from harness.diffusion.sampling import to_uint8
from harness.errors import InputError, NonFiniteLossError
from harness.evaluation.features import Extractor
from harness.evaluation.frechet import FrechetTarget
from harness.evaluation.references import moments_of
from harness.files import write_atomic, write_json
from harness.runs import Shared
from harness.train import Hooks, StoppedError

#: Latents decoded at once: a 512 px image takes the decoder about a GB. A part of the arithmetic, so it is fixed.
DECODE_BATCH = 25

_STATE = "state.safetensors"


class Autoencoder:
    """A diffusers `AutoencoderKL` in evaluation mode, for arrays of images and scaled latents."""

    def __init__(self, network: Any, device: str) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self._device = device

    @classmethod
    def load(cls, folder: Path, device: str) -> Autoencoder:
        """Read a diffusers folder (safetensors only, nothing is unpickled).

        Raises:
            InputError: it cannot be read.
        """
        network: Any = AutoencoderKL
        try:
            network = network.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
        except Exception as error:  # diffusers lets all sorts of things through
            raise InputError(f"{folder}: no readable AutoencoderKL ({str(error).splitlines()[0]})") from error
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


def decoder(data: Data, shared: Shared, device: str) -> Callable[[Tensor], Tensor]:
    """What turns the latents of `data` into images.

    Raises:
        InputError: the autoencoder is missing, or not the one that made the latents.
    """
    latents = open_latents(data, shared)
    folder = autoencoders.find(data, shared, "SWEEP")
    found = autoencoders.weights_hash(folder)
    if found != latents.weights:
        raise InputError(f"{folder}: not the VAE that made the latents (weights {found}, theirs {latents.weights})")
    autoencoder = Autoencoder.load(folder, device)
    return lambda x: autoencoder.decode(x, latents.scaling)


def build(spec: TrainedVae, shape: InputShape) -> Any:
    """The network of a recipe with weights as its seed draws them: convolutions with residual blocks, no attention.

    `width` channels at full resolution, doubled at every halving. The norms' groups hold four channels there: one
    channel alone would lose its brightness.
    """
    levels = int(math.log2(spec.factor)) + 1
    with torch.random.fork_rng(devices=[]):  # diffusers draws from the global generator
        torch.manual_seed(spec.seed)
        network: Any = AutoencoderKL  # diffusers has no types
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


def train_vae(
    data: Data,
    dataset: Dataset,
    folder: Path,
    *,
    device: str,
    conditions: dict[str, Any],
    evaluations: tuple[Evaluation, ...],
    checkpoint_seconds: float,
    hooks: Hooks,
    inception_weights: str | None = None,
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
        evaluations: in whose feature spaces the reconstructions are measured.
        checkpoint_seconds: time between states.
        hooks: see `harness.train.Hooks`.
        inception_weights: see `harness.evaluation.metrics.score`.

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
    autoencoder = Autoencoder(network, device)
    card = {
        "id": folder.name.rpartition("-")[2],
        "data": autoencoders.describe(data),
        "fingerprint": dataset.fingerprint,
        "weights": autoencoders.weights_hash(folder),
        "parameters": sum(p.numel() for p in network.parameters()),
        "train_seconds": round(trained, 1),
        "conditions": conditions,
        "reconstruction": reconstruction(autoencoder, data, dataset, evaluations, device, hooks, inception_weights),
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


def reconstruction(
    autoencoder: Autoencoder,
    data: Data,
    dataset: Dataset,
    evaluations: tuple[Evaluation, ...],
    device: str,
    hooks: Hooks,
    inception_weights: str | None = None,
) -> dict[str, Any]:
    """How well held-out images survive encoding (to the mean) and decoding: a bound on what any model can reach.

    Returns:
        `samples`; `mean_absolute_error` in levels of 0..255; `psnr` in dB; `distances`: by extractor label, the
        Frechet distance of the reconstructions to their own originals (`held-out`, usually called rFD or rFID) and to
        the training images (`train`), and of the originals to the training images (`floor`).
    """
    images: Images = dataset.heldout
    rebuilt, absolute, squared, total = [], 0.0, 0.0, len(images.images)
    begun = time.monotonic()
    for first in range(0, total, DECODE_BATCH):
        batch = np.asarray(images.images[np.arange(first, min(first + DECODE_BATCH, total))])
        mean = torch.from_numpy(autoencoder.moments(batch)[:, 0]).to(device)
        decoded = to_uint8(autoencoder.decode(mean, 1.0)).permute(0, 2, 3, 1).cpu().numpy()
        difference = decoded.astype(np.float64) - batch
        absolute, squared = absolute + np.abs(difference).sum(), squared + (difference**2).sum()
        rebuilt.append(decoded)
        done = first + len(batch)
        speed = done / max(time.monotonic() - begun, 1e-9)
        hooks.report({"stage": "reconstruct", "done": done, "total": total, "images_per_s": speed})
    values = total * math.prod(batch.shape[1:])
    return {
        "samples": total,
        "mean_absolute_error": round(float(absolute) / values, 4),
        "psnr": round(10 * math.log10(255**2 * values / float(squared)), 3) if squared else None,
        "distances": _distances(np.concatenate(rebuilt), data, dataset, evaluations, device, inception_weights),
    }


def _distances(
    rebuilt: NDArray[np.uint8],
    data: Data,
    dataset: Dataset,
    evaluations: tuple[Evaluation, ...],
    device: str,
    inception_weights: str | None,
) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for name in sorted({e.resolved(data).extractor or "" for e in evaluations} - {""}):
        extractor = Extractor(name, device, inception_weights)
        decoded, heldout, train = (
            moments_of(images, extractor) for images in (rebuilt, dataset.heldout.images, dataset.train.images)
        )
        to_heldout, to_train = (FrechetTarget(real.mean, real.covariance) for real in (heldout, train))
        out[extractor.label] = {
            "held-out": to_heldout.terms_of(decoded).distance,
            "train": to_train.terms_of(decoded).distance,
            "floor": to_train.terms_of(heldout).distance,
        }
    return out
