"""Where jobs run: the methods that every executor has, and what a launch hands to them.

A user's own executor inherits from `Executor` and has its own `submit`; a file that a sweep names with `extend` lists
an instance of it in its dict EXECUTORS. The job calls `set_gpus`, `of_this_start`, `wants_gpu` and `requeue`; the
launcher, `status` and `cancel` call the others.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from harness.errors import InputError
from harness.launch.estimate import Basis, basis_of, finished, throughput
from harness.launch.job import Job
from harness.launch.neighbours import Neighbourhood
from harness.launch.payload import Placed
from harness.launch.signals import StopFlag
from harness.launch.view import View, note_takeover
from harness.processes import HeldError, now, process_identity, signal_process
from harness.runs import provenance
from harness.runs.attempts import RESTARTS, Attempt, Scheduler
from harness.runs.cellruns import CellRun
from harness.runs.layout import TRAINING
from harness.runs.records import Claim, Ticket
from harness.runs.state import RETRIED, STARTABLE, State
from harness.runs.study import Study
from harness.spec.resources import EXECUTORS, Resources
from harness.spec.training import Precision
from sweeps.grid import Sweep

if TYPE_CHECKING:
    from harness.launch.encoding import Encoding


class NoAnswerError(InputError):
    """The scheduler did not answer; a launch that waits asks it again. `reason` is in its own words."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Launch:
    """One launch of a sweep.

    Attributes:
        sweep: the sweep to run.
        study: the study that holds its runs.
        items: the cells, the most expensive first.
        view: what shows the launch to the user.
        gpus: of this machine, as CUDA_VISIBLE_DEVICES names them; empty where the executor assigns them itself.
        to_retry: ids of failed and cancelled cells that run again; an id is removed when its cell is claimed.
        beside: other cells of the study, which this launch does not start; their jobs use the same slots.
        retry: whether failed and cancelled cells run again, and what other random draws began is trained anew.
    """

    sweep: Sweep
    study: Study
    items: list[CellRun]
    view: View
    gpus: list[str]
    to_retry: set[str]
    beside: tuple[CellRun, ...] = ()
    retry: bool = False
    around: Neighbourhood = field(init=False)  # other studies' jobs
    blocked: str = ""  # whose jobs have the slots, where only other studies' jobs keep cells waiting
    told: set[str] = field(default_factory=set)  # lines about other studies' jobs
    _bases: dict[tuple[Resources, Precision], Basis] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Know which cells are the study's own."""
        listed = [item.cell.id for item in (*self.items, *self.beside)]
        self.around = Neighbourhood(self.study, listed, self.items[0].run.track if self.items else TRAINING)

    def tell(self, text: str) -> None:
        """Tell the user of other studies' jobs, every line once."""
        if text not in self.told:
            self.told.add(text)
            self.view.note(text)

    def resources_of(self, item: CellRun) -> Resources:
        """What a cell runs on."""
        return self.sweep.resources_of(item.cell)

    def may_start(self, item: CellRun) -> bool:
        """Whether this launch starts the cell, by its state and by how often it was lost."""
        return self._wants(item) and not self.is_unanswered(item)

    def is_held(self, item: CellRun) -> bool:
        """Whether the cell would start, if its scheduler answered: it may have the job still."""
        return self._wants(item) and self.is_unanswered(item)

    def is_unanswered(self, item: CellRun) -> bool:
        """Whether the cell's job is one of this launch's scheduler, which did not answer for it."""
        attempt = item.now.attempt
        if attempt is None or attempt.seen is None or attempt.executor != self.sweep.resources.executor:
            return False
        return attempt.seen.alive is None and item.now.state is not State.DONE

    def _wants(self, item: CellRun) -> bool:
        if item.now.state in RETRIED:
            return item.cell.id in self.to_retry
        return item.now.state in STARTABLE and not (item.mine and item.restarts > RESTARTS)

    def claim(
        self, item: CellRun, ticket: Ticket | None = None, *, durable: bool = True, **more: str | None
    ) -> Job | None:
        """Claim the next attempt at a cell; returns its job, or None when another launch was quicker.

        The claim is on the disk before the job is submitted: a crash in between leaves a claim whose launcher is dead.

        Args:
            item: the cell.
            ticket: what the executor finds the job by; None where the job's process tells whether it lives.
            durable: when False, the caller calls `Run.sync_claim` before it submits.
            more: other keys of the claim.
        """
        note_takeover(item, self.view)
        self.to_retry.discard(item.cell.id)
        run, resources = item.run, self.resources_of(item)
        number = max(run.attempt_numbers(), default=0) + 1
        study, executor = self.study.name, resources.executor
        claim = {"process": process_identity(), "time": now(), "study": study, "executor": executor, **more}
        if ticket is not None:
            claim[executor] = dict(ticket)
        try:
            hold = run.claim(number, cast(Claim, claim), durable=durable)
        except HeldError as error:
            if not item.held:
                self.view.note(f"{item.name}: {error} stopped in the middle of a write; continue or kill it")
            item.held = True
            return None
        if hold is None:
            return None
        run.write_cell(item.name, item.cell, durable=durable)
        item.mine = True
        return Job(
            folder=str(run.folder.resolve()),
            attempt=number,
            token=hold.token,
            study=study,
            cell=item.cell,
            evaluations=item.evaluations,
            recording=self.sweep.recording,
            resources=resources,
            results=str(self.study.root.resolve()),
            gpu=more.get("gpu"),
            steps=item.steps,
            search=item.search,
            origin=provenance.origin()[0],
            extensions=self.sweep.extensions,
            basis=self.basis_of(resources, item.cell.training.precision),
            anew=self.retry,
        )

    def basis_of(self, resources: Resources, precision: Precision) -> Basis:
        """What the estimates of such cells rest on; found when the first one is claimed."""
        if (key := (resources, precision)) not in self._bases:
            done = finished([*self.items, *self.beside])
            here = not EXECUTORS.facts(resources.executor).detached
            self._bases[key] = basis_of(done, resources, throughput(done, precision), here=here)
        return self._bases[key]


