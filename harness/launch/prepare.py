"""What must exist before a sweep on latents can be launched: trained autoencoders, and images encoded by them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data import autoencoders
from harness.data.dataset import LoadedData, Source
from harness.data.sources import load
from harness.errors import InputError
from harness.files import read_json, write_json
from harness.launch.extractors import train_extractors, wanted_extractors
from harness.launch.machine import own_device
from harness.launch.view import Say
from harness.processes import exclusive
from harness.runs.study import Shared, Study
from harness.spec.data import Data, TrainedVae
from harness.spec.evaluation import ExtractorChoice
from harness.spec.extension import Extension
from harness.spec.resources import Resources
from harness.training.hooks import Hooks
from sweeps.grid import Sweep

if TYPE_CHECKING:
    from harness.evaluation.features import Extraction
    from harness.training.conditions import NumericConditions


@dataclass(frozen=True)
class Latent:
    """A data set that a sweep sees through an autoencoder, and what it is encoded and measured with.

    Attributes:
        data: names the images and the autoencoder.
        extractors: those that measure the sweep's cells.
        resources: of the sweep.
        results: the folder that holds the studies, and what they share.
        sweep: its file, for error messages.
        extensions: the user's own files that the sweep names.
    """

    data: Data
    extractors: tuple[ExtractorChoice, ...]
    resources: Resources
    results: str
    sweep: str
    extensions: tuple[Extension, ...]

    def __getstate__(self) -> dict[str, Any]:
        """The fields, the user's files first: unpickling loads them before the data that uses them."""
        return {"extensions": self.extensions, **vars(self)}

    @property
    def shared(self) -> Shared:
        """What the studies share."""
        return Shared(Path(self.results))

    def extractions(self, device: str) -> list[Extraction]:
        """Its extractors on a device.

        Raises:
            InputError: the weights of one are not there.
        """
        from harness.evaluation.extractors import weights_of
        from harness.evaluation.features import Extraction

        return [
            Extraction(one, device, weights_of(one, self.data, self.resources, self.shared)) for one in self.extractors
        ]

    @property
    def name(self) -> str:
        """Of the folders of the latents and of an autoencoder that is trained."""
        return self.data.encoding_name


def latent_data(sweep: Sweep, study: Study) -> list[Latent]:
    """Every data set that the sweep sees through an autoencoder, once.

    Raises:
        InputError: the sweep learns pixels only.
    """
    found: dict[str, Latent] = {}
    for _, cell in sweep.cells():
        if cell.data.vae is not None:
            chosen = {evaluation.extractor for evaluation in sweep.evaluations_of(cell) if evaluation.extractor}
            extractors = tuple(sorted(chosen, key=str))
            data, results = cell.data.encoded, str(study.root)
            latent = Latent(data, extractors, sweep.resources, results, str(sweep.path), sweep.extensions)
            found.setdefault(latent.name, latent)
    if not found:
        raise InputError(f"{sweep.path}: data.vae is not set: this sweep learns pixels and needs nothing encoded")
    return list(found.values())


def train_vaes(sweep: Sweep, study: Study, hooks: Hooks, say: Say) -> None:
    """Train every autoencoder of the sweep that is not there yet; resume what was interrupted.

    Raises:
        InputError: nothing to train; the data is not there; another process trains it just now.
        StoppedError: asked to stop; the state is written.
        CellFailedError: a loss became non-finite.
    """
    wanted = [latent for latent in latent_data(sweep, study) if isinstance(latent.data.vae, TrainedVae)]
    if not wanted:
        raise InputError(
            f"{sweep.path}: data.vae is pretrained: nothing to train; next: dit-harness encode {sweep.path}"
        )
    train_extractors(sweep, study, wanted_extractors(sweep), hooks, say)  # they measure the autoencoder, too
    for latent in wanted:
        data, shared = latent.data, latent.shared
        folder = shared.vae_folder(latent.name)
        with exclusive(folder, "dit-harness train-vae"):
            card = autoencoders.card_of(data, shared)
            if card is not None:
                autoencoders.find(data, shared, latent.sweep)  # whole?
                say(f"{folder}: trained already; {quality(card['reconstruction'])}")
                continue
            from harness.training.vae import train_vae

            bench = bench_of(latent, hooks)
            device = own_device(latent.resources, latent.sweep)
            conditions = conditions_in(folder, latent, device, say)
            apply(conditions)
            card = train_vae(
                data,
                bench.dataset,
                folder,
                device=device,
                conditions=conditions,
                measure=partial(bench.measure, device),
                checkpoint_seconds=latent.resources.checkpoint_seconds,
                hooks=hooks,
            )
            say(f"{folder}: {card['parameters']} parameters, {quality(card['reconstruction'])}")


@dataclass(frozen=True)
class Bench:
    """The images of a data set, and how an autoencoder of them is measured."""

    dataset: LoadedData
    latent: Latent
    hooks: Hooks

    def measure(self, device: str, autoencoder: Any) -> dict[str, Any]:
        """How well the autoencoder reconstructs held-out images (see `harness.evaluation.reconstruction`)."""
        from harness.evaluation.reconstruction import reconstruction

        return reconstruction(autoencoder, self.dataset, self.latent.extractions(device), device, self.hooks)


def bench_of(latent: Latent, hooks: Hooks) -> Bench:
    """Read the images.

    Raises:
        InputError: they are missing or damaged, or are other images.
    """

    def report(done: int, total: int) -> None:
        hooks.report({"stage": "check files", "done": done, "total": total})

    source = Source.of(latent.resources, latent.shared.images_folder, report)
    return Bench(load(latent.data, source), latent, hooks)


def conditions_in(folder: Path, latent: Latent, device: str, say: Say) -> NumericConditions:
    """What decides the bits: as when this folder was begun, as far as this machine allows."""
    from harness.data.vae import DECODE_BATCH
    from harness.training.conditions import numeric_conditions

    first = read_json(folder / "conditions.json", ("threads", "torch", "device", "hardware"))
    mine = numeric_conditions(int(first["threads"]) if first else latent.resources.threads, DECODE_BATCH, device)
    if first is None:
        write_json(folder / "conditions.json", mine)
    elif first != mine:
        odd = ", ".join(f"{key} was {first[key]} and is {value}" for key, value in mine.items() if first[key] != value)
        say(f"note: {folder.name}: {odd}; results agree within rounding, not bit for bit")
    return mine


def apply(conditions: NumericConditions) -> None:
    """Let torch compute under these conditions."""
    import torch

    from harness.training.conditions import be_deterministic

    torch.set_num_threads(conditions["threads"])
    be_deterministic(compiled=False)


def quality(measured: dict[str, Any] | None) -> str:
    """In words, how well an autoencoder reconstructs images."""
    if not measured:
        return "reconstruction not measured"
    parts = [f"held-out images survive with {measured['psnr']} dB"]
    for label, d in measured["distances"].items():
        parts.append(
            f"{label.partition('@')[0]} distance {d['held-out']:.4g} to themselves, {d['train']:.4g} to the training "
            f"images (untouched {d['floor']:.4g})"
        )
    return ", ".join(parts)
