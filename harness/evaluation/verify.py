"""`dit-harness verify`: a released checkpoint through our sampling and scoring, beside what was published of it.

`results/_verify/<checkpoint>-<key>/` holds samples in parts, features, and the record; the key is a hash of checkpoint
and decoder. `results/verified.csv` holds what was shown, a row a metric.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from harness.data import autoencoders
from harness.data.vae import Autoencoder
from harness.errors import InputError
from harness.evaluation import adm
from harness.evaluation import published as table
from harness.evaluation.export import diffusion_of
from harness.evaluation.generate import Decode, Generator, generate
from harness.evaluation.inception import INCEPTION
from harness.evaluation.metrics import Setup, score
from harness.evaluation.published import Published
from harness.evaluation.watch import Watch
from harness.files import file_hash, file_name, read_json, write_json, write_text
from harness.model.formats import Imported
from harness.model.official import read_official
from harness.processes import exclusive
from harness.runs import provenance
from harness.runs.cellruns import evaluation_key
from harness.runs.columns import PUBLISHED_INCEPTION, printed_title
from harness.runs.state import Run
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.data import PretrainedVae
from harness.spec.evaluation import Evaluation
from harness.spec.identity import ID_DIGITS
from harness.spec.resources import Resources
from harness.training.conditions import be_deterministic, numeric_conditions
from harness.training.hooks import Hooks

#: The table of what was shown, in the folder of results.
TABLE = "verified.csv"

WITHIN, OUTSIDE, PATH_ONLY = "within tolerance", "outside tolerance", "path only: not comparable"

#: A published checkpoint does not say at which step of its training it is; in the names of records it stands at 0.
_STEP = 0


@dataclass(frozen=True)
class Verified:
    """A row of `verified.csv`: one metric of one checkpoint."""

    date: str
    machine: str
    commit: str
    checkpoint: str
    sha256: str
    model: str
    objective: str
    resolution: int
    guidance: float
    sampler: str
    sampling_steps: int
    samples: int
    decoder: str
    decoder_weights: str
    reference: str
    extractor: str
    metric: str
    published: float
    ours: float
    difference: float
    tolerance: float
    verdict: str
    source: str


@dataclass(frozen=True)
class Asked:
    """What the user asks for; None: as published.

    Attributes:
        objective: what the checkpoint was trained for, which no file tells.
        guidance: scale, of those that are published.
        samples: N, and `sampling_steps`, for a try of the way through.
    """

    objective: str | None = None
    guidance: float | None = None
    samples: int | None = None
    sampling_steps: int | None = None


@dataclass(frozen=True)
class Subject:
    """A checkpoint that was read and checked, with all that it is held against.

    Attributes:
        checkpoint: the file.
        sha256: of it.
        published: what was published of it.
        cell: the network, its objective and its data.
        evaluation: how it is sampled and scored.
        imported: its weights.
        vae: folder of the decoder, and `vae_hash` the hash of its weights.
    """

    checkpoint: Path
    sha256: str
    published: Published
    cell: Cell
    evaluation: Evaluation
    imported: Imported
    vae: Path
    vae_hash: str

    @property
    def key(self) -> str:
        """Of what decides the samples beside the evaluation."""
        return hashlib.sha256(f"{self.sha256} {self.vae_hash}".encode()).hexdigest()[:ID_DIGITS]

    def run(self, shared: Shared) -> Run:
        """Where samples, features and the record are."""
        return Run(shared.root / "_verify" / file_name(self.checkpoint.stem, f"-{self.key}"))

    def strays(self, extractor: str) -> list[str]:
        """Why its values do not compare with the published ones; `extractor` is the label of the features."""
        found, asked = self.evaluation, self.published.evaluation
        why = [
            f"{words} {getattr(found, field):,}, not {getattr(asked, field):,}"
            for field, words in (("samples", "N"), ("sampling_steps", "sampling steps"))
            if getattr(found, field) != getattr(asked, field)
        ]
        return (
            why if extractor == PUBLISHED_INCEPTION else [*why, f"features of {extractor}, not {PUBLISHED_INCEPTION}"]
        )


def prepare(checkpoint: Path, asked: Asked, shared: Shared, resources: Resources) -> Subject:
    """Read a checkpoint, and check that all that its verification needs is there.

    Raises:
        InputError: not an official checkpoint; nothing is published of its shape; or the weights of Inception, ADM's
            reference or the decoder are missing, damaged or do not fit.
    """
    diffusion = diffusion_of(asked.objective, "official")
    found = read_official(checkpoint, heads=1)  # no file tells them; the table does
    row = table.find(checkpoint, found.model, found.shape, diffusion.objective, asked.guidance)
    changes = {"samples": asked.samples, "sampling_steps": asked.sampling_steps}
    evaluation = row.evaluation.model_copy(update={key: value for key, value in changes.items() if value is not None})
    try:
        diffusion.check_sampling(evaluation.sampler, evaluation.sampling_steps)
    except ValueError as error:
        raise InputError(f"--sampling-steps: {error}") from None
    INCEPTION.check(resources.inception_weights)
    adm.find(resources.adm_reference, row.resolution).check()
    vae = autoencoders.find(row.data, shared, "SWEEP", download=True)
    found = replace(found, model=found.model.model_copy(update={"heads": row.heads}))
    cell = Cell(model=found.model, diffusion=diffusion, data=row.data)
    return Subject(checkpoint, file_hash(checkpoint), row, cell, evaluation, found, vae, autoencoders.weights_hash(vae))


def verify(subject: Subject, shared: Shared, resources: Resources, hooks: Hooks) -> list[Verified]:
    """Sample and score; the rows of what was published, beside ours. What an earlier call made is used again.

    Rows that compare are added to `verified.csv` of the results, once.

    Raises:
        InputError: the device is not there, or another process verifies the same.
        NonFiniteError: the weights give values that are not finite.
    """
    device = _device(resources)
    torch.set_num_threads(resources.threads)
    be_deterministic(compiled=False)
    run, key = subject.run(shared), evaluation_key(subject.evaluation, _STEP)
    cache, watch = partial(run.features_part, key), Watch(hooks.report, hooks.at_once)
    setup = Setup(device, resources, shared, cache, watch, writing=hooks.writing)
    labels = {
        "extractor": setup.extraction(subject.evaluation, subject.cell.data).label,
        "reference": adm.find(resources.adm_reference, subject.published.resolution).label,
    }
    with exclusive(run.folder, "dit-harness verify"):
        record = read_json(run.evaluation_file(key), ("metrics", "date", "machine", "commit"))
        if record is None or any(record["metrics"].get(name) != label for name, label in labels.items()):
            record = _record(subject, run, key, setup, hooks)
        rows = _compared(subject, record)
    if rows[0].verdict != PATH_ONLY:
        _add(shared.root, rows)
    return rows


def _record(subject: Subject, run: Run, key: str, setup: Setup, hooks: Hooks) -> dict[str, Any]:
    """Sample, score, and write the record."""
    cell, evaluation, batch = subject.cell, subject.evaluation, setup.resources.sampling_batch
    generator = Generator(
        subject.imported.build().to(setup.device),
        cell,
        evaluation,
        setup.device,
        _decoder(subject, setup.device),
        weights=int(subject.key, 16),
    )
    made = generate(generator, run, key, batch=batch, hooks=hooks)
    assert made is not None  # this is the only rank
    origin, _ = provenance.origin()
    machine = provenance.machine()
    record = {
        "metrics": score(made.images, evaluation, cell.data, None, setup),
        "evaluation": evaluation.model_dump(mode="json"),
        "conditions": numeric_conditions(setup.resources.threads, batch, setup.device),
        "packages": provenance.packages(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine["gpus"][0] if setup.device == "cuda" else machine["cpu"],
        "commit": origin.commit or origin.code,
    }
    with hooks.writing():
        write_json(run.evaluation_file(key), record)
        run.remove_features(key)
    return record


def _decoder(subject: Subject, device: str) -> Decode:
    spec = subject.cell.data.vae
    assert isinstance(spec, PretrainedVae)  # by `Published.data`
    autoencoder, scaling = Autoencoder.load(subject.vae, device), float(spec.scaling)
    return lambda x0: autoencoder.decode(x0, scaling)


def _device(resources: Resources) -> str:
    """What computes.

    Raises:
        InputError: a GPU is asked for, and torch sees none.
    """
    if resources.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda, but torch sees no GPU here; allowed: auto, cpu")
    return "cpu" if resources.device == "cpu" or not torch.cuda.is_available() else "cuda"


def _compared(subject: Subject, record: dict[str, Any]) -> list[Verified]:
    """The rows of a record: published, ours, and what it means."""
    row, evaluation, metrics = subject.published, subject.evaluation, record["metrics"]
    extractor = metrics["extractor"]
    stray = subject.strays(extractor)
    found = []
    for metric, value, tolerance in row.values:
        ours = metrics.get(metric)
        if ours is None:  # some need more samples than a try has
            continue
        difference = ours - value
        verdict = PATH_ONLY if stray else WITHIN if abs(difference) <= tolerance else OUTSIDE
        found.append(
            Verified(
                date=record["date"],
                machine=record["machine"],
                commit=record["commit"],
                checkpoint=subject.checkpoint.name,
                sha256=subject.sha256,
                model=row.model,
                objective=row.objective,
                resolution=row.resolution,
                guidance=row.guidance,
                sampler=evaluation.sampler,
                sampling_steps=evaluation.sampling_steps,
                samples=evaluation.samples,
                decoder=row.decoder,
                decoder_weights=subject.vae_hash,
                reference=metrics["reference"],
                extractor=extractor,
                metric=printed_title(metric, extractor),
                published=value,
                ours=ours,
                difference=difference,
                tolerance=tolerance,
                verdict=verdict,
                source=row.source,
            )
        )
    return found


def _add(results: Path, rows: Sequence[Verified]) -> None:
    """Add rows to `verified.csv`, unless they are there: a command that is given again shows nothing new."""
    path = results / TABLE
    with exclusive(results / "_verify", "dit-harness verify"):
        text = (
            path.read_text(encoding="utf-8") if path.exists() else _lines([[field.name for field in fields(Verified)]])
        )
        lines = [line for row in rows if (line := _lines([list(asdict(row).values())])) not in text]
        if lines:
            write_text(path, "".join([text, *lines]))


def _lines(rows: list[list[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
