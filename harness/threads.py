"""Threads that work beside the main one. Imports no torch."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor


def helpers(name: str, count: int = 1) -> ThreadPoolExecutor:
    """Threads beside the main one, in each of which torch uses one core.

    By default torch would open a pool of cores in each thread. Once the threads of all pools outnumber the cores, GNU's
    OpenMP lets those of every pool sleep where they wait for one another, even when all pools but one are idle: a
    training step of d4-w64 on two cores took twice the time.

    Args:
        name: how the threads are called.
        count: of the threads.
    """
    if torch := sys.modules.get("torch"):
        torch.get_num_threads()  # the first call fixes this thread's number, which the helpers' would be otherwise
    return ThreadPoolExecutor(count, name, _use_one_core)


def _use_one_core() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
