"""What is asked for next, made by other threads meanwhile. Imports no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from harness.threads import helpers

T = TypeVar("T")


class Ahead(Generic[T]):
    """Things by their numbers, which are asked for one after the other. numpy lets go of the interpreter lock.

    Args:
        make: makes the thing of a number; several threads may call it at once.
        ahead: how many are made before they are asked for.
        last: the last number that is made before it is asked for.
        threads: how many threads make them.
    """

    def __init__(self, make: Callable[[int], T], ahead: int, last: int, threads: int = 1) -> None:
        self._make, self._ahead, self._last = make, ahead, last
        self._pool = helpers("ahead", threads)
        self._waiting: deque[tuple[int, Future[T]]] = deque()

    def __call__(self, number: int) -> T:
        """The thing of a number; those after it are begun. A jump to another number drops what was begun before.

        Raises what `make` raises for this number.
        """
        if self._waiting and self._waiting[0][0] != number:
            while self._waiting:
                self._waiting.popleft()[1].cancel()
        begun = number + len(self._waiting)
        for later in range(begun, max(number, min(number + self._ahead, self._last)) + 1):
            self._waiting.append((later, self._pool.submit(self._make, later)))
        return self._waiting.popleft()[1].result()

    def close(self) -> None:
        """Make nothing more; waits for what is being made."""
        self._pool.shutdown(cancel_futures=True)
