"""The ranks, processes that train one cell together: who this one is, and what they exchange.

Each rank takes an equal slice of the global batch. Only the first one reads and writes the run folder; it sends the
others what they need. torch's DistributedDataParallel averages the gradients, over NCCL between GPUs. All the rest, a
few numbers a few times a second, goes over gloo between CPUs. gloo can wait for as long as the first rank writes or
scores, and it notices at once when a process has died. One rank needs none of this, and nothing is set up for it.

torch's own environment variables identify the ranks: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from harness.errors import CellFailedError, InputError
from harness.runs import triage
from harness.training.checkpoint import Loaded

T = TypeVar("T")

#: Time limit for all ranks to start, and for the averaging of a step's gradients.
MEETING = timedelta(minutes=10)

#: How long the others wait while the first rank writes or scores. A dead rank is still noticed at once.
PATIENCE = timedelta(days=1)

_FAILURE = "failure"  # key of the store under which a rank says why it leaves


class LostRankError(RuntimeError):
    """Another rank died or did not start. This attempt is over; the next one may succeed."""


class RankFailedError(CellFailedError):
    """Another rank failed.

    Attributes:
        trouble: its description of the error (see `harness.runs.triage.describe`).
    """

    def __init__(self, message: str, trouble: dict[str, Any]) -> None:
        super().__init__(message)
        self.trouble = trouble


class Ranks:
    """A single rank, which does everything; for several see `Group`."""

    rank = 0
    world = 1
    local_rank = 0  # among those on this node

    @property
    def is_first(self) -> bool:
        """Whether this is the first rank, which reads and writes the run folder."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The slice of this rank among `count` things, which the ranks share equally."""
        each = count // self.world
        return slice(self.rank * each, (self.rank + 1) * each)

    def averaging(self, model: nn.Module) -> nn.Module:
        """The same model, whose backward pass averages the gradients over the ranks."""
        return model

    def without_averaging(self, model: nn.Module) -> AbstractContextManager[object]:
        """A context in which the backward pass of a model from `averaging` keeps this rank's own gradients."""
        return nullcontext()

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Waits until all ranks have called it."""
        return flag

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.any_rank(False)

    def exchange(self, value: T) -> list[T]:
        """The values of all ranks, in order, on every rank. Waits until all ranks have called it."""
        return [value]

    def on_first(self, find: Callable[[], T]) -> T:
        """Call `find` on the first rank only; every rank gets the result."""
        return find()

    def load_on_first(self, read: Callable[[], Loaded | None]) -> Loaded | None:
        """Call `read` on the first rank only; every rank gets the result, tensors on the CPU."""
        return read()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order, on the first rank; an empty list on the others."""
        return [value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """When one rank raises in here, all do at the end: its own error, or `RankFailedError`. Then they can go on.

        All enter and none leaves before the others. What they exchange in here, they exchange although one fails.
        """
        yield

    def scatter(self, values: list[T]) -> T:
        """Send each rank one of the first rank's values, in order; what the other ranks pass is ignored."""
        return values[0]

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """The first rank runs the block before the others, so that they find what it has made."""
        yield


class Group(Ranks):
    """Several ranks, connected."""

    def __init__(self, rank: int, world: int, local_rank: int) -> None:
        self.rank, self.world, self.local_rank = rank, world, local_rank

    def averaging(self, model: nn.Module) -> nn.Module:
        """See `Ranks`."""
        on_gpu = next(model.parameters()).is_cuda
        group = dist.new_group(backend="nccl" if on_gpu else "gloo", timeout=MEETING)
        device_ids = [torch.cuda.current_device()] if on_gpu else None
        return DistributedDataParallel(model, device_ids=device_ids, process_group=group)

    def without_averaging(self, model: nn.Module) -> AbstractContextManager[object]:
        """See `Ranks`."""
        assert isinstance(model, DistributedDataParallel)
        return model.no_sync()

    def any_rank(self, flag: bool) -> bool:
        """See `Ranks`."""
        value = torch.tensor(float(flag))
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def exchange(self, value: T) -> list[T]:
        """See `Ranks`."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def on_first(self, find: Callable[[], T]) -> T:
        """See `Ranks`."""
        box: list[Any] = [None]
        with self.together():
            if self.is_first:
                box = [find()]
        dist.broadcast_object_list(box, src=0)
        found: T = box[0]
        return found

    def load_on_first(self, read: Callable[[], Loaded | None]) -> Loaded | None:
        """See `Ranks`."""
        found = None
        with self.together():
            if self.is_first:
                found = read()
        shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in found.tensors.items()} if found else {}
        described = self.on_first(lambda: (shapes, found.meta) if found else None)
        if described is None:
            return None
        shapes, meta = described
        tensors = found.tensors if found else {n: torch.empty(size, dtype=dtype) for n, (size, dtype) in shapes.items()}
        for tensor in tensors.values():
            dist.broadcast(tensor, src=0)
        return Loaded(tensors, meta)

    def gather(self, value: T) -> list[T]:
        """See `Ranks`."""
        values: list[Any] | None = [None] * self.world if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    @contextmanager
    def together(self) -> Iterator[None]:
        """See `Ranks`."""
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            if is_lost(error):
                raise
            mine = error
        described = None if mine is None else (f"rank {self.rank}: {error_line(mine)}", triage.describe(mine))
        said = self.exchange(described)
        if mine is not None:
            raise mine
        if failed := [found for found in said if found is not None]:
            raise RankFailedError(*failed[0])

    def scatter(self, values: list[T]) -> T:
        """See `Ranks`."""
        mine: list[Any] = [None]
        dist.scatter_object_list(mine, values if self.is_first else None, src=0)
        found: T = mine[0]
        return found

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """See `Ranks`."""
        if not self.is_first:
            self.barrier()
        yield
        if self.is_first:
            self.barrier()


@contextmanager
def meet() -> Iterator[Ranks]:
    """The ranks that torch's environment variables name, once all are connected; without an error they leave together.

    Raises:
        LostRankError: a rank did not start, or died.
        RankFailedError: on the first rank, if another one failed.
    """
    rank, world, local_rank = (int(os.environ.get(key, "0")) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=rank == 0, timeout=MEETING
        )
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=PATIENCE)
    except RuntimeError as error:
        raise LostRankError(f"the {world} ranks did not meet: {error_line(error)}") from error
    group = Group(rank, world, local_rank)
    try:
        yield group
        group.barrier()
    except Exception as error:
        lost = is_lost(error)
        if rank > 0 and not lost:
            store.set(_FAILURE, json.dumps([f"rank {rank}: {error_line(error)}", triage.describe(error)]))
        if not lost:
            raise  # the others find the connection closed
        if rank == 0 and store.check([_FAILURE]):
            raise RankFailedError(*json.loads(store.get(_FAILURE))) from error
        raise LostRankError(f"another of the {world} ranks ended without a word") from error
    dist.destroy_process_group()


def is_lost(error: Exception) -> bool:
    """Whether an error means that another rank does not answer any more."""
    return isinstance(error, LostRankError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def error_line(error: Exception) -> str:
    """An error as one line of a record."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (CellFailedError, InputError)) else f"{type(error).__name__}: {text}"
