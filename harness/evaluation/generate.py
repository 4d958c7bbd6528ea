"""Sampling of one evaluation, in parts; each part is a pure function of (weights, evaluation, sample indices)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import ImageArray
from harness.data.draws import SampleStreams
from harness.data.noise import noise_rows
from harness.data.pixels import require_finite_values, to_uint8
from harness.diffusion.guidance import guided
from harness.diffusion.objective import build as build_objective
from harness.errors import CellFailedError, non_finite_in
from harness.files import write_atomic
from harness.model.network import Network, build
from harness.runs.cellruns import split_key
from harness.runs.layout import belongs
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.data import InputShape
from harness.spec.diffusion import DiffusionSpec
from harness.spec.evaluation import Evaluation
from harness.training import checkpoint
from harness.training.hooks import Hooks, StoppedError
from harness.training.ranks import Ranks

#: Maps model output (N, C, S, S) to images (N, channels, H, W) in [-1, 1].
Decode = Callable[[torch.Tensor], torch.Tensor]


#: Rows (classes, or blocks of samples) and columns of the sample picture.
GRID_ROWS, GRID_COLUMNS = 10, 10


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
    with NoiseAhead(streams, device.type) as noise:
        return objective.sample(
            evaluation.sampler, denoise, noise(0), evaluation.sampling_steps, lambda step: noise(step + 1), progress
        )


class NoiseAhead:
    """The noise of one step of a sampler after the other; for a CPU another thread makes it one step ahead."""

    def __init__(self, streams: SampleStreams, device: str) -> None:
        self._streams, self._device = streams, device
        self._pool = ThreadPoolExecutor(1, "noise")
        self._next: tuple[int, Future[torch.Tensor]] | None = None

    def __call__(self, step: int) -> torch.Tensor:
        """Noise of a step, (N, C, S, S); step 0 is what sampling begins with."""
        if self._device != "cpu":
            return self._make(step)
        found = self._next[1].result() if self._next and self._next[0] == step else self._make(step)
        self._next = (step + 1, self._pool.submit(self._make, step + 1)) if step else None
        return found

    def _make(self, step: int) -> torch.Tensor:
        return noise_rows(self._streams.noise(step), self._streams.part, self._streams.shape, self._device)

    def __enter__(self) -> NoiseAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


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
    """

    network: Network
    cell: Cell
    evaluation: Evaluation
    device: str
    decode: Decode = lambda x0: x0
    class_counts: NDArray[np.int64] | None = None
    weights: int | None = None

    @property
    def origin(self) -> dict[str, Any]:
        """What tells its samples from those of other weights and evaluations."""
        return {"cell": self.cell.id, "evaluation": self.evaluation.id, "weights": self.weights}

    @torch.inference_mode()
    def __call__(self, first: int, count: int, hooks: Hooks) -> dict[str, torch.Tensor]:
        """Samples `first` .. `first + count - 1`: `images` (count, H, W, channels) uint8 and `labels` (count,) int64.

        Without labels in the data, all labels are 0.

        Raises:
            NonFiniteError: samples hold values that are not finite.
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

        x0 = draw(self.network, self.cell.diffusion, evaluation, streams, y, progress)
        with non_finite_in(f"samples {first} to {first + count - 1} of {evaluation.samples}"):
            require_finite_values(x0, "samples", first)
            images = to_uint8(self.decode(x0), "decoded samples", first)
        return {"images": images.permute(0, 2, 3, 1).cpu().contiguous(), "labels": labels}


def generate(
    generator: Generator,
    run: Run,
    key: str,
    others: Sequence[str] = (),
    *,
    batch: int,
    hooks: Hooks,
    ranks: Ranks | None = None,
) -> Made | None:
    """Images (N, H, W, channels) and labels (N,) of an evaluation; finished parts are not made again.

    Each rank makes one part at a time. The first rank writes all parts and returns the result; the others return None.

    Args:
        generator: see `Generator`.
        run: where the parts are kept.
        key: name of the parts' folder.
        others: keys of evaluations with the same samples; a part that one of them has is taken from there.
        batch: samples per part.
        hooks: see `Hooks`.
        ranks: the ranks that share the work.

    Raises:
        NonFiniteError: samples hold values that are not finite.
        StoppedError: any rank was asked to stop; the finished parts are kept.
    """
    ranks, evaluation = ranks or Ranks(), generator.evaluation
    parts = _Parts(generator, run, key, batch, hooks)
    left = ranks.on_first(parts.missing)
    if left and ranks.is_first:  # features may be those of samples that are made again
        with hooks.writing():
            run.remove_features(key)
    left = ranks.on_first(lambda: [first for first in left if not parts.copy(first, others)])
    for turn in range(0, len(left), ranks.world):
        now = left[turn : turn + ranks.world]
        if ranks.any_rank(hooks.should_stop()):
            raise StoppedError(f"stopped at sample {now[0]} of {evaluation.samples}; the next launch goes on there")
        mine = None
        with ranks.together():
            if ranks.rank < len(now):
                first = now[ranks.rank]
                mine = generator(first, parts.counts[first], hooks)
        for first, part in zip(now, ranks.gather(mine), strict=False):
            if part is not None:
                parts.save(first, part)
    if not ranks.is_first:
        return None
    labels = np.concatenate([parts.labels[first] for first in parts.counts])
    return Made(Samples(run, key, evaluation.samples, batch), labels)


class _Parts:
    """The parts of an evaluation's samples in a run folder.

    Attributes:
        counts: samples of every part, by the first index.
        labels: of the finished parts; on the first rank only.
    """

    def __init__(self, generator: Generator, run: Run, key: str, batch: int, hooks: Hooks) -> None:
        samples = generator.evaluation.samples
        self.counts = {first: min(batch, samples - first) for first in range(0, samples, batch)}
        self.labels: dict[int, NDArray[np.int64]] = {}
        self._origin, self._run, self._key, self._hooks = generator.origin, run, key, hooks

    def missing(self) -> list[int]:
        """The first indices of the parts that are not there."""
        for first in self.counts:
            if (part := self._read(self._key, first)) is not None:
                self.labels[first] = part["labels"].numpy()
        return [first for first in self.counts if first not in self.labels]

    def save(self, first: int, part: dict[str, torch.Tensor]) -> None:
        """Write a part."""
        with self._hooks.writing():
            path = self._run.samples_part(self._key, first)
            checkpoint.save(path, part, {"first": first, "finite": True, **self._origin})
        self.labels[first] = part["labels"].numpy()

    def copy(self, first: int, others: Sequence[str]) -> bool:
        """Take a part from the first evaluation that has it, of the same weights; whether one has."""
        for other in others if self._origin["weights"] is not None else ():
            if (part := self._read(other, first)) is not None:
                self.save(first, part)
                return True
        return False

    def _read(self, key: str, first: int) -> dict[str, torch.Tensor] | None:
        origin = {**self._origin, "evaluation": split_key(key)[0]} if key != self._key else self._origin
        with contextlib.suppress(FileNotFoundError, checkpoint.CorruptCheckpointError):
            part, meta = checkpoint.load(self._run.samples_part(key, first))
            is_asked_for = all(meta.get(name, value) == value for name, value in origin.items())
            # a part of version 0.1.0 may hold values that are not finite, as black or white: it is made again
            if is_asked_for and len(part["images"]) == self.counts[first] and meta.get("finite"):
                return part
        return None


class Samples:
    """The generated images of an evaluation, an `ImageArray`; only one part at a time is in memory."""

    def __init__(self, run: Run, key: str, count: int, batch: int) -> None:
        self._run, self._key, self._count, self._batch = run, key, count, batch
        self._part = functools.lru_cache(maxsize=1)(self._read)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, channels)."""
        return (self._count, *self._part(0).shape[1:])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any, /) -> Any:
        """Images (n, H, W, channels) for an array of n indices.

        Raises:
            CellFailedError: a part is missing or damaged.
        """
        wanted = np.asarray(index, dtype=np.int64)
        images = np.empty((len(wanted), *self.shape[1:]), dtype=np.uint8)
        parts = wanted // self._batch
        for part in np.unique(parts):
            here = parts == part
            images[here] = self._part(int(part))[wanted[here] % self._batch]
        return images

    def _read(self, number: int) -> NDArray[np.uint8]:
        path = self._run.samples_part(self._key, number * self._batch)
        try:
            part, _ = checkpoint.load(path)
        except (FileNotFoundError, checkpoint.CorruptCheckpointError) as error:
            raise CellFailedError(f"{path}: missing or damaged ({error}); launch again with --retry") from None
        images: NDArray[np.uint8] = part["images"].numpy()
        return images


