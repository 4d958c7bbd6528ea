"""A picture of samples from the weights of a cell, or from weights that `dit-harness import` made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from harness.data import autoencoders
from harness.data.pixels import require_finite_values, to_uint8
from harness.data.vae import Autoencoder, decoder
from harness.errors import InputError, NonFiniteError
from harness.evaluation.export import require_new, trained_network
from harness.evaluation.generate import Decode, draw, streams_of
from harness.evaluation.pictures import save_picture
from harness.model.dit import DiT
from harness.model.network import Network
from harness.runs.cellruns import CellRun
from harness.runs.study import Shared
from harness.spec.data import Data, InputShape, PretrainedVae
from harness.spec.diffusion import AnyDiffusion, DiffusionSpec
from harness.spec.evaluation import Evaluation
from harness.spec.model import DiTSpec
from harness.training import checkpoint

_DIFFUSION: TypeAdapter[DiffusionSpec] = TypeAdapter(AnyDiffusion)

#: Samples made at once. Fixed, because it changes the last bits.
_BATCH = 25


@dataclass(frozen=True)
class Sampler:
    """A network that can be sampled.

    Attributes:
        network: on its device.
        diffusion: what it predicts.
        decode: turns latents into images; pixels stay as they are.
        has_null_class: whether it was trained without labels, too, which guidance needs.
    """

    network: Network
    diffusion: DiffusionSpec
    decode: Decode
    has_null_class: bool = True

    @classmethod
    def of_cell(cls, item: CellRun, shared: Shared, *, step: int | None, ema: bool) -> Sampler:
        """The weights of a trained cell; by default those of the last step.

        Raises:
            InputError: there are no such weights, or the autoencoder is missing.
        """
        cell, device = item.cell, _device()
        network = trained_network(item.run, cell, step or cell.training.steps, ema=ema, device=device, name=item.name)
        decode = decoder(cell.data, shared, device)
        return cls(network, cell.diffusion, decode, cell.training.label_dropout > 0)

    @classmethod
    def of_checkpoint(cls, path: Path, shared: Shared, *, vae: str | None) -> Sampler:
        """Weights that `dit-harness import` wrote.

        Args:
            path: the file.
            shared: the folder of autoencoders.
            vae: folder or hub name of the autoencoder, where the model learned latents.

        Raises:
            InputError: the file is none of `import`, or damaged; the autoencoder is missing or does not fit.
        """
        try:
            tensors, meta = checkpoint.load(path)
            model, shape = DiTSpec.model_validate(meta["model"]), InputShape(**meta["input"])
            diffusion = _DIFFUSION.validate_python(meta.get("diffusion", {}))
            network = DiT(model, shape)
            network.load_state_dict(checkpoint.part(tensors, "ema."))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except checkpoint.CorruptCheckpointError as error:
            raise InputError(f"{error}; the file is damaged") from None
        except (KeyError, TypeError, ValidationError, RuntimeError):
            allowed = "allowed: a file that dit-harness import made; for a run of this harness: sample STUDY CELL"
            raise InputError(f"{path}: does not say its model; {allowed}") from None
        device = _device()
        network = network.to(device).eval().requires_grad_(False)
        return cls(network, diffusion, _decoder(shape, shared, vae, device))

    def check(self, evaluation: Evaluation, label: int | None) -> None:
        """Check what is asked for.

        Raises:
            InputError: the network or its objective cannot do it; one line that says what is allowed.
        """
        shape = self.network.shape
        try:
            self.diffusion.check_sampling(evaluation.sampler, evaluation.sampling_steps)
            evaluation.guided_channels(shape.channels)
        except ValueError as error:
            raise InputError(str(error)) from None
        if label is not None and not 0 <= label < shape.classes:
            allowed = f"0 to {shape.classes - 1}" if shape.classes else "none: the model has no classes"
            raise InputError(f"--class: {label}; allowed: {allowed}")
        if not math.isfinite(evaluation.guidance):
            raise InputError(f"--guidance: {evaluation.guidance}; allowed: a finite number of at least 0")
        if evaluation.guidance != 1 and not (shape.classes and self.has_null_class):
            why = "the model has no classes" if not shape.classes else "training.label_dropout was 0"
            raise InputError(f"--guidance: {evaluation.guidance:g}; allowed: 1, since {why}")

    def images(
        self, evaluation: Evaluation, label: int | None, progress: Callable[[int, int], None]
    ) -> NDArray[np.uint8]:
        """Images (N, H, W, channels); each is a function of the weights, the seed and its index.

        Args:
            evaluation: how to sample, and how many.
            label: their class; None: the classes in turn.
            progress: called with the samples done and all of them.

        Raises:
            InputError: see `check`; or samples hold values that are not finite.
        """
        self.check(evaluation, label)
        shape, device = self.network.shape, next(self.network.parameters()).device
        made = []
        for first in range(0, evaluation.samples, _BATCH):
            count = min(_BATCH, evaluation.samples - first)
            y = None
            if shape.classes:
                index = torch.arange(first, first + count, device=device)
                y = index % shape.classes if label is None else torch.full_like(index, label)

            def step(done: int, first: int = first, count: int = count) -> None:
                progress(first + count * done // evaluation.sampling_steps, evaluation.samples)

            streams = streams_of(evaluation, first, count, shape)
            x0 = draw(self.network, self.diffusion, evaluation, streams, y, step)
            try:
                require_finite_values(x0, "samples", first)
                levels = to_uint8(self.decode(x0), "decoded samples", first)
            except NonFiniteError as error:
                raise InputError(f"{error}; the weights are of no use") from None
            made.append(levels.permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(made)


def write_samples(
    sampler: Sampler, evaluation: Evaluation, label: int | None, output: Path, progress: Callable[[int, int], None]
) -> None:
    """Write a picture of `evaluation.samples` images, as nearly square as it can be.

    Raises:
        InputError: `output` exists or is no PNG, or as `Sampler.images`; nothing is written.
    """
    if output.suffix.lower() != ".png":
        raise InputError(f"--output: {output}; allowed: a .png file")
    require_new(output)
    images = sampler.images(evaluation, label, progress)
    columns = math.ceil(math.sqrt(len(images)))
    rows = [np.arange(first, min(first + columns, len(images))) for first in range(0, len(images), columns)]
    save_picture(output, images, rows, columns)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _decoder(shape: InputShape, shared: Shared, vae: str | None, device: str) -> Decode:
    """The decoder of an imported model, whose file does not say what it learned: pixels have one or three channels."""
    if vae is None and shape.channels in (1, 3):
        return lambda x0: x0
    if vae is None:
        raise InputError(
            f"--vae: the model makes latents of {shape.channels} channels; name its autoencoder, a folder or a name on "
            "the hub such as stabilityai/sd-vae-ft-mse"
        )
    spec = PretrainedVae(kind="pretrained", name=vae, channels=shape.channels)
    data = Data(name="imagenet", resolution=shape.size * spec.factor, vae=spec)
    autoencoder = Autoencoder.load(autoencoders.find(data, shared, "SWEEP", download=True), device)
    return lambda x0: autoencoder.decode(x0, float(spec.scaling))