class Executor:
    """Runs jobs; by default as processes of this machine that the launcher waits for."""

    #: Whether its jobs go on without the launcher, which then returns at once unless it is asked to wait.
    detached = False

    #: Seconds between two looks at the jobs.
    poll_seconds = 0.3

    def gpus(self) -> list[str]:
        """The GPUs that the launcher assigns to jobs, as CUDA_VISIBLE_DEVICES names them."""
        return []

    def runs_on_cpu(self, resources: Resources, gpus: list[str]) -> bool:
        """Whether it is known before the start that cells with these resources compute on a CPU.

        Args:
            resources: of the cells.
            gpus: see `gpus`.
        """
        return resources.device == "cpu"

    def check(self, sweep: Sweep, gpus: list[str]) -> None:
        """Check that the executor has the resources that the sweep asks for.

        Raises:
            InputError: it has not; one line with file, key and what is allowed.
        """

    def prepare(self, launch: Launch) -> None:
        """Do what comes before the first start, and tell the user what is worth knowing.

        Raises:
            InputError: nothing can be started.
        """

    def submit(self, launch: Launch, waiting: list[CellRun]) -> list[CellRun]:
        """Claim and start as many cells as there is room for; returns those that it tried to start."""
        raise NotImplementedError

    def submit_encoding(self, encoding: Encoding) -> str:
        """Submit a job that encodes images and goes on by itself; returns its number. For a `detached` executor.

        Raises:
            NoAnswerError: the scheduler did not answer; it may have taken the job.
            InputError: it did not take the job.
        """
        name = encoding.resources.executor
        raise InputError(f'{encoding.sweep}: resources.executor: "{name}" runs cells only; allowed: "local", "slurm"')

    def scheduler(self, study: str) -> Scheduler | None:
        """What knows the jobs of a study by their tickets; None where claims hold no ticket."""
        return None

    def cannot_cancel(self, attempt: Attempt) -> str:
        """Why an attempt cannot be cancelled from here; empty when it can."""
        return f"attempt {attempt.number} {attempt.unseen} cannot be reached; cancel it there" if attempt.unseen else ""

    def cancel(self, attempts: list[Attempt], others: set[str | None]) -> str:
        """Stop the jobs of attempts whose `cancelled` file is written; returns what went wrong, or an empty text.

        Args:
            attempts: the attempts to stop.
            others: numbers of the jobs that other cells need.
        """
        for attempt in attempts:
            signal_process(attempt.process, signal.SIGTERM)  # never the launcher
        return ""

    def stop(self, launch: Launch) -> None:
        """Stop the jobs of this launch after Ctrl-C; by default they go on."""

    def set_gpus(self, job: Placed) -> None:
        """Make only the job's own GPUs visible; called in the job's process before the job begins."""
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpu or ""

    def wants_gpu(self, job: Placed) -> bool:
        """Whether the job has to use a GPU; called in the job's process.

        Raises:
            CellFailedError: it has to, and sees none.
        """
        return job.gpu is not None

    def of_this_start(self, job: Job) -> Job:
        """The job with the attempt that this start of it works on, which a requeued job claims here."""
        return job

    def requeue(self, stop: StopFlag) -> None:
        """Requeue a job that a signal stopped, if the signal asked for that."""


class Schedulers(dict[str, Scheduler]):
    """The schedulers of one study by the name of the executor, made when they are first asked for."""

    def __init__(self, study: str) -> None:
        super().__init__()
        self._study = study

    def get(self, executor: str, default: Scheduler | None = None) -> Scheduler | None:  # type: ignore[override]
        """The scheduler; None for an executor that has none, or whose file is not loaded."""
        known = executor in self or executor not in EXECUTORS.names
        if not known and (found := EXECUTORS.load(executor).scheduler(self._study)) is not None:
            self[executor] = found
        return super().get(executor, default)


def executor_named(name: str) -> Executor:
    """The executor of a claim; the default `Executor` when the user's file with it is not loaded."""
    return cast(Executor, EXECUTORS.load(name)) if name in EXECUTORS.names else Executor()
