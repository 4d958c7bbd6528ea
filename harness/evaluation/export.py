"""`dit-harness export` and `dit-harness import`: weights and samples in the formats of other programs."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data import autoencoders
from harness.data.latents import open_latents
from harness.errors import CellFailedError, InputError
from harness.evaluation import adm
from harness.evaluation.generate import load_weights
from harness.evaluation.parts import Samples
from harness.files import file_hash, file_name, write_atomic
from harness.model.diffusers import Decoder, read_diffusers, write_diffusers
from harness.model.dit import DiT
from harness.model.formats import Imported, check_exportable, require_finite
from harness.model.network import Network
from harness.model.official import read_official, write_official
from harness.runs.cellruns import CellRun, split_key
from harness.runs.state import Run
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.data import PretrainedVae
from harness.spec.diffusion import OBJECTIVES, Diffusion, DiffusionSpec, spec_of
from harness.training import checkpoint

FORMATS = ("official", "diffusers")

#: The format of samples.
SAMPLES_FORMAT = "npz"


def export(
    item: CellRun,
    output: Path,
    format: str,
    *,
    ema: bool = True,
    step: int | None = None,
    vae: Path | None = None,
    shared: Shared,
    sweep: str,
) -> str:
    """Write the weights of a trained cell as an official checkpoint (a file) or as a `DiTPipeline` folder.

    Args:
        item: the cell and its run folder.
        output: the file or folder to make; must not exist.
        format: "official" or "diffusers".
        ema: the averaged weights; False: the plain ones.
        step: a step whose weights are kept; by default the last.
        vae: folder of the `AutoencoderKL` for a pipeline that decodes latents; by default the one that the cell names.
        shared: the folder of autoencoders and latents.
        sweep: the sweep, for messages that name a command.

    Returns:
        A note on the result, one line; empty when there is none.

    Raises:
        InputError: unknown format, `output` exists, no such weights, or a model or VAE that the format cannot hold;
            nothing is written.
    """
    run, cell = item.run, item.cell
    if format not in FORMATS:
        raise InputError(f"--format: {format!r}; allowed: {', '.join((*FORMATS, SAMPLES_FORMAT))}")
    if format not in cell.diffusion.formats:
        allowed = ", ".join(cell.diffusion.formats) or "none"
        raise InputError(
            f"--format: {format} holds no model of objective {cell.diffusion.objective}; allowed: {allowed}"
        )
    check_exportable(cell.model, cell.data.shape, cell.diffusion.outputs)
    if vae is not None and format == "official":
        raise InputError("--vae: an official checkpoint holds no VAE; allowed with --format diffusers")
    if vae is not None and cell.data.vae is None:
        raise InputError("--vae: the cell learns pixels; leave it out")
    require_new(output)
    step = cell.training.steps if step is None else step
    network = trained_network(run, cell, step, ema=ema, name=item.name)
    require_finite(network.state_dict(), str(run.weights_file(step)))
    assert isinstance(network, DiT)  # by `check_exportable`
    if format == "official":
        write_atomic(output, lambda temporary: write_official(network, temporary))
        return ""
    decoder, note = _decoder(cell, vae, shared, sweep)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=file_name(f".{output.name}", "."), suffix=".tmp", dir=output.parent))
    try:
        assert isinstance(cell.diffusion, Diffusion)  # no other has this format
        write_diffusers(network, temporary / "pipeline", cell.diffusion, decoder)
        (temporary / "pipeline").replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return note


def trained_network(
    run: Run, cell: Cell, step: int, *, ema: bool = True, device: str = "cpu", name: str | None = None
) -> Network:
    """The network of a trained cell, for a user who asks for its weights of `step`, and calls the cell `name`.

    Raises:
        InputError: there are none, or the file is damaged or of another cell.
    """
    try:
        return load_weights(run, cell, step, ema=ema, device=device)
    except FileNotFoundError:
        raise InputError(f"{name or run.label}: {_weights_there(run, cell, step)}") from None
    except checkpoint.CorruptCheckpointError as error:
        raise InputError(f"{error}; the file is damaged") from None
    except CellFailedError as error:
        raise InputError(str(error)) from None


def _weights_there(run: Run, cell: Cell, step: int) -> str:
    """That there are no weights of a step, how far the training is, and which steps can be had."""
    kept = run.weights_steps()
    text = f"no weights of step {step}; allowed: {', '.join(map(str, kept)) or 'none yet'}"
    progress = run.progress() or {}
    at = max([*kept, progress.get("done", 0) if progress.get("stage") == "train" else 0])
    if at < cell.training.steps:
        text += f"; the cell is at step {at} of {cell.training.steps}"
        text += f", and --step {kept[-1]} works" if kept else ""
    return text


def export_samples(
    item: CellRun,
    output: Path,
    *,
    step: int | None = None,
    evaluation: str | None = None,
    count: int | None = None,
) -> str:
    """Write generated images in the format of the ADM suite, see `adm.write_samples`.

    Args:
        item: the cell and its run folder.
        output: the file to make; must not exist.
        step: the step they were sampled at; by default the last.
        evaluation: the beginning of an evaluation's id; not needed if there is only one.
        count: how many, from the first; by default all.

    Returns:
        One line that says what was written.

    Raises:
        InputError: `output` exists, no such images, or fewer than asked for; nothing is written.
    """
    require_new(output)
    run, cell = item.run, item.cell
    key = _samples_key(run, cell.training.steps if step is None else step, evaluation)
    labels: list[NDArray[np.int64]] = []
    found = 0
    for first, path in run.samples_parts(key).items():
        if first != found:
            raise InputError(f"{path}: the part before it is missing, from sample {found} on; launch again makes it")
        try:
            labels.append(checkpoint.load(path)[0]["labels"].numpy())
        except checkpoint.CorruptCheckpointError as error:
            raise InputError(f"{error}; the file is damaged") from None
        found += len(labels[-1])
    if count is not None and not 0 < count <= found:
        raise InputError(f"--samples: {count}, but {found} were generated ({key}); allowed: 1 to {found}")
    if count is None and run.measured(key) is None:
        raise InputError(f"{key}: sampling has not ended, {found} are there; --samples {found} exports these")
    images = Samples(run, key, count or found, len(labels[0]))
    adm.write_samples(output, images, np.concatenate(labels)[: len(images)])
    line = f"{len(images)} samples of {key}, {'x'.join(map(str, images.shape[1:]))}"
    return line + ("" if images.shape[3] == 3 else "; evaluators that rest on Inception want three channels")


def _samples_key(run: Run, step: int, evaluation: str | None) -> str:
    there = run.samples_keys()
    keys = [key for key in there if split_key(key)[1] == step and key.startswith(evaluation or "")]
    if len(keys) == 1:
        return keys[0]
    if keys:
        ids = ", ".join(split_key(key)[0] for key in keys)
        raise InputError(f"--evaluation: several have samples of step {step}; allowed: {ids}")
    raise InputError(
        f"{run.folder}: no samples{f' of evaluation {evaluation}' if evaluation else ''} of step {step} here; "
        f"there are: {', '.join(there) or 'none'}"
    )


def _decoder(cell: Cell, vae: Path | None, shared: Shared, sweep: str) -> tuple[Decoder | None, str]:
    """The autoencoder for a pipeline; or None, and the reason why there is none."""
    spec = cell.data.vae
    if spec is None:
        reason = "since the cell learns pixels: load its transformer and scheduler by themselves"
        return None, f"the folder has no VAE, {reason}"
    try:
        folder = autoencoders.find(cell.data, shared, sweep) if vae is None else vae
        if isinstance(spec, PretrainedVae) and spec.scaling != "measured":
            return Decoder(folder, float(spec.scaling)), ""
        return Decoder(folder, open_latents(cell.data, shared).scaling), ""
    except InputError as error:
        if vae is not None:
            raise
        return None, f"the folder has no VAE ({error}); --vae FOLDER adds one"


def import_weights(
    source: Path, output: Path, *, heads: int | None = None, ema: bool = True, objective: str | None = None
) -> Imported:
    """Convert an official checkpoint (a file) or a diffusers folder to a weights file of this harness.

    `harness.evaluation.generate.load_weights` reads such files. The same weights stand under `model.` and `ema.`; the
    metadata names the model, the objective, the shape of the input, and the source.

    Args:
        source: a `.pt` file, or the folder of a `DiTTransformer2DModel` or a `DiTPipeline`.
        output: the `.safetensors` file to make; must not exist.
        heads: attention heads; not needed for an official checkpoint of a published size.
        ema: read the averaged weights of the official training script's checkpoints; False: the plain ones.
        objective: what the weights were trained for, which no file tells; "flow" for SiT's. None: ddpm-hybrid.

    Raises:
        InputError: `output` exists, an objective that the format does not hold, or anything `harness.model.formats`
            refuses; nothing is written.
    """
    require_new(output)
    diffusion = diffusion_of(objective, "diffusers" if source.is_dir() else "official")
    if source.is_dir():
        if heads is not None:
            raise InputError("--heads: a diffusers folder tells the number of heads itself; leave it out")
        imported = read_diffusers(source)
    else:
        imported = read_official(source, heads, ema=ema)
    tensors = {f"{kind}.{name}": value.clone() for kind in ("model", "ema") for name, value in imported.state.items()}
    meta = {
        "model": imported.model.model_dump(mode="json"),
        "diffusion": diffusion.model_dump(mode="json"),
        "input": imported.shape._asdict(),
        "source": source.name,
        "sha256": None if source.is_dir() else file_hash(source),
    }
    checkpoint.save(output, tensors, meta)
    return imported


def diffusion_of(objective: str | None, format: str) -> DiffusionSpec:
    """The spec of an objective that the format holds; without one, the default.

    Raises:
        InputError: it does not hold it.
    """
    objective = objective or Diffusion().objective
    held = [name for name in OBJECTIVES.built_in if format in OBJECTIVES.facts(name).formats]
    if objective not in held:
        raise InputError(f"--objective: {objective!r}; allowed with the {format} format: {', '.join(held)}")
    return spec_of(objective)(objective=objective)


def require_new(output: Path) -> None:
    """Refuse to write over a file or folder."""
    if output.exists():
        raise InputError(f"{output}: exists already; give another --output")
