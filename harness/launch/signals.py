"""How a job and a launcher learn that they have to stop, and that no signal is lost while a job starts.

Ctrl-C, the hang-up of the terminal (SIGHUP) and SIGTERM ask for the same: a launcher stops its jobs in order, and a
job writes a checkpoint. What is ignored already when the process starts (`nohup`, a script's `&`) stays ignored.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.processes import now
from harness.training.hooks import StoppedError

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)

#: What a terminal sends to all its processes, or not at all where the user has said so.
_OF_TERMINAL = (signal.SIGINT, signal.SIGHUP)


_STOPPED = "stopped while scoring; the next launch goes on there"


class StopFlag:
    """Set by a signal and, using `with_parent`, by the parent's end; the work checks it between two steps."""

    _raises = False

    def __init__(self, *, with_parent: bool = False) -> None:
        self._set = self._requeue = False
        self._parent = os.getppid() if with_parent else None
        self._requeue_by_submitit = signal.getsignal(signal.SIGUSR2)
        for number in _STOP_SIGNALS:
            if number not in _OF_TERMINAL or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINAL)  # what `held` has kept back for this process

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True
        self._requeue |= number == signal.SIGUSR2
        if self._raises:
            self._raises = False  # what cleans up is left alone
            raise StoppedError(_STOPPED)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A signal raises an error in here, for computations that take long and have no step at which to look.

        Raises:
            StoppedError: asked to stop, before this or in here.
        """
        if self.is_set():
            raise StoppedError(_STOPPED)
        before, self._raises = self._raises, True
        try:
            yield
        finally:
            self._raises = before

    def requeue(self) -> None:
        """After USR2 let submitit requeue this Slurm job, and exit. Called when everything is written."""
        if not self._requeue or not callable(self._requeue_by_submitit):
            return
        try:
            self._requeue_by_submitit(signal.SIGUSR2, None)
        except Exception as error:  # Slurm does not answer: the next launch goes on with the cell
            print(f"[{now()}] not requeued: {error}", flush=True)

    def is_set(self) -> bool:
        """Whether it is time to stop."""
        return self._set or self._parent not in (None, os.getppid())


@contextmanager
def interrupting() -> Iterator[None]:
    """Let SIGHUP and SIGTERM raise KeyboardInterrupt in here, as Ctrl-C does, where they would kill the process."""
    numbers = [n for n in (signal.SIGHUP, signal.SIGTERM) if signal.getsignal(n) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def interrupt_no_more() -> None:
    """Ignore SIGHUP and SIGTERM from here on: a terminal and its shell may send several, and one has been heard."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """Hold back the signals that ask this process to stop until the end; none of them is dropped.

    A process that is started in here begins with those of a terminal blocked: they reach it when its `StopFlag` is
    made, and do not kill it while it imports.
    """
    came: list[int] = []
    numbers = [n for n in (*_OF_TERMINAL, signal.SIGTERM) if callable(signal.getsignal(n))]
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(signal.Signals(came[0]))
