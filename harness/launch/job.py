"""One cell from start to end: train, sample, score, record. Resumable; what it needs travels as plain data.

The job trusts the run folder only: whatever is missing there is made, whatever is there is not made again. With
several ranks (see `harness.training.ranks`) each is a process of submitit's that runs the same job; the first one
writes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import CellFailedError, DiskFullError, InputError
from harness.launch.console import Reporter, log_to
from harness.launch.signals import StopFlag
from harness.processes import now, process_identity
from harness.runs import provenance, triage
from harness.runs.attempts import EVALUATING, TRAINING, SupersededError
from harness.runs.cellruns import owed_evaluations
from harness.runs.layout import Run, claim_next
from harness.runs.study import Shared, Study
from harness.runs.trackers import Mirror
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.resources import Recording, Resources

if TYPE_CHECKING:
    from harness.training.ranks import Ranks


@dataclass(frozen=True)
class Job:
    """A claimed attempt at a cell; called by submitit in a process of its own."""

    folder: str
    attempt: int
    cell: Cell
    evaluations: tuple[Evaluation, ...]
    recording: Recording
    resources: Resources
    results: str = "results"  # the folder that holds the studies, and what they share
    gpu: str | None = None  # what CUDA_VISIBLE_DEVICES becomes, one a rank; None: no GPU
    steps: tuple[int, ...] | None = None  # measure the kept weights of these steps, on the other track, and never train
    origin: provenance.Origin | None = None  # the code and the command of the launch
    pooled: bool = False  # one of several cells of a Slurm job, which `harness.launch.slurm_pool` starts and requeues

    @property
    def run(self) -> Run:
        """The run that this is an attempt at."""
        return Run(Path(self.folder), track=TRAINING if self.steps is None else EVALUATING)

    def __call__(self) -> str:
        """Run to the end; returns the outcome, which `attempts/NNN.ended.json` holds too."""
        stop = StopFlag(with_parent=self.pooled)
        run = self.run
        os.environ["OMP_NUM_THREADS"] = str(self.resources.threads)
        if not self._on_slurm:  # which says itself what GPUs its job has
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu or ""
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on GPUs
        if self.resources.world > 1 and self._enter_ranks() > 0:
            return self._assist(run, stop)
        with log_to(run.log):
            job = self._of_this_start(run) if self._on_slurm and not self.pooled else self
            outcome, message = job._guarded(run, stop)
            with contextlib.suppress(OSError):  # the log may be on the full disk
                print(f"[{now()}] attempt {job.attempt}: {outcome}{': ' if message else ''}{message}", flush=True)
            if outcome == "stopped" and self._on_slurm:
                stop.requeue()
        return outcome

    @property
    def _on_slurm(self) -> bool:
        return self.resources.executor == "slurm"

    def checkpoint(self) -> Any:
        """What submitit writes down to be run after the requeue: the same, for all state lies in the run folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _of_this_start(self, run: Run) -> Job:
        """A job that Slurm starts again is an attempt of its own, claimed here; it is the same one's as long as no
        other launch has claimed the cell. A job of that number which a lost node still runs sees that it is superseded.
        """
        restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        mine = run.attempt(self.attempt).claim.get("slurm")
        newest = max(run.attempt_numbers(), default=0)
        theirs = run.attempt(newest).claim.get("slurm")
        if mine is None or theirs is None or any(mine[key] != theirs[key] for key in ("token", "index")):
            return self  # taken over, as it will find
        if theirs["restarts"] > restarts:
            return self  # this start was thought lost
        if theirs["restarts"] < restarts and claim_next(run, run.attempt(newest), restarts):
            newest += 1
        return replace(self, attempt=newest)

    def _enter_ranks(self) -> int:
        """Tell torch by its environment which rank this is, as submitit knows it; returns the rank."""
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

    def _assist(self, run: Run, stop: StopFlag) -> str:
        """What every rank but the first does: the same work, with nothing written. The first one hears how it ended.

        It prints where submitit says; the exit code is 0, so that Slurm does not end the first rank before its record.
        """
        try:
            self._run(run, stop)
        except Exception:
            traceback.print_exc()
            return "ended early"
        return "done"

    def _guarded(self, run: Run, stop: StopFlag) -> tuple[str, str]:
        """Run, and turn whatever happens into an outcome on record."""
        from harness.training.hooks import StoppedError
        from harness.training.ranks import LostRankError, RankFailedError

        outcome, message, trouble = "done", "", {}
        try:
            run.assert_owner(self.attempt)
            self._run(run, stop)
        except SupersededError as error:
            return "superseded", str(error)  # a later attempt owns the folder: leave it alone
        except StoppedError as error:
            outcome, message = "stopped", str(error)
        except RankFailedError as error:
            outcome, message, trouble = "failed", str(error), error.trouble
        except (CellFailedError, InputError, DiskFullError) as error:
            outcome, message, trouble = "failed", str(error), triage.describe(error)
        except LostRankError as error:
            outcome, message = "lost", str(error)
        except Exception as error:  # whatever it was, it must not take the sweep down
            with contextlib.suppress(OSError):
                traceback.print_exc()
            outcome, message, trouble = "failed", f"{type(error).__name__}: {error}", triage.describe(error)
        self._end(run, {"outcome": outcome, "message": message, **trouble, "time": now()})
        return outcome, message

    def _end(self, run: Run, ended: dict[str, Any]) -> None:
        """Put the end on record, if need be on a full disk in the place of the heartbeat, which is over now anyway."""
        try:
            run.record(self.attempt, "ended", ended)
        except DiskFullError:
            run.progress_file.unlink(missing_ok=True)
            run.record(self.attempt, "ended", ended)

    def _run(self, run: Run, stop: StopFlag) -> None:
        from harness.training.ranks import Ranks, meet

        with meet() if self.resources.world > 1 else nullcontext(Ranks()) as ranks:
            # of `evaluate`, which may run beside a training, nothing is copied: two would write the same points
            names = self.recording.trackers if ranks.is_first and self.steps is None else ()
            mirror = Mirror(names, run, self.cell, self.attempt)
            try:
                self._work(run, stop, ranks, mirror)
            finally:
                with contextlib.suppress(SupersededError):
                    run.assert_owner(self.attempt)
                    mirror.close()

    def _work(self, run: Run, stop: StopFlag, ranks: Ranks, mirror: Mirror) -> None:
        import torch

        from harness.data.latents import open_latents
        from harness.data.sources import load
        from harness.training.hooks import Hooks
        from harness.training.loop import Options, train

        device = self._device(ranks)
        conditions = ranks.on_first(lambda: self._conditions(run, device))
        torch.set_num_threads(conditions["threads"])
        torch.use_deterministic_algorithms(True, warn_only=True)
        hooks = Hooks(should_stop=stop.is_set)
        if ranks.is_first:
            self._begin(run, conditions)
            hooks = Hooks(
                before_write=lambda: run.assert_owner(self.attempt),
                should_stop=stop.is_set,
                report=Reporter(run, self.attempt, mirror),
            )
        folder = Path(self.resources.data_folder) if self.resources.data_folder else None
        with ranks.one_by_one():
            dataset = load(self.cell.data, folder, self.resources.data_download, self._shared.images_folder)
        owed = owed_evaluations(self.cell, self.evaluations, self.steps)
        missing = ranks.on_first(partial(run.missing_evaluations, list(owed)))
        keep = sorted({step for _, step in owed.values()})
        trained = ranks.on_first(lambda: all(run.weights_file(owed[key][1]).exists() for key in missing))
        if self.steps is None and not trained:
            train(
                self.cell,
                open_latents(self.cell.data, self._shared) if self.cell.data.vae else dataset,
                run,
                Options(
                    device=device,
                    keep=keep,
                    recording=self.recording,
                    checkpoint_seconds=self.resources.checkpoint_seconds,
                    micro_batch=self.resources.micro_batch,
                ),
                hooks,
                ranks,
            )
        from harness.evaluation.measure import Subject, measure  # slow to import, and training can do without

        loss_images = self.recording.loss_images
        subject = Subject(self.cell, run, dataset, self._shared, self.resources, loss_images, conditions, hooks, ranks)
        for key in missing:
            if not ranks.on_first(partial(run.missing_evaluations, [key])):  # measured meanwhile on the other track
                continue
            evaluation, step = owed[key]
            if record := measure(subject, evaluation, step):
                distance = record["metrics"]["frechet"]
                print(f"[{now()}] step {step}: {evaluation.extractor} distance {distance}", flush=True)

    def _begin(self, run: Run, conditions: dict[str, Any]) -> None:
        """Put on record that the attempt has started, and how; what a killed one left behind goes."""
        run.remove_temporary_files()
        if self.steps is None and run.weights_file(self.cell.training.steps).exists():
            for path in run.state_files():  # a kill came before training removed them itself
                path.unlink(missing_ok=True)
        origin, changed = provenance.origin_of_job(self.origin)
        Study.of(run).save_diff(origin.diff, changed)
        started = {
            "process": process_identity(),
            "time": now(),
            "gpu": self.gpu,
            "conditions": conditions,
            "seeds": {"training": self.cell.seed, "sampling": [evaluation.seed for evaluation in self.evaluations]},
            **asdict(origin),
            **provenance.environment(),
        }
        run.record(self.attempt, "started", started)
        ranks = f", {conditions['ranks']} ranks" if conditions["ranks"] > 1 else ""
        print(f"[{now()}] attempt {self.attempt} of {run.folder.name} on {conditions['hardware']}{ranks}", flush=True)

    @property
    def _shared(self) -> Shared:
        return Shared(Path(self.results))

    def _device(self, ranks: Ranks) -> str:
        import torch

        if self.resources.device == "cuda" and not torch.cuda.is_available():
            raise CellFailedError("resources.device is cuda, and torch sees no GPU here")
        wanted = self.resources.gpus_wanted > 0 if self._on_slurm else self.gpu is not None
        if wanted and self._on_slurm and not torch.cuda.is_available():
            raise CellFailedError(
                f"resources.gpus is {self.resources.gpus_wanted}, and torch sees no GPU in the Slurm job"
            )
        if not (wanted and torch.cuda.is_available()):
            return "cpu"
        # a task may see the GPUs of all ranks on its node, or its own only
        torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
        return "cuda"

    def _conditions(self, run: Run, device: str) -> dict[str, Any]:
        """Conditions of bit-for-bit agreement: those of the first attempt, as far as this machine allows."""
        from harness.training.conditions import numeric_conditions

        mine = {
            **numeric_conditions(self.resources.threads, self.resources.sampling_batch, device),
            "ranks": self.resources.world,
            "micro_batch": self.resources.micro_batch,
        }
        attempts = [*run.on(TRAINING).attempts(), *(run.attempts() if run.track != TRAINING else [])]
        first = next((a.started["conditions"] for a in attempts if a.started and "conditions" in a.started), None)
        if first is None:
            return mine
        first = {"ranks": 1, "micro_batch": None, **first}  # absent in records of before there was a choice
        for key in ("torch", "device", "hardware", "ranks", *(("micro_batch",) if self.steps is None else ())):
            if first[key] != mine[key]:
                was, given = ("all" if value is None else value for value in (first[key], mine[key]))
                print(
                    f"note: {key} was {was} in the first attempt and is {given} now; "
                    "results agree within rounding, not bit for bit",
                    flush=True,
                )
        return {**mine, "threads": first["threads"], "sampling_batch": first["sampling_batch"]}
