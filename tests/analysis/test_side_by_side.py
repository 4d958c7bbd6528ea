"""Work on two cores: order, errors, and a process that is killed."""

import os
import signal
from collections.abc import Callable
from functools import partial

import pytest

from analysis.fit.common import CannotFitError
from analysis.side_by_side import side_by_side

HERE = os.getpid()


def refuse() -> int:
    raise CannotFitError("too few")


def killed_elsewhere() -> int:
    if os.getpid() != HERE:
        os.kill(os.getpid(), signal.SIGKILL)
    return -1


def test_results_come_in_order() -> None:
    tasks: list[Callable[[], int]] = [partial(pow, 2, n) for n in range(9)]
    assert list(side_by_side(tasks)) == [2**n for n in range(9)]
    assert list(side_by_side(tasks[:1])) == [1]
    assert list(side_by_side(list[Callable[[], int]]())) == []


def test_a_task_has_tasks_of_its_own() -> None:
    inner: list[Callable[[], int]] = [os.getpid] * 3
    outer: list[Callable[[], list[int]]] = [lambda: list(side_by_side(inner))] * 2
    found = list(side_by_side(outer))
    assert all(len(set(pids)) == 1 for pids in found), "they run in the process of the task"
    assert list(side_by_side(inner)), "and here again afterwards"


def test_an_error_is_raised_when_its_turn_comes() -> None:
    tasks: list[Callable[[], int]] = [partial(int, 1), refuse]
    found = side_by_side(tasks)
    assert next(found) == 1
    with pytest.raises(CannotFitError, match="too few"):
        next(found)
    assert list(side_by_side([partial(int, 2), partial(int, 3)])) == [2, 3]


def test_something_else_is_done_meanwhile() -> None:
    done: list[int] = []
    tasks: list[Callable[[], int]] = [os.getpid] * 2
    elsewhere = HERE not in side_by_side(tasks, lambda: done.append(os.getpid()))
    assert done == [HERE] * elsewhere, "here, and only where there are other processes"


def test_a_killed_process_loses_nothing() -> None:
    tasks: list[Callable[[], int]] = [partial(int, 1), killed_elsewhere, partial(int, 2)]
    assert list(side_by_side(tasks)) == [1, -1, 2]
