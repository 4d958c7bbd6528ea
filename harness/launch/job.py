"""The start of a job where its executor put it; with several ranks, of each of them.

Each rank (see `harness.training.ranks`) is a process of submitit's that runs the same job; the first one writes. What
the job does then is in `harness.launch.work`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from dataclasses import dataclass
from typing import Any

from harness.errors import InputError
from harness.launch.console import log_to
from harness.launch.payload import Payload
from harness.launch.signals import StopFlag
from harness.processes import now
from harness.runs import triage
from harness.runs.claims import SupersededError
from harness.spec.resources import EXECUTORS, Resources


@dataclass(frozen=True)
class Job(Payload):
    """A claimed attempt at a cell; called by the executor, by submitit for one in a process of its own."""

    def __call__(self) -> str:
        """Run to the end; returns the outcome, which `attempts/NNN.ended.json` holds too."""
        try:
            return self._run()
        except SupersededError as error:
            print(f"[{now()}] attempt {self.attempt}: superseded: {error}", flush=True)  # the log is another job's
            return "superseded"

    def _run(self) -> str:
        self.hold.require_claim()
        stop = StopFlag(with_parent=self.pooled)
        os.environ["OMP_NUM_THREADS"] = str(self.resources.threads)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on GPUs
        try:
            for extension in self.extensions:
                extension.load()
            executor = EXECUTORS.load(self.resources.executor)
        except Exception as error:  # the launcher could load it, but this machine may lack a package
            with log_to(self.run.log):
                return self._failed(error)
        executor.set_gpus(self)
        if self.resources.world > 1 and enter_ranks(self.resources) > 0:
            return self._assist(stop)
        with log_to(self.run.log):
            job: Job = executor.of_this_start(self)
            if job.run.is_cancelled(job.attempt):  # by a signal that came too early to be heard
                return job._ended("stopped", "cancelled before it began")
            try:
                from harness.launch.work import attempt  # imports torch, which reads the environment
            except Exception as error:
                return job._failed(error)
            outcome, message = attempt(job, stop)
            with contextlib.suppress(OSError):  # the log may be on the full disk
                print(f"[{now()}] attempt {job.attempt}: {outcome}{': ' if message else ''}{message}", flush=True)
            if outcome == "stopped":
                executor.requeue(stop)
        return outcome

    def checkpoint(self) -> Any:
        """What submitit saves, to be run after the requeue: this job, since all state lies in the run folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _failed(self, error: Exception) -> str:
        """Record that the job could not begin."""
        traceback.print_exc()
        message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return self._ended("failed", message, **triage.describe(error))

    def _ended(self, outcome: str, message: str, **more: Any) -> str:
        self.hold.record("ended", {"outcome": outcome, "message": message, **more, "time": now()})
        return outcome

    def _assist(self, stop: StopFlag) -> str:
        """Do the same work as the first rank, on every other rank, without writing files. The first rank learns how it
        ended.

        Output goes to submitit's log. The exit code is 0, so that Slurm does not kill the first rank before it has
        recorded the end.
        """
        try:
            from harness.launch.work import work

            work(self, stop)
        except Exception:
            traceback.print_exc()
            return "ended early"
        return "done"


def enter_ranks(resources: Resources) -> int:
    """Set the variables from which torch reads the rank of this process; returns the rank."""
    from submitit.helpers import TorchDistributedEnvironment

    os.environ.pop("MASTER_PORT", None)  # a surrounding job's; jobs on one machine need different ports
    found = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if resources.nodes == 1:
        os.environ["MASTER_ADDR"] = "localhost"
    else:
        try:
            socket.getaddrinfo(found.master_addr, None)
        except OSError:  # a node's name may be no host name; this is the address of the first node
            os.environ["MASTER_ADDR"] = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", found.master_addr)
    return int(found.rank)
