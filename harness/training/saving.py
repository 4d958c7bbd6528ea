"""Weights and states of a training, written by another thread from a copy while the loop goes on.

At most one writing is under way, in this order: the log, the weights of a kept step, the state; only then an older one
is removed. So a kill at any moment costs the steps after the last whole state, no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import Future

import torch
from torch import Tensor

from harness.data.draws import DRAWS
from harness.errors import non_finite_in
from harness.runs.layout import step_of
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.threads import helpers
from harness.training import checkpoint
from harness.training.cadence import Cadence
from harness.training.hooks import Hooks
from harness.training.state import TrainState


class Checkpoints:
    """Writes the weights of the kept steps and, from time to time, the full state; the log of their steps before.

    Args:
        state: what is written.
        cell: the recipe.
        run: the run folder.
        hooks: see `Hooks`.
        keep: the steps whose weights are kept.
        seconds: time between states, see `harness.training.cadence`.
        flush: writes the rows of the log that are not in its file yet.
    """

    def __init__(
        self,
        state: TrainState,
        cell: Cell,
        run: Run,
        hooks: Hooks,
        keep: Collection[int],
        seconds: float | None,
        flush: Callable[[], None],
    ) -> None:
        self._state, self._cell, self._run, self._hooks, self._keep = state, cell, run, hooks, keep
        self._log, self._flush = TrainLog(run), flush
        self._cadence, self._each = Cadence(seconds), seconds == 0
        self._pool = helpers("checkpoint")
        self._writing: Future[None] | None = None
        self._copies: dict[str, Tensor] = {}  # in the host's memory, used again and again

    def after_step(self) -> None:
        """Begin to write what is due. A state that is due while another is being written waits for the next look.

        Raises:
            Exception: what the writing before ran into.
        """
        state = self._state
        if self._writing is not None and self._writing.done():
            self.wait()
        may = state.step < self._cell.training.steps and (self._writing is None or self._each)
        full = may and self._cadence.is_due(state.seconds)
        if full or state.step in self._keep:
            self._begin(full=full)

    def save_state(self) -> None:
        """Write the full state, and wait until it is written."""
        self._begin(full=True)
        self.wait()

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            Exception: what the writing ran into.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let the writing end, whatever comes of it."""
        self._pool.shutdown()

    def _begin(self, *, full: bool) -> None:
        """Copy what is to be written, and let the thread write it."""
        self.wait()  # the copy is used again
        self._flush()
        state, step = self._state, self._state.step
        kept, meta = step in self._keep, state.meta()
        tensors = state.tensors() if full else state.weights()
        copied = self._copy(tensors)
        weights = {name: self._copies[name] for name in state.weights()} if kept else {}
        copies = {name: self._copies[name] for name in tensors}

        def write() -> None:
            begun = time.monotonic()
            if copied is not None:
                copied.synchronize()
            with non_finite_in(after_step(self._cell, step)), self._hooks.writing():
                self._log.sync()
                if kept:
                    named = {"step": step, "cell": self._cell.id, "draws": DRAWS}
                    checkpoint.save(self._run.weights_file(step), weights, named)
                if full:
                    checkpoint.save(self._run.state_file(step), copies, meta)
                    self._drop_others(step)
            if full:
                self._cadence.saved(time.monotonic() - begun)

        self._writing = self._pool.submit(write)

    @torch.no_grad()
    def _copy(self, tensors: dict[str, Tensor]) -> torch.cuda.Event | None:
        """Copy tensors to the host; of a GPU's, an event that comes when they are there.

        The stream of the GPU changes the weights only after it has copied them, so the loop need not wait.
        """
        for name, tensor in tensors.items():
            if name not in self._copies:
                self._copies[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._copies[name].copy_(tensor, non_blocking=True)
        if not any(tensor.is_cuda for tensor in tensors.values()):
            return None
        copied = torch.cuda.Event()
        copied.record()
        return copied

    def _drop_others(self, step: int) -> None:
        """Drop all states but this one and the one before, which is the spare.

        A later one, of another cell or from which this training could not go on, is dropped too.
        """
        run = self._run
        spare = [path for path in run.state_files() if step_of(path) < step][:1]
        for path in run.state_files():
            if path not in (run.state_file(step), *spare):
                path.unlink(missing_ok=True)


def after_step(cell: Cell, step: int) -> str:
    """Where a training is, and with what it trains, for the message of an error."""
    return f"after step {step} (learning_rate {cell.training.learning_rate}, precision {cell.training.precision})"
