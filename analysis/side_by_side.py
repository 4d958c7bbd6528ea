"""Work on two cores: forked processes, for what a report computes and draws is more than one core does quickly."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")

#: The tasks of forked processes. They inherit them, because functions cannot be pickled.
_inherited: Sequence[Callable[[], Any]] = ()


def side_by_side(tasks: Sequence[Callable[[], T]], meanwhile: Callable[[], object] | None = None) -> Iterator[T]:
    """What the tasks return, in order; in two processes where there are two cores, otherwise in this one.

    What a task returns is pickled. An error of a task is raised when its turn comes. When a process is killed, the rest
    is done in this one. `meanwhile` is done here while other processes work; where there are none, it is not done.
    """
    global _inherited
    if _inherited or len(tasks) < 2 or sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2:
        for task in tasks:  # one that runs in a process of its own has no processes below it
            yield task()
        return
    _inherited, done = tasks, 0
    try:
        try:
            with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
                futures = [pool.submit(_one, index) for index in range(len(tasks))]
                if meanwhile is not None:
                    meanwhile()
                for future in futures:
                    yield future.result()
                    done += 1
        except BrokenProcessPool:
            pass
        for index in range(done, len(tasks)):
            yield _one(index)
    finally:
        _inherited = ()


def _one(index: int) -> Any:
    return _inherited[index]()
