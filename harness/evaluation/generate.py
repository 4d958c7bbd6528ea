"""Sampling of one evaluation, in parts that are each a pure function of (weights, evaluation, sample indices)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from harness.data.dataset import ImageArray
from harness.data.draws import SampleStreams
from harness.data.pixels import to_uint8
from harness.diffusion.ddpm import sample
from harness.diffusion.guidance import guided
from harness.diffusion.schedule import Schedule
from harness.errors import CellFailedError
from harness.files import write_atomic
from harness.model.dit import DiT
from harness.runs.layout import Run
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.training import checkpoint
from harness.training.hooks import Hooks, StoppedError
from harness.training.ranks import Ranks

#: Model output (N, C, S, S) to images (N, channels, H, W) in [-1, 1].
Decode = Callable[[torch.Tensor], torch.Tensor]


def pixels(x0: torch.Tensor) -> torch.Tensor:
    """Decode what is pixels already."""
    return x0


#: Rows (classes, or blocks of samples) and columns of the sample picture.
GRID_ROWS, GRID_COLUMNS = 10, 10


def load_weights(run: Run, cell: Cell, step: int, *, ema: bool, device: str, ranks: Ranks | None = None) -> DiT:
    """The model of a finished training, with plain or averaged weights, on every rank.

    Raises:
        CorruptCheckpointError: the file is torn; on the first rank.
        CellFailedError: it holds the weights of another model.
    """
    prefix = "ema." if ema else "model."

    def read() -> tuple[dict[str, torch.Tensor], None]:
        tensors, _ = checkpoint.load(run.weights_file(step))
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}, None

    found = (ranks or Ranks()).load(read)
    assert found is not None
    dit = DiT(cell.model, cell.data.shape)
    try:
        dit.load_state_dict(found[0])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CellFailedError(f"{run.weights_file(step)}: weights of another architecture ({reason})") from None
    return dit.to(device).eval().requires_grad_(False)


def generate(
    dit: DiT,
    cell: Cell,
    evaluation: Evaluation,
    run: Run,
    key: str,
    *,
    device: str,
    batch: int,
    hooks: Hooks,
    decode: Decode = pixels,
    class_counts: NDArray[np.int64] | None = None,
    ranks: Ranks | None = None,
) -> tuple[Samples, NDArray[np.int64]] | None:
    """Images (N, H, W, channels) and labels (N,) of an evaluation; parts that exist are not made again.

    Without labels in the data, all labels are 0. Latents become images by `decode`. Labels as in training need
    `class_counts` (classes,), the images of each class in the train split. Several ranks make a part each at a time;
    the first one writes and returns them all, the others return None.

    Raises:
        StoppedError: any rank was asked to stop; the finished parts are kept.
    """
    ranks = ranks or Ranks()
    schedule = Schedule.of(cell.diffusion).respaced(evaluation.sampling_steps)
    counts = {first: min(batch, evaluation.samples - first) for first in range(0, evaluation.samples, batch)}
    labels: dict[int, NDArray[np.int64]] = {}  # of the parts that are there; known to the first rank

    def missing() -> list[int]:
        for first, count in counts.items():
            with contextlib.suppress(FileNotFoundError, checkpoint.CorruptCheckpointError):
                part, _ = checkpoint.load(run.samples_part(key, first))
                if len(part["images"]) == count:
                    labels[first] = part["labels"].numpy()
        return [first for first in counts if first not in labels]

    left = ranks.first(missing)
    for turn in range(0, len(left), ranks.world):
        now = left[turn : turn + ranks.world]
        if ranks.any(hooks.should_stop()):
            raise StoppedError(f"stopped at sample {now[0]} of {evaluation.samples}; the next launch goes on there")
        mine = None
        if ranks.rank < len(now):
            first = now[ranks.rank]
            mine = _generate_part(
                dit, cell, evaluation, schedule, first, counts[first], device, hooks, decode, class_counts
            )
        for first, part in zip(now, ranks.gather(mine), strict=False):
            if part is not None:
                hooks.before_write()
                checkpoint.save(run.samples_part(key, first), part, {"first": first, "evaluation": evaluation.id})
                labels[first] = part["labels"].numpy()
    if not ranks.leads:
        return None
    return Samples(run, key, evaluation.samples, batch), np.concatenate([labels[first] for first in counts])


class Samples:
    """The generated images of an evaluation, an `ImageArray`: of the parts on disk, one is in memory."""

    def __init__(self, run: Run, key: str, count: int, batch: int) -> None:
        self._run, self._key, self._count, self._batch = run, key, count, batch
        self._part = functools.lru_cache(maxsize=1)(self._read)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, channels)."""
        return (self._count, *self._part(0).shape[1:])

    def __len__(self) -> int:
        return self._count

    def array(self) -> NDArray[np.uint8]:
        """All images at once, in memory."""
        images: NDArray[np.uint8] = self[np.arange(self._count)]
        return images

    def __getitem__(self, index: Any, /) -> Any:
        """One image for a number, several for an array of numbers.

        Raises:
            CellFailedError: a part is gone or damaged.
        """
        if isinstance(index, int | np.integer):
            return self._part(int(index) // self._batch)[int(index) % self._batch]
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


@torch.inference_mode()
def _generate_part(
    dit: DiT,
    cell: Cell,
    evaluation: Evaluation,
    schedule: Schedule,
    first: int,
    count: int,
    device: str,
    hooks: Hooks,
    decode: Decode,
    class_counts: NDArray[np.int64] | None,
) -> dict[str, torch.Tensor]:
    shape = cell.data.shape
    streams = SampleStreams(evaluation.seed, first, count, (shape.channels, shape.size, shape.size))
    labels = torch.zeros(count, dtype=torch.int64)
    if shape.classes:
        labels = torch.from_numpy(streams.labels(shape.classes, evaluation.labels, class_counts))
    y = labels.to(device) if shape.classes else None

    def progress(steps_done: int) -> None:
        done = first + count * steps_done / evaluation.sampling_steps
        hooks.report({"stage": "sample", "done": round(done), "total": evaluation.samples})

    x0 = sample(
        guided(dit, y, evaluation.guidance, evaluation.guided_channels(shape.channels)),
        torch.from_numpy(streams.noise()).to(device),
        schedule,
        evaluation.sampler,
        lambda _: torch.from_numpy(streams.noise()).to(device),
        progress,
    )
    return {"images": to_uint8(decode(x0)).permute(0, 2, 3, 1).cpu().contiguous(), "labels": labels}


def save_grid(run: Run, key: str, images: ImageArray, labels: NDArray[np.int64]) -> None:
    """A picture of samples, one row a class; the same noise and labels in every cell of a study."""
    classes = np.unique(labels)
    if len(classes) > 1:
        rows = [np.flatnonzero(labels == c)[:GRID_COLUMNS] for c in classes[:GRID_ROWS]]
    else:
        rows = [r for r in np.array_split(np.arange(min(len(images), GRID_ROWS * GRID_COLUMNS)), GRID_ROWS) if len(r)]
    picked = iter(images[np.concatenate(rows)])
    side, channels = images.shape[1], images.shape[3]
    scale = max(1, 32 // side)
    gap = 1
    canvas = np.full((len(rows) * (side + gap) + gap, GRID_COLUMNS * (side + gap) + gap, channels), 128, dtype=np.uint8)
    for r, row in enumerate(rows):
        for c in range(len(row)):
            top, left = gap + r * (side + gap), gap + c * (side + gap)
            canvas[top : top + side, left : left + side] = next(picked)
    picture = Image.fromarray(canvas[..., 0] if channels == 1 else canvas)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    write_atomic(run.grid_file(key), lambda path: picture.save(path, format="PNG"))
