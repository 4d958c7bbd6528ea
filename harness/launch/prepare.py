"""What must exist before a sweep on latents can be launched: trained autoencoders, and images encoded by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.data import autoencoders, latents
from harness.data.dataset import LoadedData, Source
from harness.data.sources import load
from harness.errors import InputError
from harness.files import read_json, write_json
from harness.launch.machine import visible_gpus
from harness.processes import exclusive
from harness.runs.study import Shared, Study
from harness.spec.data import Data, TrainedVae
from harness.training.hooks import Hooks
from sweeps.grid import Sweep

if TYPE_CHECKING:
    from harness.training.conditions import NumericConditions

Say = Callable[[str], None]


class Latent(NamedTuple):
    """A data set that a sweep sees through an autoencoder, and the names of the extractors that measure its cells."""

    data: Data
    extractors: list[str]


def latent_data(sweep: Sweep) -> list[Latent]:
    """Every data set that the sweep sees through an autoencoder, once.

    Raises:
        InputError: the sweep learns pixels only.
    """
    found: dict[str, Latent] = {}
    for _, cell in sweep.cells():
        if cell.data.vae is not None:
            extractors = {str(evaluation.extractor) for evaluation in sweep.evaluations_of(cell)}
            latent = Latent(autoencoders.science(cell.data), sorted(extractors))
            found.setdefault(autoencoders.folder_name(cell.data), latent)
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
    wanted = [latent for latent in latent_data(sweep) if isinstance(latent.data.vae, TrainedVae)]
    if not wanted:
        raise InputError(
            f"{sweep.path}: data.vae is pretrained: nothing to train; next: dit-harness encode {sweep.path}"
        )
    shared = Shared(study.root)
    for latent in wanted:
        data = latent.data
        folder = shared.vae_folder(autoencoders.folder_name(data))
        with exclusive(folder, "dit-harness train-vae"):
            card = autoencoders.card_of(data, shared)
            if card is not None:
                autoencoders.find(data, shared, str(sweep.path))  # whole?
                say(f"{folder}: trained already; {_quality(card['reconstruction'])}")
                continue
            from harness.training.vae import train_vae

            bench = _bench(sweep, latent, shared, folder, hooks, say)
            card = train_vae(
                data,
                bench.dataset,
                folder,
                device=bench.device,
                conditions=bench.conditions,
                measure=bench.measure,
                checkpoint_seconds=sweep.resources.checkpoint_seconds,
                hooks=hooks,
            )
            say(f"{folder}: {card['parameters']} parameters, {_quality(card['reconstruction'])}")


def encode_all(sweep: Sweep, study: Study, hooks: Hooks, say: Say) -> None:
    """Encode every data set of the sweep that is not encoded yet; resume what was interrupted.

    Raises:
        InputError: an autoencoder or the data is missing or does not fit; another process encodes it just now.
    """
    from harness.evaluation.extractors import extractor_label  # imports torch

    shared, path = Shared(study.root), str(sweep.path)
    wanted = [(latent, autoencoders.find(latent.data, shared, path, download=True)) for latent in latent_data(sweep)]
    for latent, vae_folder in wanted:
        data = latent.data
        weights = autoencoders.weights_hash(vae_folder)
        folder = shared.latents_folder(autoencoders.folder_name(data))
        with exclusive(folder, "dit-harness encode"):
            known = read_json(folder / latents.RECONSTRUCTION, latents.MEASURED)
            labels = {extractor_label(name, sweep.resources.inception_weights) for name in latent.extractors}
            if latents.is_complete(data, shared, weights) and known is not None and labels <= known["distances"].keys():
                latents.check_ready(data, shared, path)
                say(f"{folder}: encoded already; {_quality(known)}")
                continue
            from harness.data.vae import Autoencoder

            bench = _bench(sweep, latent, shared, folder, hooks, say)
            autoencoder = Autoencoder.load(vae_folder, bench.device)
            manifest = latents.encode(
                data,
                bench.dataset,
                autoencoder.moments,
                shared,
                weights=weights,
                conditions=dict(bench.conditions),
                sweep=path,
                progress=_reporter(hooks, "encode"),
            )
            measured = (autoencoders.card_of(data, shared) or {}).get("reconstruction", {})
            if not labels <= measured.get("distances", {}).keys():
                measured = bench.measure(autoencoder)
            write_json(folder / latents.RECONSTRUCTION, measured)
            scaling = latents.scaling(data, manifest)
            images = sum(split["count"] for split in manifest["splits"].values())
            say(f"{folder}: {images} images, each both ways; scaling {scaling:.6g}; {_quality(measured)}")


class _Bench(NamedTuple):
    """What an autoencoder is trained, used and measured with."""

    dataset: LoadedData
    device: str
    conditions: NumericConditions
    measure: Callable[[Any], dict[str, Any]]


def _bench(sweep: Sweep, latent: Latent, shared: Shared, folder: Path, hooks: Hooks, say: Say) -> _Bench:
    from harness.evaluation.reconstruction import reconstruction

    resources = sweep.resources
    source = Source.of(resources, shared.images_folder, _reporter(hooks, "check files"))
    dataset = load(latent.data, source)
    device, conditions = _conditions(sweep, folder, say)

    def measure(autoencoder: Any) -> dict[str, Any]:
        return reconstruction(autoencoder, dataset, latent.extractors, device, hooks, resources.inception_weights)

    return _Bench(dataset, device, conditions, measure)


def _reporter(hooks: Hooks, stage: str) -> Callable[[int, int], None]:
    return lambda done, total: hooks.report({"stage": stage, "done": done, "total": total})


def _conditions(sweep: Sweep, folder: Path, say: Say) -> tuple[str, NumericConditions]:
    """Device, and what decides the bits: as when this folder was begun, as far as this machine allows."""
    import torch

    from harness.data.vae import DECODE_BATCH
    from harness.training.conditions import numeric_conditions

    asked, given = sweep.resources.device, visible_gpus()
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError(f'{sweep.path}: resources.device: "cuda", but no GPU is visible here; allowed: "auto", "cpu"')
    if asked == "auto" and given and not torch.cuda.is_available():
        raise InputError(
            f"{sweep.path}: resources.device: this machine gives GPU {','.join(given)}, and torch sees none; "
            'mend that, or allowed: "cpu"'
        )
    device = "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"
    first = read_json(folder / "conditions.json", ("threads", "torch", "device", "hardware"))
    mine = numeric_conditions(int(first["threads"]) if first else sweep.resources.threads, DECODE_BATCH, device)
    if first is None:
        write_json(folder / "conditions.json", mine)
    elif first != mine:
        odd = ", ".join(f"{key} was {first[key]} and is {value}" for key, value in mine.items() if first[key] != value)
        say(f"note: {folder.name}: {odd}; results agree within rounding, not bit for bit")
    torch.set_num_threads(mine["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    return device, mine


def _quality(measured: dict[str, Any] | None) -> str:
    if not measured:
        return "reconstruction not measured"
    parts = [f"held-out images survive with {measured['psnr']} dB"]
    for label, d in measured["distances"].items():
        parts.append(
            f"{label.partition('@')[0]} distance {d['held-out']:.4g} to themselves, {d['train']:.4g} to the training "
            f"images (untouched {d['floor']:.4g})"
        )
    return ", ".join(parts)
