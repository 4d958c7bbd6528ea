"""Jobs of other studies on this machine: they take cores and GPUs that a launch would take."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from harness.launch.machine import usable_cores
from harness.runs.attempts import Attempt
from harness.runs.state import Run
from harness.runs.study import Study, folders_in
from harness.spec.resources import Resources

#: A look at all runs is good for so many seconds.
LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class Neighbour:
    """A job of another study.

    Attributes:
        study: that started it.
        gpus: it has; empty for a job on the CPU.
        threads: of all its ranks together; None until it has begun.
    """

    study: str
    gpus: tuple[str, ...]
    threads: int | None

    @classmethod
    def of(cls, attempt: Attempt) -> Neighbour:
        """The job of an attempt."""
        gpus = tuple(gpu for gpu in (attempt.claim.get("gpu") or "").split(",") if gpu)
        conditions = (attempt.started or {}).get("conditions", {})
        threads = conditions["threads"] * conditions.get("ranks", 1) if "threads" in conditions else None
        return cls(attempt.claim.get("study", "another study"), gpus, threads)

    def share(self, resources: Resources, gpus: list[str]) -> Fraction:
        """The share that it takes of what a cell with these resources needs, the GPUs or the cores."""
        if gpus and resources.device != "cpu":
            taken = sum(gpu in gpus for gpu in self.gpus)
            return Fraction(taken, len(gpus) * resources.cells_per_gpu)
        threads = resources.ranks * resources.threads if self.threads is None else self.threads
        return Fraction(0 if self.gpus else threads, usable_cores())


class Neighbourhood:
    """The jobs on this machine of cells that a study does not list.

    Args:
        study: the study.
        listed: ids of its cells.
        track: of the runs.
    """

    def __init__(self, study: Study, listed: Iterable[str], track: str) -> None:
        self._study, self._listed, self._track = study, frozenset(listed), track
        self._looked, self._found = -math.inf, list[Neighbour]()

    def look(self) -> list[Neighbour]:
        """What runs now, or ran `LOOK_SECONDS` ago."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._found = [Neighbour.of(attempt) for attempt in self._attempts()]
            self._looked = time.monotonic()
        return self._found

    def _attempts(self) -> Iterable[Attempt]:
        for folder in folders_in(self._study.runs_folder):
            run = Run(folder, track=self._track)
            number = max(run.attempt_numbers(), default=0)
            if run.cell_id in self._listed or not number or run.attempt_file(number, "ended").exists():
                continue
            attempt = run.attempt(number)
            if attempt.in_local_slot and attempt.live:
                yield attempt


def whose(studies: Iterable[str], when: str = "") -> str:
    """Whose cells run here, for example "2 cells of myblocks and 1 cell of cross run here"."""
    counts = Counter(studies)
    parts = [f"{count} cell{'s' * (count != 1)} of {study}" for study, count in counts.items()]
    return f"{' and '.join(parts)} {when}{'run' if sum(counts.values()) != 1 else 'runs'} here"
