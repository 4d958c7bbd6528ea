"""What must exist before a sweep on latents can be launched: trained autoencoders, and images encoded by them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data import autoencoders, latents
from harness.data.dataset import Dataset
from harness.data.sources import load
from harness.errors import InputError
from harness.files import read_json, write_json
from harness.processes import exclusive
from harness.runs.study import Shared, Study
from harness.spec.data import Data, TrainedVae
from harness.spec.evaluation import Evaluation
from harness.training.hooks import Hooks
from sweeps.grid import Sweep

if TYPE_CHECKING:
    from harness.training.conditions import NumericConditions

Say = Callable[[str], None]


def latent_data(sweep: Sweep) -> list[tuple[Data, tuple[Evaluation, ...]]]:
    """Every data set that the sweep sees through an autoencoder, once, with the evaluations of its cells.

    Raises:
        InputError: the sweep learns pixels only.
    """
    found: dict[str, tuple[Data, tuple[Evaluation, ...]]] = {}
    for _, cell in sweep.cells():
        if cell.data.vae is not None:
            name = autoencoders.folder_name(cell.data)
            found.setdefault(name, (autoencoders.science(cell.data), sweep.evaluations_of(cell)))
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
    wanted = [(data, evaluations) for data, evaluations in latent_data(sweep) if isinstance(data.vae, TrainedVae)]
    if not wanted:
        raise InputError(
            f"{sweep.path}: data.vae is pretrained: nothing to train; next: dit-harness encode {sweep.path}"
        )
    shared = Shared(study.root)
    for data, evaluations in wanted:
        folder = shared.vae_folder(autoencoders.folder_name(data))
        with exclusive(folder, "dit-harness train-vae"):
            card = read_json(folder / autoencoders.CARD)
            if card is not None:
                autoencoders.find(data, shared, str(sweep.path))  # whole?
                say(f"{folder}: trained already; {_quality(card['reconstruction'])}")
                continue
            from harness.evaluation.reconstruction import reconstruction
            from harness.training.vae import train_vae

            dataset = _load(sweep, data, shared, hooks)
            device, conditions = _conditions(sweep, folder)
            inception = sweep.resources.inception_weights
            card = train_vae(
                data,
                dataset,
                folder,
                device=device,
                conditions=conditions,
                measure=partial(
                    reconstruction,
                    data=data,
                    dataset=dataset,
                    evaluations=evaluations,
                    device=device,
                    hooks=hooks,
                    inception_weights=inception,
                ),
                checkpoint_seconds=sweep.resources.checkpoint_seconds,
                hooks=hooks,
            )
            say(f"{folder}: {card['parameters']} parameters, {_quality(card['reconstruction'])}")


def encode_all(sweep: Sweep, study: Study, hooks: Hooks, say: Say) -> None:
    """Encode every data set of the sweep that is not encoded yet; resume what was interrupted.

    Raises:
        InputError: an autoencoder or the data is missing or does not fit; another process encodes it just now.
    """
    shared, path = Shared(study.root), str(sweep.path)
    wanted = [
        (data, evaluations, autoencoders.find(data, shared, path, download=True))
        for data, evaluations in latent_data(sweep)
    ]
    for data, evaluations, vae_folder in wanted:
        weights = autoencoders.weights_hash(vae_folder)
        folder = shared.latents_folder(autoencoders.folder_name(data))
        with exclusive(folder, "dit-harness encode"):
            labels = _labels(data, evaluations, sweep.resources.inception_weights)
            if latents.is_complete(data, shared, weights) and _has_distances(folder, labels):
                latents.check_ready(data, shared, path)
                say(f"{folder}: encoded already; {_quality(read_json(folder / latents.RECONSTRUCTION))}")
                continue
            from harness.data.vae import Autoencoder
            from harness.evaluation.reconstruction import reconstruction

            dataset = _load(sweep, data, shared, hooks)
            device, conditions = _conditions(sweep, folder)
            autoencoder = Autoencoder.load(vae_folder, device)
            manifest = latents.encode(
                data,
                dataset,
                autoencoder.moments,
                shared,
                weights=weights,
                conditions=dict(conditions),
                sweep=path,
                progress=lambda done, total: hooks.report({"stage": "encode", "done": done, "total": total}),
            )
            measured = (read_json(vae_folder / autoencoders.CARD) or {}).get("reconstruction", {})
            if not labels <= measured.get("distances", {}).keys():
                inception = sweep.resources.inception_weights
                measured = reconstruction(autoencoder, data, dataset, evaluations, device, hooks, inception)
            write_json(folder / latents.RECONSTRUCTION, measured)
            scaling = latents.scaling(data, manifest)
            images = sum(split["count"] for split in manifest["splits"].values())
            say(f"{folder}: {images} images, each both ways; scaling {scaling:.6g}; {_quality(measured)}")


def _load(sweep: Sweep, data: Data, shared: Shared, hooks: Hooks) -> Dataset:
    resources = sweep.resources
    return load(
        data,
        Path(resources.data_folder) if resources.data_folder else None,
        resources.data_download,
        shared.images_folder,
        lambda done, total: hooks.report({"stage": "check files", "done": done, "total": total}),
    )


def _conditions(sweep: Sweep, folder: Path) -> tuple[str, NumericConditions]:
    """Device, and what decides the bits: as when this folder was begun, as far as this machine allows."""
    import torch

    from harness.data.vae import DECODE_BATCH
    from harness.training.conditions import numeric_conditions

    asked = sweep.resources.device
    if asked == "cuda" and not torch.cuda.is_available():
        raise InputError(f'{sweep.path}: resources.device: "cuda", but no GPU is visible here; allowed: "auto", "cpu"')
    device = "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"
    first = read_json(folder / "conditions.json")
    threads = int(first["threads"]) if first else sweep.resources.threads
    mine = numeric_conditions(threads, DECODE_BATCH, device)
    if first is None:
        write_json(folder / "conditions.json", mine)
    elif first != mine:
        odd = ", ".join(
            f"{key} was {first[key]} and is {value}" for key, value in mine.items() if first.get(key) != value
        )
        print(f"note: {folder.name}: {odd}; results agree within rounding, not bit for bit", flush=True)
    torch.set_num_threads(mine["threads"])
    torch.use_deterministic_algorithms(True, warn_only=True)
    return device, mine


def _labels(data: Data, evaluations: tuple[Evaluation, ...], inception_weights: str | None) -> set[str]:
    from harness.evaluation.extractors import extractor_label

    names = {e.resolved(data).extractor for e in evaluations}
    return {extractor_label(name, inception_weights) for name in names if name is not None}


def _has_distances(folder: Path, labels: set[str]) -> bool:
    found = read_json(folder / latents.RECONSTRUCTION)
    return found is not None and labels <= found["distances"].keys()


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
