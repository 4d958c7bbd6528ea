"""The inputs of the coming steps, made by other threads while the network works on the present one.

They are a pure function of (cell, step), so nothing of them is part of a state. numpy and the copies to a GPU let go of
the interpreter lock, so the loop's thread finds them ready.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from harness.data.ahead import Ahead
from harness.data.batches import Batches, upload
from harness.data.draws import posterior_noise, sample_indices, step_draws, step_noise
from harness.data.noise import noise_rows
from harness.diffusion.objective import Objective
from harness.spec.cell import Cell

#: Steps that are made ahead.
AHEAD = 3

#: Threads that make them for a GPU, which works off several steps of a small model while one is made.
GPU_THREADS = 3


#: On a CPU, inputs of fewer values are made by the loop's own thread, in less than a millisecond: another thread would
#: take a core from the network's threads, which wait for one another at every operator.
_SMALL = 1 << 16


class Inputs(NamedTuple):
    """What one rank trains on in one step, on its device; n images."""

    x0: Tensor  # (n, C, S, S) float32, clean
    y: Tensor | None  # (n,) int64, labels, some replaced by the null class; None without classes
    t: Tensor  # (n,), times as the objective draws them
    noise: Tensor  # (n, C, S, S) float32, standard normal


class Feed:
    """The inputs of one step after the other.

    Args:
        cell: the recipe and the seeds.
        data: the train split.
        objective: draws the times.
        part: this rank's places in the global batch.
        device: "cpu" or "cuda".
    """

    def __init__(self, cell: Cell, data: Batches, objective: Objective, part: slice, device: str) -> None:
        self._cell, self._data, self._objective = cell, data, objective
        self._seeds = cell.drawn
        self._part, self._device = part, device
        self._gpu = None if device == "cpu" else torch.cuda.current_device()
        threads = 1 if self._gpu is None else GPU_THREADS
        shape = cell.data.shape
        self._small = self._gpu is None and (part.stop - part.start) * shape.channels * shape.size**2 < _SMALL
        self._ahead = Ahead(self._make, AHEAD, cell.training.steps - 1, threads)

    def __call__(self, step: int) -> Inputs:
        """The inputs of a step; those of the steps after it are begun, unless they are small."""
        if self._small:
            return self._inputs(step)
        inputs, ready = self._ahead(step)
        if ready is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(ready)
            for tensor in inputs:
                if tensor is not None:
                    tensor.record_stream(stream)  # its memory is free when this stream is done with it
        return inputs

    def close(self) -> None:
        """Make nothing more."""
        self._ahead.close()

    def _make(self, step: int) -> tuple[Inputs, torch.cuda.Event | None]:
        if self._gpu is None:
            return self._inputs(step), None
        torch.cuda.set_device(self._gpu)  # a new thread does not know which GPU is this rank's
        with torch.cuda.stream(torch.cuda.Stream()):  # beside the network's
            inputs, ready = self._inputs(step), torch.cuda.Event()
            ready.record()
        return inputs, ready

    def _inputs(self, step: int) -> Inputs:
        cell, part, device = self._cell, self._part, self._device
        recipe, shape, seeds = cell.training, cell.data.shape, self._seeds
        indices = sample_indices(seeds.order, step, recipe.batch_size, len(self._data.labels))
        draws = step_draws(seeds, step, recipe.batch_size, self._objective.draw_training, recipe.label_dropout)
        mirror = draws.flip if cell.data.horizontal_flips else None
        x0 = self._data.x0(indices, mirror, posterior_noise(seeds.noise, step), part)
        y = None
        if shape.classes:
            labels = self._data.labels[upload(indices[part], device)]
            y = labels.masked_fill(upload(draws.drop_label[part], device), shape.classes)  # null
        noise = noise_rows(step_noise(seeds.noise, step), part, (shape.channels, shape.size, shape.size), device)
        return Inputs(x0, y, upload(draws.t[part], device), noise)
