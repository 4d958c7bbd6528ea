"""Sampling of one evaluation, in parts; each part is a pure function of (weights, evaluation, sample indices)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.data.ahead import Ahead
from harness.data.draws import SampleStreams
from harness.data.noise import noise_rows
from harness.data.pixels import require_finite_values, to_uint8
from harness.diffusion.guidance import guided
from harness.diffusion.objective import build as build_objective
from harness.errors import CellFailedError, non_finite_in
from harness.evaluation.parts import Origin, Parts, Samples
from harness.model.network import Network, build
from harness.runs.layout import belongs
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.data import InputShape
from harness.spec.diffusion import DiffusionSpec
from harness.spec.evaluation import Evaluation
from harness.threads import helpers
from harness.training import checkpoint
from harness.training.hooks import Hooks, StoppedError
from harness.training.ranks import Ranks

#: Maps model output (N, C, S, S) to images (N, channels, H, W) in [-1, 1].
Decode = Callable[[torch.Tensor], torch.Tensor]


def load_weights(run: Run, cell: Cell, step: int, *, ema: bool, device: str, ranks: Ranks | None = None) -> Network:
    """The network of a finished training, with plain or averaged weights, on every rank.

    Raises:
        CorruptCheckpointError: the file is torn; on the first rank.
        CellFailedError: it holds the weights of another network.
        NonFiniteError: its values are not finite.
    """

    def read() -> checkpoint.Loaded:
        tensors, meta = checkpoint.load(run.weights_file(step))
        if not belongs(meta, cell.id, step):
            whose = f"cell {meta.get('cell')} at step {meta.get('step')}"
            raise CellFailedError(f"{run.weights_file(step)}: weights of {whose}; allowed: {cell.id} at step {step}")
        wanted = checkpoint.part(tensors, "ema." if ema else "model.")
        with non_finite_in(str(run.weights_file(step))):
            checkpoint.require_finite(wanted)
        return checkpoint.Loaded(wanted, meta)

    found = (ranks or Ranks()).load_on_first(read)
    assert found is not None
    network = build(cell.model, cell.data.shape, cell.diffusion.outputs)
    try:
        network.load_state_dict(found.tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CellFailedError(f"{run.weights_file(step)}: weights of another architecture ({reason})") from None
    return network.to(device).eval().requires_grad_(False)


def streams_of(evaluation: Evaluation, first: int, count: int, shape: InputShape) -> SampleStreams:
    """The random streams of samples `first` .. `first + count - 1` of an evaluation."""
    return SampleStreams(evaluation.seed, first, count, (shape.channels, shape.size, shape.size))


@torch.inference_mode()
def draw(
    network: Network,
    diffusion: DiffusionSpec,
    evaluation: Evaluation,
    streams: SampleStreams,
    y: torch.Tensor | None,
    progress: Callable[[int], None],
) -> torch.Tensor:
    """Samples x_0 (N, C, S, S) of a network, on its device, before they are decoded.

    Args:
        network: what predicts.
        diffusion: what it predicts.
        evaluation: how to sample.
        streams: of the N samples, see `streams_of`.
        y: their labels (N,), where the network is; None without classes.
        progress: called after every step with the number of steps done.
    """
    device = next(network.parameters()).device
    denoise = guided(network, y, evaluation.guidance, evaluation.guided_channels(network.shape.channels))
    objective = build_objective(diffusion)
    steps = evaluation.sampling_steps
    with noise_of_steps(streams, steps, device.type) as noise:
        return objective.sample(evaluation.sampler, denoise, noise(0), steps, lambda step: noise(step + 1), progress)


@contextlib.contextmanager
def noise_of_steps(streams: SampleStreams, steps: int, device: str) -> Iterator[Callable[[int], torch.Tensor]]:
    """Gives the noise (N, C, S, S) of each step of a sampler; step 0 is what sampling begins with.

    For a CPU another thread makes each one while the network works on the step before it; a GPU is quicker than that.
    """

    def make(step: int) -> torch.Tensor:
        return noise_rows(streams.noise(step), streams.part, streams.shape, device)

    with contextlib.closing(Ahead(make, ahead=1, last=steps - 1)) as ahead:
        # a sampler that draws nothing on its way asks for step 0 only, and nothing is made ahead
        yield lambda step: ahead(step) if step and device == "cpu" else make(step)


class Drawn(NamedTuple):
    """Samples `first`, `first + 1`, ... of an evaluation before they are decoded."""

    first: int
    x0: torch.Tensor  # (n, C, S, S)
    labels: torch.Tensor  # (n,) int64, on the CPU


@dataclass(frozen=True)
class Generator:
    """Makes the samples of an evaluation. Each is a pure function of the weights, the evaluation and its index.

    Attributes:
        network: as `load_weights` gives it.
        cell: for its objective and its data.
        evaluation: how to sample.
        device: where the network is.
        decode: turns latents into images; pixels stay as they are.
        class_counts: (classes,), images of each class in the train split; needed for `labels = "training"`.
        weights: checksum of the network's weights file; kept samples of other weights are made again. None: not known.
        compiled: whether the network is compiled, which moves its outputs within rounding.
    """

    network: Network
    cell: Cell
    evaluation: Evaluation
    device: str
    decode: Decode = lambda x0: x0
    class_counts: NDArray[np.int64] | None = None
    weights: int | None = None
    compiled: bool = False

    @property
    def origin(self) -> Origin:
        """What tells its samples from others."""
        return Origin(self.cell.id, self.evaluation, self.weights)

    def draw(self, first: int, count: int, hooks: Hooks, *, whole: bool = True) -> Drawn:
        """Samples `first` .. `first + count - 1`; without labels in the data, all labels are 0.

        A last part that is not `whole` is not compiled: it would need code of its own.
        """
        evaluation, shape = self.evaluation, self.cell.data.shape
        streams = streams_of(evaluation, first, count, shape)
        labels = torch.zeros(count, dtype=torch.int64)
        if shape.classes:
            labels = torch.from_numpy(streams.labels(shape.classes, evaluation.labels, self.class_counts))
        y = labels.to(self.device) if shape.classes else None

        def progress(steps_done: int) -> None:
            done = first + count * steps_done / evaluation.sampling_steps
            hooks.report({"stage": "sample", "done": round(done), "total": evaluation.samples})

        eager = self.compiled and not whole
        with torch.compiler.set_stance("force_eager") if eager else nullcontext():
            x0 = draw(self.network, self.cell.diffusion, evaluation, streams, y, progress)
        return Drawn(first, x0, labels)

    @torch.inference_mode()
    def finish(self, drawn: Drawn) -> dict[str, torch.Tensor]:
        """Decode: `images` (n, H, W, channels) uint8 and `labels` (n,) int64, on the CPU.

        Raises:
            NonFiniteError: samples hold values that are not finite.
        """
        first, x0, labels = drawn
        with non_finite_in(f"samples {first} to {first + len(x0) - 1} of {self.evaluation.samples}"):
            require_finite_values(x0, "samples", first)
            images = to_uint8(self.decode(x0), "decoded samples", first)
        return {"images": images.permute(0, 2, 3, 1).cpu().contiguous(), "labels": labels}

    def finishing(self, drawn: Drawn, beside: Executor) -> Callable[[], dict[str, torch.Tensor]]:
        """What `finish` gives: begun `beside` for a GPU, when it is asked for on a CPU, whose cores are busy."""
        if self.device == "cpu":
            return partial(self.finish, drawn)
        return beside.submit(self.finish, drawn).result


def generate(
    generator: Generator, run: Run, key: str, *, batch: int, hooks: Hooks, ranks: Ranks | None = None
) -> Made | None:
    """Images (N, H, W, channels) and labels (N,) of an evaluation; finished parts are not made again.

    Each rank makes one part at a time. The first rank writes all parts and returns the result; the others return None.
    While the parts of one turn are sampled, another thread of each rank decodes those of the turn before, where a GPU
    samples, and writes those of the turn before that. A CPU decodes in turn: its cores are busy as it is.

    Args:
        generator: see `Generator`.
        run: where the parts are kept.
        key: name of the parts' folder.
        batch: samples per part.
        hooks: see `Hooks`.
        ranks: the ranks that share the work.

    Raises:
        NonFiniteError: samples hold values that are not finite.
        StoppedError: any rank was asked to stop; the finished parts are kept.
    """
    ranks, evaluation = ranks or Ranks(), generator.evaluation
    counts = {first: min(batch, evaluation.samples - first) for first in range(0, evaluation.samples, batch)}
    parts = Parts(run, key, generator.origin, hooks.writing, compiled=generator.compiled)
    labels: dict[int, NDArray[np.int64]] = {}  # by the first index of finished parts; on the first rank only

    def missing() -> list[int]:
        found = {first: parts.find(first, count) for first, count in counts.items()}
        labels.update({first: part for first, part in found.items() if part is not None})
        return [first for first in counts if first not in labels]

    left = ranks.on_first(missing)
    if left and ranks.is_first:  # features may be those of samples that are made again
        with hooks.writing():
            run.remove_features(key)
    before: list[int] = []  # the parts of the last turn
    decode: Callable[[], dict[str, torch.Tensor]] | None = None  # decodes this rank's part of them
    writes: list[Future[None]] = []
    with helpers("samples") as beside:
        for turn in range(0, len(left) + ranks.world, ranks.world):  # after the last turn, one without samples
            now = left[turn : turn + ranks.world]
            stops = ranks.any_rank(bool(now) and hooks.should_stop())
            with ranks.together():
                part = None
                if not stops and ranks.rank < len(now):
                    first = now[ranks.rank]
                    part = generator.draw(first, counts[first], hooks, whole=counts[first] == counts[0])
                mine = None if decode is None else decode()
            for write in writes:
                write.result()
            writes = []
            for first, done in zip(before, ranks.gather(mine), strict=False):
                if done is not None:
                    labels[first] = done["labels"].numpy()
                    writes.append(beside.submit(parts.write, first, done))
            if stops:
                break
            before, decode = now, None if part is None else generator.finishing(part, beside)
        for write in writes:
            write.result()
    if stops:
        raise StoppedError(f"stopped at sample {now[0]} of {evaluation.samples}; the next launch goes on there")
    if not ranks.is_first:
        return None
    drawn = sum(counts[first] for first in left)
    return Made(Samples(run, key, evaluation.samples, batch), np.concatenate([labels[f] for f in counts]), drawn)


class Made(NamedTuple):
    """What `generate` returns."""

    images: Samples  # (N, H, W, channels)
    labels: NDArray[np.int64]  # (N,)
    drawn: int  # how many of them were made now; the others were there
