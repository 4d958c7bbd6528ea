"""How often a training writes its state. What is learned does not depend on it."""

from __future__ import annotations

import time

#: By default a state is written when this share of the work so far would be lost without it, but
_SHARE = 0.1

#: not more often than this, in seconds,
LEAST_SECONDS = 5.0

#: not so often that writing takes more than about a fiftieth of the time,
_WRITING = 50

#: and at least this often, in seconds.
MOST_SECONDS = 120.0


class Cadence:
    """Says when the next state is due.

    Args:
        seconds: between two states; 0: one at every step. None: a tenth of the time trained so far, 5 s to 2 min.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds, self._saved_at, self._took = seconds, time.monotonic(), 0.0

    def is_due(self, trained: float) -> bool:
        """Whether a state is due, after so many seconds of training, in all attempts."""
        return time.monotonic() - self._saved_at >= self.pause(trained)

    def pause(self, trained: float) -> float:
        """Seconds from one state to the next."""
        if self._seconds is not None:
            return self._seconds
        return min(MOST_SECONDS, max(LEAST_SECONDS, _SHARE * trained, _WRITING * self._took))

    def saved(self, took: float) -> None:
        """A state was written just now, which took so many seconds."""
        self._saved_at, self._took = time.monotonic(), took
