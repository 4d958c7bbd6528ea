"""Things are made before they are asked for: in order, not beyond the last, and anew after a jump."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import pytest

from harness.data.ahead import Ahead


@contextlib.contextmanager
def counting(ahead: int, last: int, threads: int = 1) -> Iterator[tuple[Ahead[int], list[int], Callable[[], None]]]:
    """Squares; what was begun, in order; and a function that waits until the threads have nothing to do."""
    begun: list[int] = []

    def make(number: int) -> int:
        begun.append(number)
        if number == 13:
            raise ValueError("unlucky")
        return number**2

    made = Ahead(make, ahead, last, threads)
    with contextlib.closing(made):

        def idle() -> None:
            made._pool.submit(int).result(timeout=20)

        yield made, begun, idle


def test_the_next_ones_are_made_meanwhile_but_none_after_the_last() -> None:
    with counting(ahead=2, last=5) as (made, begun, idle):
        assert made(0) == 0
        idle()
        assert begun == [0, 1, 2]
        assert [made(number) for number in range(1, 6)] == [1, 4, 9, 16, 25]
        idle()
        assert begun == [0, 1, 2, 3, 4, 5]
        assert made(6) == 36, "who asks for more gets it"
        idle()
        assert begun == [0, 1, 2, 3, 4, 5, 6]


def test_after_a_jump_the_right_ones_are_given() -> None:
    with counting(ahead=1, last=100) as (made, _, _idle):
        assert [made(number) for number in (0, 1, 50, 51, 7, 7, 8)] == [0, 1, 2500, 2601, 49, 49, 64]


def test_an_error_is_that_of_its_own_number() -> None:
    with counting(ahead=3, last=100) as (made, _, _idle):
        assert [made(number) for number in (11, 12)] == [121, 144]
        with pytest.raises(ValueError, match="unlucky"):
            made(13)
        assert made(14) == 196


def test_several_threads_work_at_once() -> None:
    both = threading.Barrier(2, timeout=20)
    with contextlib.closing(Ahead(lambda number: both.wait() >= 0, ahead=1, last=1, threads=2)) as made:
        assert made(0)
        assert made(1)
