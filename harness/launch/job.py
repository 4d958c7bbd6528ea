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
from harness.spec.resources import EXECUTORS


@dataclass(frozen=True)
class Job(Payload):
    """A claimed attempt at a cell; called by the executor, by submitit for one in a process of its own."""

    def __call__(self) -> str:
        """Run to the end; returns the outcome, which `attempts/NNN.ended.json` holds too."""
        stop = StopFlag(with_parent=self.pooled)
        os.environ["OMP_NUM_THREADS"] = str(self.resources.threads)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on GPUs
        try:
            for extension in self.extensions:
                extension.load()
        except InputError as error:  # it ran where the launch was: a package may be missing on this machine
            self.run.record(
                self.attempt,
                "ended",
                {"outcome": "failed", "message": str(error), **triage.describe(error), "time": now()},
            )
            return "failed"
        executor = EXECUTORS.load(self.resources.executor)
        executor.set_gpus(self)
        if self.resources.world > 1 and self._enter_ranks() > 0:
            return self._assist(stop)
        with log_to(self.run.log):
            job = executor.of_this_start(self)
            from harness.launch.work import attempt  # imports torch, which reads the environment

            outcome, message = attempt(job, stop)
            with contextlib.suppress(OSError):  # the log may be on the full disk
                print(f"[{now()}] attempt {job.attempt}: {outcome}{': ' if message else ''}{message}", flush=True)
            if outcome == "stopped":
                executor.requeue(stop)
        return outcome

    def checkpoint(self) -> Any:
        """What submitit writes down to be run after the requeue: the same, for all state lies in the run folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _enter_ranks(self) -> int:
        """Say in the environment which rank this is, as submitit knows it, for torch to read; returns the rank."""
        from submitit.helpers import TorchDistributedEnvironment

        os.environ.pop("MASTER_PORT", None)  # of a surrounding job; the jobs on one machine need one each
        found = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if self.resources.nodes == 1:
            os.environ["MASTER_ADDR"] = "localhost"
        else:
            try:
                socket.getaddrinfo(found.master_addr, None)
            except OSError:  # a node's name need be no host's; this is where the batch script runs, on the first node
                os.environ["MASTER_ADDR"] = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", found.master_addr)
        return int(found.rank)

    def _assist(self, stop: StopFlag) -> str:
        """What every rank but the first does: the same work, with nothing written. The first one learns how it ended.

        It prints where submitit says; the exit code is 0, so that Slurm does not end the first rank before its record.
        """
        try:
            from harness.launch.work import work

            work(self, stop)
        except Exception:
            traceback.print_exc()
            return "ended early"
        return "done"
