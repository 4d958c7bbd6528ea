"""How a job learns that it has to stop."""

from __future__ import annotations

import os
import signal
from types import FrameType

from harness.processes import now

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopFlag:
    """Set by a signal and, using `with_parent`, by the parent's end; the work checks it between two steps."""

    def __init__(self, *, with_parent: bool = False) -> None:
        self._set = self._requeue = False
        self._parent = os.getppid() if with_parent else None
        self._requeue_by_submitit = signal.getsignal(signal.SIGUSR2)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._set = True
        self._requeue |= number == signal.SIGUSR2

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
