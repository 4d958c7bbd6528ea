"""A training that goes on while it is called and waits in between: timed warm, in turn with others."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from harness.data.dataset import LoadedData
from harness.data.latents import Latents
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.training.hooks import Hooks, Report
from harness.training.loop import Options, train
from harness.training.ranks import Ranks
from tests.bench.pairs import Told

#: Steps before the first call returns: compilation, and the first look at the clock.
_WARM = 3


class _EndedError(Exception):
    """Nobody calls any more."""


class Ongoing:
    """The whole loop of a training, with EMA, log and checkpoints, in a thread of its own.

    What is timed beside it runs in that thread, too (see `beside`), and the main thread computes with one core: two
    pools of cores in one process make both slow (see `harness.threads.helpers`).

    Args:
        cell: what to train; it never ends by itself.
        source: its data.
        options: of the training.
        steps: about how many steps a call makes.
        ranks: the ranks that share the work; the others wait for this one.
        threads: cores that it trains on.
    """

    def __init__(
        self,
        cell: Cell,
        source: LoadedData | Latents,
        options: Options,
        steps: int,
        *,
        ranks: Ranks | None = None,
        threads: int = 1,
    ) -> None:
        torch.set_num_threads(1)
        self._steps, self._done, self._until = steps, 0, _WARM
        self._told, self._threads = 0.0, threads
        self._work: Callable[[], object] | None = None
        self._go, self._paused = threading.Event(), threading.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._train, args=(cell, source, options, ranks), daemon=True)
        self._thread.start()
        self._wait()

    def __call__(self) -> Told:
        """Go on for some steps; the seconds that `steps` of them take."""
        first, begun = self._done, time.perf_counter()
        self._until = first + self._steps
        self._go.set()
        self._wait()
        return Told((self._told - begun) / (self._done - first) * self._steps)

    def beside(self, work: Callable[[], object]) -> Callable[[], Told]:
        """The same work, done by the training's thread while it waits; it tells its seconds."""

        def call() -> Told:
            self._work = work
            self._go.set()
            self._wait()
            return Told(self._told)

        return call

    def close(self) -> None:
        """End the training."""
        self._ended = True
        self._go.set()
        self._thread.join()

    def _wait(self) -> None:
        self._paused.wait()
        self._paused.clear()
        if self._error is not None:
            raise self._error

    def _train(self, cell: Cell, source: LoadedData | Latents, options: Options, ranks: Ranks | None) -> None:
        torch.set_num_threads(self._threads)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder) / "run")
            run.folder.mkdir()
            try:
                train(cell, source, run, options, Hooks(report=self._report), ranks)
            except _EndedError:
                pass
            except BaseException as error:  # the caller raises it
                self._error = error
                self._paused.set()

    def _report(self, value: Report) -> None:
        self._done, self._told = value["done"], time.perf_counter()
        if self._done < self._until:
            return
        while True:
            self._go.clear()
            self._paused.set()
            self._go.wait()
            if self._ended:
                raise _EndedError
            if self._work is None:
                return
            begun = time.perf_counter()
            self._work()
            self._told, self._work = time.perf_counter() - begun, None