class Made(NamedTuple):
    """What `generate` returns."""

    images: Samples  # (N, H, W, channels)
    labels: NDArray[np.int64]  # (N,)


def save_grid(run: Run, key: str, images: ImageArray, labels: NDArray[np.int64]) -> None:
    """Write a picture of samples, one row per class; noise and labels are the same in every cell of a study."""
    classes = np.unique(labels)
    if len(classes) > 1:
        rows = [np.flatnonzero(labels == c)[:GRID_COLUMNS] for c in classes[:GRID_ROWS]]
    else:
        rows = [r for r in np.array_split(np.arange(min(len(images), GRID_ROWS * GRID_COLUMNS)), GRID_ROWS) if len(r)]
    save_picture(run.grid_file(key), images, rows, GRID_COLUMNS)


def save_picture(path: Path, images: ImageArray, rows: Sequence[NDArray[np.int64]], columns: int) -> None:
    """Write images (N, H, W, channels) as one PNG, small ones enlarged; a row holds the indices of its images."""
    picked = iter(images[np.concatenate(rows)])
    side, channels = images.shape[1], images.shape[3]
    scale = max(1, 32 // side)
    gap = 1
    canvas = np.full((len(rows) * (side + gap) + gap, columns * (side + gap) + gap, channels), 128, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c in range(len(row)):
            top, left = gap + r * (side + gap), gap + c * (side + gap)
            canvas[top : top + side, left : left + side] = next(picked)
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))
