"""Images read by several threads before they are needed. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.data.ahead import Ahead
from harness.data.dataset import ImageArray


def read_ahead(images: ImageArray, batches: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
    """The images of each batch of indices, in order, (n, H, W, C); files are decoded by as many threads as cores.

    Decoding and resizing release the interpreter lock. At most two batches a thread are held at once.
    """
    if not getattr(images, "several_threads", False):  # an array, or one of the user's own
        yield from (np.asarray(images[batch]) for batch in batches)
        return
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ahead = Ahead(lambda number: np.asarray(images[batches[number]]), 2 * threads - 1, len(batches) - 1, threads)
    with contextlib.closing(ahead):
        yield from map(ahead, range(len(batches)))
