"""Two ranks of one thread against one rank of one thread, each whole trainings of the same cell."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from harness.runs.state import Run
from harness.spec.resources import Recording
from harness.training.hooks import Hooks
from harness.training.loop import Options, train
from harness.training.ranks import Ranks, meet
from tests.bench.ongoing import Ongoing
from tests.bench.pairs import Row, Told, pair
from tests.bench.training import S4, Setting, source

#: 32 images a step, whatever the number of ranks.
SETTING = Setting("S/4, 32x32x4, batch 32", S4, 32, 1, latents=True)


def _rank(rank: int, world: int, port: int, pipe: Connection) -> None:
    """Train; the first rank goes on for some steps whenever the pipe asks, and the others wait for it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cell, data, options = SETTING.cell, source(SETTING), Options("cpu", [], Recording(), None)
    with meet() if world > 1 else nullcontext(Ranks()) as ranks, tempfile.TemporaryDirectory() as folder:
        if rank > 0:
            train(cell, data, Run(Path(folder)), options, Hooks(), ranks)
        training = Ongoing(cell, data, options, SETTING.steps, ranks=ranks)
        while pipe.recv():
            pipe.send(training())


class Group:
    """Ranks that train together; a call tells the seconds of `SETTING.steps` steps."""

    def __init__(self, world: int) -> None:
        context: Any = multiprocessing.get_context("spawn")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self._pipe, theirs = context.Pipe()
        self._processes = [
            context.Process(target=_rank, args=(rank, world, port, theirs), daemon=True) for rank in range(world)
        ]
        for process in self._processes:
            process.start()

    def __call__(self) -> Told:
        """Go on for some steps."""
        self._pipe.send(True)
        return Told(self._pipe.recv())

    def close(self) -> None:
        """End the trainings."""
        for process in self._processes:
            process.kill()
            process.join()


def rows() -> list[Row]:
    """One rank against two."""
    one, two = Group(1), Group(2)
    try:
        what = f"a training step of {SETTING.name}, one thread a rank"
        return [pair(what, ("two ranks", two), ("one rank", one), calls=SETTING.steps)]
    finally:
        one.close()
        two.close()
