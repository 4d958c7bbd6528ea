"""How long a cell takes, and on whose word: by a probe of its shape, by finished cells, or by assumed speeds. No torch.

The plan makes estimates of all cells of a sweep; a job makes its own when it begins, from what the launch handed it,
and its attempt records it, so that the report can set it beside the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from harness.data.vae_cost import vae_cost
from harness.launch.machine import hardware
from harness.runs.cellruns import CellRun
from harness.runs.log import TrainLog
from harness.runs.probes import Probe, read_probe, shape_of
from harness.runs.records import Estimated
from harness.runs.speed import train_tflops
from harness.runs.state import State
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.diffusion import DiffusionSpec
from harness.spec.evaluation import Evaluation, facts_of
from harness.spec.resources import Resources
from harness.spec.training import Precision

#: Assumed speed of one CPU thread, until a finished cell or a probe tells better: multiply-adds per second in matrix
#: products, and seconds of overhead per transformer block and forward-and-backward pass. Order of magnitude only.
ASSUMED_GMACS_PER_S = 25.0

ASSUMED_BLOCK_SECONDS = 0.8e-3

#: Assumed seconds of one CPU thread to score a sample once, beyond the extractor's multiply-adds: neighbours above all.
ASSUMED_SCORE_SECONDS = 2e-3

#: Assumed speed of one GPU, in 1e12 floating-point operations per second: about a third of an A100's peaks.
ASSUMED_TFLOPS: dict[Precision, float] = {"fp32": 6.5, "tf32": 50.0, "bf16": 100.0}


@dataclass(frozen=True)
class Throughput:
    """What one GPU is taken to sustain, in 1e12 floating-point operations (2 * multiply-adds) per second.

    `source` says on whose word: "given", "measured on N finished cells" or "assumed".
    """

    tflops: float
    source: str

    def hours(self, gmacs: float) -> float:
        """GPU hours of so many 1e9 multiply-adds."""
        return 2 * gmacs * 1e9 / (self.tflops * 1e12) / 3600


@dataclass(frozen=True)
class Work:
    """What a cell has to do; multiply-adds in units of 1e9."""

    steps: int
    layers: int
    passes: int  #: forward passes of one image each, while sampling
    scored: int  #: samples, as often as they are scored
    train_gmacs: float
    sampling_gmacs: float
    decoding_gmacs: float
    scoring_gmacs: float

    @property
    def gmacs(self) -> float:
        """All of it."""
        return self.train_gmacs + self.sampling_gmacs + self.rest

    @property
    def rest(self) -> float:
        """What is neither training nor a forward pass."""
        return self.decoding_gmacs + self.scoring_gmacs


def work_of(cell: Cell, evaluations: Sequence[Evaluation], macs: int) -> Work:
    """The work of a cell whose forward pass of one image takes `macs` multiply-adds."""
    recipe, gmacs, shape = cell.training, macs / 1e9, cell.data.image_shape
    images = [(e, e.samples * len(e.steps(recipe.steps))) for e in evaluations]
    made = sampled((e, step) for e in evaluations for step in e.steps(recipe.steps))
    passes = sum(sampling_passes(e, cell.diffusion) for e in made)
    return Work(
        steps=recipe.steps,
        layers=cell.model.layers,
        passes=passes,
        scored=sum(count for e, count in images if e.extractor),
        train_gmacs=3 * gmacs * recipe.batch_size * recipe.steps,
        sampling_gmacs=passes * gmacs,
        decoding_gmacs=sum(e.samples for e in made) * vae_cost(cell.data).decode / 1e9,
        scoring_gmacs=sum(count * facts_of(e.extractor, shape).gmacs for e, count in images if e.extractor),
    )


def sampled(asked: Iterable[tuple[Evaluation, int]]) -> list[Evaluation]:
    """The evaluations whose samples are made, of evaluations and training steps.

    Of those that only score otherwise, that with the most samples makes them for all.
    """
    most: dict[tuple[str, int], Evaluation] = {}
    for evaluation, step in asked:
        key = evaluation.sampling_id, step
        if key not in most or most[key].samples < evaluation.samples:
            most[key] = evaluation
    return list(most.values())


def sampling_passes(evaluation: Evaluation, diffusion: DiffusionSpec) -> int:
    """Forward passes of one image each, at one training step."""
    passes = diffusion.sampling_passes(evaluation.sampler, evaluation.sampling_steps, evaluation.guidance)
    return evaluation.samples * passes


@dataclass(frozen=True)
class Basis:
    """What estimates rest on where there is no probe.

    Attributes:
        rate: of one GPU.
        ratios: by device, "cpu" or "cuda": what finished cells took over what is assumed of them, ascending.
        here: whether all of them ran on a machine like this one.
    """

    rate: Throughput
    ratios: dict[str, tuple[float, ...]]
    here: bool = True

    def estimate(self, work: Work, device: str, ranks: int = 1, probe: Probe | None = None) -> Estimated:
        """The wall time of a cell.

        Args:
            work: what it has to do.
            device: "cpu" or "cuda".
            ranks: processes that share it.
            probe: of its shape; one that failed says nothing.
        """
        if probe is not None and probe.step is not None and probe.image is not None:
            rest = self._assumed_rest(work, device) / ranks
            middle, least, most = (
                round(step * work.steps + image * work.passes / ranks + rest, 1)
                for step, image in zip(probe.step, probe.image, strict=True)
            )
            return {"seconds": middle, "least": least, "most": most, "source": "measured by a probe"}
        assumed, found = self.assumed(work, device, ranks), self.ratios.get(device, ())
        if not found:
            source = self.rate.source if device == "cuda" else "assumed"
            return {"seconds": round(assumed, 1), "least": None, "most": None, "source": source}
        cells = f"{len(found)} finished cell{'s' * (len(found) != 1)}"
        several = len(found) > 1
        return {
            "seconds": round(assumed * median(found), 1),
            "least": round(assumed * found[0], 1) if several else None,
            "most": round(assumed * found[-1], 1) if several else None,
            "source": f"measured on {cells}{' of this machine' if self.here else ''}",
        }

    def assumed(self, work: Work, device: str, ranks: int) -> float:
        """Seconds by assumed speeds: of GPUs, or of one CPU thread."""
        if device == "cuda":
            return 3600 * self.rate.hours(work.gmacs) / ranks
        overhead = work.steps * ASSUMED_BLOCK_SECONDS * (work.layers + 2) + work.scored * ASSUMED_SCORE_SECONDS
        return overhead + work.gmacs / ASSUMED_GMACS_PER_S

    def _assumed_rest(self, work: Work, device: str) -> float:
        if device == "cuda":
            return 3600 * self.rate.hours(work.rest)
        return work.rest / ASSUMED_GMACS_PER_S + work.scored * ASSUMED_SCORE_SECONDS


class Probes:
    """The probes of a results folder for this machine, each read once."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._found: dict[tuple[Any, ...], Probe | None] = {}

    def of(self, cell: Cell, resources: Resources, device: str) -> Probe | None:
        """The probe of a cell's shape; None where there is none."""
        recipe = cell.training
        key = (cell.model, cell.diffusion, cell.data.shape, recipe.batch_size, recipe.precision, resources, device)
        if key not in self._found:
            self._found[key] = read_probe(self._shared, shape_of(cell, resources, device, hardware(device)))
        return self._found[key]


