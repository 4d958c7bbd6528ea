"""Threads beside the main one leave it its cores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.threads import helpers


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by Linux")
def test_a_helper_opens_no_pool_of_cores() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    large = torch.zeros(1 << 20)

    def opened() -> tuple[int, int]:
        before = len([*Path("/proc/self/task").iterdir()])
        large.add(1)
        return torch.get_num_threads(), len([*Path("/proc/self/task").iterdir()]) - before

    try:
        large.add(1)  # this thread's own pool
        with helpers("test", 2) as pool:
            assert [pool.submit(opened).result() for _ in range(4)] == [(1, 0)] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
