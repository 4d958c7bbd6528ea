"""Where a sweep is planned to run, this machine, another one or a cluster, and how long it takes there."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from harness.launch.machine import default_slots, share_of, visible_gpus
from harness.spec.resources import Resources

#: A plan for the cores of this machine that takes longer than this, in seconds, is made for one GPU instead.
LONGEST_ON_CORES = 30 * 86400.0


@dataclass(frozen=True)
class Site:
    """A machine or a cluster.

    Attributes:
        executor: what runs the cells; "slurm" means a cluster, everything else a machine.
        gpus: of the machine, as CUDA_VISIBLE_DEVICES names them; on a cluster every job says how many it has.
        cores: whether it is this machine without GPUs.
        assumed: whether nobody asked for it: this machine's cores would take too long.
        here: whether it is this machine, with or without GPUs.
    """

    executor: str
    gpus: tuple[str, ...] = ()
    cores: bool = False
    assumed: bool = False
    here: bool = False

    def has_gpu(self, resources: Resources) -> bool:
        """Whether a cell with these resources runs on a GPU there."""
        if self.executor == "slurm" and not self.assumed:
            return resources.gpus_wanted > 0
        return resources.device != "cpu" and bool(self.gpus or self.assumed)

    def share(self, resources: Resources) -> Fraction:
        """The share of the site that a cell takes; 0 on a cluster that starts every job at once."""
        if self.executor != "slurm":
            return min(Fraction(1), share_of(resources, [*self.gpus]))
        if resources.cells_per_job is not None:
            return Fraction(1, resources.cells_per_job * (resources.max_parallel or 1))
        return Fraction(1, resources.max_parallel) if resources.max_parallel else Fraction()

    def name(self, resources: Resources) -> str:
        """The site in words, as in "takes 2 h on ..."."""
        if self.executor == "slurm":
            most = resources.max_parallel or (1 if resources.cells_per_job else None)
            jobs = f"at most {most} Slurm job{'s' * (most != 1)} at once" if most else "Slurm, all jobs at once"
            slots = f", each with {resources.cells_per_job} slots" if resources.cells_per_job else ""
            return f"{jobs}{slots}{' (a GPU a rank is assumed: --device cuda)' if self.assumed else ''}"
        if self.cores:
            count = default_slots(resources, [])
            return f"{count} slot{'s' * (count != 1)} of this machine"
        gpus = f"{len(self.gpus)} GPU{'s' * (len(self.gpus) != 1)}"
        return f"{gpus} (too much for this machine's cores; --gpus N)" if self.assumed else gpus


def site_of(resources: Resources, gpus: int | None = None) -> Site:
    """Where a sweep with these resources is planned to run: on so many GPUs, else on what this machine has."""
    if resources.executor == "slurm":
        return Site("slurm")
    if gpus:
        return Site(resources.executor, tuple(map(str, range(gpus))))
    seen = () if resources.device == "cpu" or gpus == 0 else tuple(visible_gpus())
    return Site(resources.executor, seen, cores=not seen, here=True)


def with_gpus(site: Site) -> Site:
    """The same cluster, and instead of this machine's cores one GPU, where nobody has asked for GPUs."""
    return Site("slurm", assumed=True) if site.executor == "slurm" else Site(site.executor, ("0",), assumed=True)


class Planned(NamedTuple):
    """A cell as it is planned: how long it takes, its share of the site, and its states on the disk meanwhile."""

    seconds: float
    share: Fraction
    states_bytes: int


class Course(NamedTuple):
    """How cells go through a site: how long all take, and the most bytes of states at once."""

    seconds: float
    states_bytes: int


def course(cells: Iterable[Planned]) -> Course:
    """What comes of cells that start in this order, each as soon as its share of the site is free."""
    now, free, running = 0.0, Fraction(1), list[tuple[float, Fraction, int]]()
    last, disk, most = 0.0, 0, 0
    for seconds, share, states in cells:
        while share > free:
            now, freed, gone = heapq.heappop(running)
            free, disk = free + freed, disk - gone
        heapq.heappush(running, (now + seconds, share, states))
        free, disk = free - share, disk + states
        last, most = max(last, now + seconds), max(most, disk)
    return Course(last, most)


def divided(most: int | None, counts: Sequence[int]) -> list[int | None] | None:
    """How many jobs at once groups of so many cells get of `most`; None where they have to go in turn.

    On Slurm cells with the same resources are one array, and a cap holds for each array alone.
    """
    if most is None or len(counts) == 1:
        return [most] * len(counts)
    if len(counts) > most:
        return None
    left, mine = sum(counts), list[int | None]()
    for number, count in enumerate(counts):
        others = len(counts) - number - 1
        mine.append(share := max(1, min(most - others, round(most * count / left))))
        most, left = most - share, left - count
    return mine
