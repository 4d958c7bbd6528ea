"""Images read by several threads before they are needed. Imports no torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.dataset import ImageArray


def read_ahead(images: ImageArray, batches: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.uint8]]:
    """The images of each batch of indices, in order, (n, H, W, C); files are decoded by as many threads as cores.

    Decoding and resizing release the interpreter lock. At most two batches a thread are held at once.
    """
    if not getattr(images, "several_threads", False):  # an array, or one of the user's own
        yield from (np.asarray(images[batch]) for batch in batches)
        return
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pending: deque[Future[Any]] = deque()
    left = iter(batches)
    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in batches:
                while len(pending) < 2 * threads and (batch := next(left, None)) is not None:
                    pending.append(pool.submit(images.__getitem__, batch))
                yield np.asarray(pending.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)