@dataclass(frozen=True)
class Finished:
    """What the files of a finished cell say of its time; each is read once.

    Attributes:
        item: the cell.
        started: what its attempts said when they began, as far as they told their conditions.
        trained: wall time of the training; None where the log has none.
        records: of its evaluations; None for one that is not there.
    """

    item: CellRun
    started: tuple[Any, ...]
    trained: float | None
    records: tuple[dict[str, Any] | None, ...]

    @property
    def macs(self) -> int | None:
        """Multiply-adds of a forward pass of one image, by its first record that has them."""
        return next((record["macs"] for record in self.records if record and "macs" in record), None)

    @property
    def seconds(self) -> float | None:
        """Wall time of training and evaluating it; None where a record is missing."""
        if self.trained is None or None in self.records:
            return None
        return self.trained + sum(float(record.get("seconds", 0)) for record in self.records if record)

    @property
    def tflops(self) -> float | None:
        """What each of its GPUs sustained; None on a CPU, or on changing numbers of them."""
        conditions = [one["conditions"] for one in self.started]
        gpus = {each.get("ranks", 1) for each in conditions}
        on_gpus = {each["device"] for each in conditions} == {"cuda"} and len(gpus) == 1
        if not on_gpus or not self.trained or self.macs is None:
            return None
        recipe = self.item.cell.training
        return train_tflops(self.macs, recipe.batch_size * recipe.steps / (self.trained * int(gpus.pop())))


def finished(items: Iterable[CellRun]) -> list[Finished]:
    """What is known of the cells that are done."""
    found = []
    for item in items:
        if item.now.state is State.DONE:
            started = tuple(a.started for a in item.run.attempts() if a.started and "conditions" in a.started)
            records = tuple(item.run.measured(key) for key in item.owed)
            found.append(Finished(item, started, TrainLog(item.run).seconds(), records))
    return found


def throughput(done: Iterable[Finished], precision: Precision, tflops: float | None = None) -> Throughput:
    """What one GPU sustains in a precision: as given, else as finished cells that it trained did, else assumed."""
    if tflops is not None:
        return Throughput(tflops, "given")
    alike = (one for one in done if one.item.cell.training.precision == precision)
    rates = [rate for one in alike if (rate := one.tflops) is not None]
    if rates:
        return Throughput(median(rates), f"measured on {len(rates)} finished cell{'s' * (len(rates) > 1)}")
    return Throughput(ASSUMED_TFLOPS[precision], "assumed")


def basis_of(done: Iterable[Finished], resources: Resources, rate: Throughput, *, here: bool) -> Basis:
    """What finished cells say.

    Args:
        done: finished cells.
        resources: of the cells to estimate: their threads and ranks.
        rate: of one GPU.
        here: whether the cells will run on this machine; then others' cells say nothing. Elsewhere the machine is not
            known, and all cells that ran on such a device count.
    """
    basis, ratios = Basis(rate, {}, here), dict[str, list[float]]()
    for one in done:
        devices = {started["conditions"]["device"] for started in one.started}
        if len(devices) != 1 or (here and not all(_ran_here(started, resources) for started in one.started)):
            continue
        if one.macs and one.seconds:
            device, work = devices.pop(), work_of(one.item.cell, one.item.evaluations, one.macs)
            ranks = one.started[-1]["conditions"].get("ranks", 1)
            ratios.setdefault(device, []).append(one.seconds / basis.assumed(work, device, ranks))
    return Basis(rate, {device: tuple(sorted(found)) for device, found in ratios.items()}, here)


def _ran_here(started: Any, resources: Resources) -> bool:
    """Whether an attempt ran on a machine like this one, with as many threads and ranks."""
    conditions = started["conditions"]
    device = conditions["device"]
    found = conditions.get("hardware") if device == "cuda" else started.get("machine", {}).get("cpu")
    alike = conditions.get("threads") == resources.threads and conditions.get("ranks", 1) == resources.world
    return bool(alike and found == hardware(device))
