"""Where jobs run: the one signature of every executor, and what a launch hands to it.

An executor of the user's own is a class like `Executor` with a `submit` of its own; a file that a sweep names with
`extend` lists an object of it in its dict EXECUTORS. The job calls `set_gpus`, `of_this_start`, `wants_gpu` and
`requeue`, all else is called by the launcher, by `status` and by `cancel`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from typing import cast

from harness.launch.job import Job
from harness.launch.signals import StopFlag
from harness.launch.view import View, note_takeover
from harness.processes import now, process_identity
from harness.runs import provenance
from harness.runs.attempts import RESTARTS, Attempt, Scheduler
from harness.runs.cellruns import CellRun
from harness.runs.records import Claim, Ticket
from harness.runs.state import RETRIED, STARTABLE
from harness.runs.study import Study
from harness.spec.resources import EXECUTORS
from sweeps.grid import Sweep


@dataclass
class Launch:
    """One launch of a sweep.

    Attributes:
        sweep: what was asked for.
        study: where it goes.
        items: the cells, the dearest first.
        view: what shows the launch to the user.
        gpus: of this machine, as CUDA_VISIBLE_DEVICES names them; empty where the executor finds them.
        to_retry: ids of failed and cancelled cells that run again; an id is removed when its cell is claimed.
    """

    sweep: Sweep
    study: Study
    items: list[CellRun]
    view: View
    gpus: list[str]
    to_retry: set[str]

    def may_start(self, item: CellRun) -> bool:
        """Whether nothing speaks against a start of this cell."""
        if item.now.state in RETRIED:
            return item.cell.id in self.to_retry
        return item.now.state in STARTABLE and not (item.mine and item.restarts > RESTARTS)

    def claim(
        self, item: CellRun, ticket: Ticket | None = None, *, durable: bool = True, **more: str | None
    ) -> Job | None:
        """Claim the next attempt at a cell; its job, or None when another launch was quicker.

        The claim is on the disk before anything is submitted: a crash in between leaves a claim whose launcher is dead.

        Args:
            item: the cell.
            ticket: what the executor looks the job up by; None: its process says whether it lives.
            durable: False: the caller calls `Run.sync_claim` before it submits.
            more: other keys of the claim.
        """
        note_takeover(item, self.view)
        self.to_retry.discard(item.cell.id)
        run, resources = item.run, self.sweep.resources
        number = max(run.attempt_numbers(), default=0) + 1
        claim = {"process": process_identity(), "time": now(), "executor": resources.executor, **more}
        if ticket is not None:
            claim[resources.executor] = dict(ticket)
        if not run.claim(number, cast(Claim, claim), durable=durable):
            return None
        run.write_cell(item.name, item.cell, durable=durable)
        item.mine = True
        return Job(
            folder=str(run.folder.resolve()),
            attempt=number,
            cell=item.cell,
            evaluations=item.evaluations,
            recording=self.sweep.recording,
            resources=resources,
            results=str(self.study.root.resolve()),
            gpu=more.get("gpu"),
            steps=item.steps,
            origin=provenance.origin()[0],
            extensions=self.sweep.extensions,
        )


class Executor:
    """Runs jobs; by default as processes of this machine that the launcher waits for."""

    #: Whether its jobs go on without the launcher, which then returns at once unless it is asked to wait.
    detached = False

    #: Time between two looks at the jobs.
    poll_seconds = 0.3

    def gpus(self) -> list[str]:
        """The GPUs that the launcher deals out to the jobs, as CUDA_VISIBLE_DEVICES names them."""
        return []

    def check(self, sweep: Sweep, gpus: list[str]) -> None:
        """Check that it can give the resources that the sweep asks for.

        Raises:
            InputError: it cannot; one line with file, key and what is allowed.
        """

    def prepare(self, launch: Launch) -> None:
        """Do what comes before the first start, and speak of what the user should know.

        Raises:
            InputError: nothing can be started.
        """

    def submit(self, launch: Launch, waiting: list[CellRun]) -> list[CellRun]:
        """Claim and start as many of the cells as there is room for; returns those that it tried to start."""
        raise NotImplementedError

    def scheduler(self, study: str) -> Scheduler | None:
        """What looks up the tickets of a study's claims (`look`); None: its claims hold none."""
        return None

    def cannot_cancel(self, attempt: Attempt) -> str:
        """Why an attempt cannot be cancelled from here; empty when it can."""
        return "" if attempt.host_is_here and attempt.host else f"runs on {attempt.host}; cancel it there"

    def cancel(self, attempts: list[Attempt], others: set[str | None]) -> str:
        """End the jobs of attempts whose `cancelled` file is written; returns what went wrong, or nothing.

        Args:
            attempts: to be ended.
            others: numbers of the jobs that other cells need.
        """
        for attempt in attempts:
            if attempt.process:  # never the launcher
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(attempt.process["pid"]), signal.SIGTERM)
        return ""

    def stop(self, launch: Launch) -> None:
        """What Ctrl-C does to the jobs of this launch."""

    def set_gpus(self, job: Job) -> None:
        """Let the job, which is about to begin in this process, see its GPUs alone."""
        os.environ["CUDA_VISIBLE_DEVICES"] = job.gpu or ""

    def wants_gpu(self, job: Job) -> bool:
        """Whether the job, in this process, is to use a GPU.

        Raises:
            CellFailedError: it is, and has none.
        """
        return job.gpu is not None

    def of_this_start(self, job: Job) -> Job:
        """The job with the attempt that this start of it works on."""
        return job

    def requeue(self, stop: StopFlag) -> None:
        """Have a job that was stopped by a signal started again, if that is what the signal meant."""


class Schedulers(dict[str, Scheduler]):
    """The schedulers of one study by the name of the executor, made when they are first asked for."""

    def __init__(self, study: str) -> None:
        super().__init__()
        self._study = study

    def get(self, executor: str, default: Scheduler | None = None) -> Scheduler | None:  # type: ignore[override]
        """The scheduler; None of an executor that has none, or whose file is not loaded."""
        known = executor in self or executor not in EXECUTORS.names
        if not known and (found := EXECUTORS.load(executor).scheduler(self._study)) is not None:
            self[executor] = found
        return super().get(executor, default)


def executor_named(name: str) -> Executor:
    """The executor of a claim; of one whose file is not loaded, what holds for processes."""
    return cast(Executor, EXECUTORS.load(name)) if name in EXECUTORS.names else Executor()
