"""From plan to submitit jobs: local slots in the foreground.

Policy. A cell is started by claiming its next attempt (see `harness.runs`), so two launches at once start nothing
twice. The slots are shared by all launches of a study on this machine (or in this Slurm allocation): what runs already,
be it another launcher's or an orphan of a killed one, takes up a slot and is waited for; what runs elsewhere is waited
for, too. A job that is lost (killed without a word) is started
again, at most twice a launch; one that failed is not, unless asked to. Ctrl-C lets the running jobs write a checkpoint
and stop.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil
import submitit

from harness import provenance, trackers
from harness.cell import Cell, Evaluation, Resources
from harness.errors import InputError
from harness.flops import closed_form_macs
from harness.job import RESTARTS, Job, owed_evaluations
from harness.processes import now, process_identity
from harness.runs import Run, RunState, Shared, State, Study
from sweeps.grid import Sweep

POLL_SECONDS = 0.3

#: Longest wait for the jobs to write their checkpoints after Ctrl-C.
STOP_SECONDS = 120.0

#: Submitit ends local jobs after two minutes unless told otherwise; a cell may take as long as it takes.
_NO_TIME_LIMIT_MIN = 60 * 24 * 365

_STARTABLE = (State.MISSING, State.PARTIAL, State.INTERRUPTED)
_ACTIVE = (State.QUEUED, State.RUNNING)
_RETRIED = (State.FAILED, State.CANCELLED)


@dataclass
class CellRun:
    """A cell of the sweep with its run folder and its last known state."""

    name: str
    cell: Cell
    run: Run
    owed: list[str]
    evaluations: tuple[Evaluation, ...] = ()
    steps: tuple[int, ...] | None = None  # to measure kept weights of, without training: see `harness.evaluate`
    now: RunState = field(init=False)
    restarts: int = 0
    mine: bool = False  # started by this launch

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> RunState:
        """Read the state anew."""
        self.now = self.run.state(self.owed, self.cell.training.steps)
        return self.now

    @property
    def on_slurm(self) -> bool:
        """Whether its last attempt is a Slurm job."""
        return self.now.attempt is not None and "slurm" in self.now.attempt.claim

    @property
    def in_local_slot(self) -> bool:
        """Whether its last attempt is of the local executor on this machine, in this allocation if there is one."""
        attempt = self.now.attempt
        if attempt is None or self.on_slurm or not attempt.host_is_here:
            return False
        return attempt.claim.get("allocation") == os.environ.get("SLURM_JOB_ID")


class View(Protocol):
    """What shows a launch to the user."""

    def started(self, item: CellRun) -> None:
        """A cell was started."""

    def finished(self, item: CellRun) -> None:
        """A cell ended, well or not."""

    def tick(self, items: list[CellRun]) -> None:
        """Called at every poll."""

    def note(self, text: str) -> None:
        """Something worth a line happened."""


def cell_runs(sweep: Sweep, study: Study) -> list[CellRun]:
    """Every cell of the sweep with its run and state; reads only."""
    known = study.run_folders()
    items = []
    for name, cell in sweep.cells():
        evaluations = sweep.evaluations_of(cell)
        owed = list(owed_evaluations(cell, evaluations))
        items.append(CellRun(name, cell, study.run(name, cell, known), owed, evaluations))
    return items


def visible_gpus() -> list[str]:
    """GPUs of this machine, or of the Slurm allocation it is used in, as CUDA_VISIBLE_DEVICES names them; no torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None and "SLURM_JOB_ID" in os.environ:  # the node's other GPUs are other people's
        chosen = os.environ.get("SLURM_STEP_GPUS", os.environ.get("SLURM_JOB_GPUS", ""))
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(line for line in listing.splitlines() if line.startswith("GPU "))]


def usable_cores() -> int:
    """CPU cores this process may use, within its Slurm allocation if it is in one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allocated = os.environ.get("SLURM_CPUS_ON_NODE", "")  # not every cluster binds processes to it
    return min(cores, int(allocated)) if allocated.isdigit() else cores


def default_slots(resources: Resources, gpus: list[str]) -> int:
    """Cells at once: `cells_per_gpu` a GPU, or as many as the cores allow at the asked threads; each rank counts."""
    if resources.slots is not None:
        return resources.slots
    available = len(gpus) * resources.cells_per_gpu if gpus else usable_cores() // resources.threads
    return max(1, available // resources.ranks)


def launch(
    sweep: Sweep,
    study: Study,
    view: View,
    *,
    retry: bool = False,
    wait: bool = False,
    chosen: list[CellRun] | None = None,
) -> list[CellRun]:
    """Run every cell that is missing, partial or interrupted (failed and cancelled ones too with `retry`).

    Of `chosen` only, when given: what `harness.evaluate` has to measure.
    Returns them all; ended, except on Slurm without `wait`.

    Raises:
        InputError: the data or the weights of Inception are not there, or the device asked for is not, or the ranks
            cannot share the work, or Slurm refuses; nothing was started unless the message says so.
        KeyboardInterrupt: after Ctrl-C, once the running jobs have stopped; on Slurm they go on.
    """
    from harness.data.latents import check_ready  # numpy, which `status` can do without
    from harness.data.sources import check_available, load

    resources = sweep.resources
    on_slurm = resources.executor == "slurm"
    gpus = [] if resources.device == "cpu" or on_slurm else visible_gpus()
    if resources.device == "cuda" and not gpus and not on_slurm:
        raise InputError(f'{sweep.path}: resources.device: "cuda", but no GPU is visible here; allowed: "auto", "cpu"')
    items = cell_runs(sweep, study) if chosen is None else chosen
    _check_ranks(sweep, gpus)
    _check_inception(sweep, items)
    trackers.check_installed(sweep.recording.trackers, str(sweep.path))
    _check_adm_reference(sweep, items)
    folder = Path(resources.data_folder) if resources.data_folder else None
    for data in {cell.data for _, cell in sweep.cells()}:
        check_available(data, folder, resources.data_download)
        if data.vae is not None:
            check_ready(data, Shared(study.root), str(sweep.path))
        elif data.name in ("imagenet", "folder"):  # checked here once, rather than by every job at the same time
            load(data, folder, cache=Shared(study.root).images_folder)
    study.check_schema()
    _check_writable(study)
    if chosen is None:
        study.save_sweep(sweep.path)
    study.remove_leftovers()
    origin, changed = provenance.origin()
    study.save_diff(origin.diff, changed)
    # the dearest first, so that no long cell is left over at the end, and what does not fit fails early
    items = sorted(items, key=_training_cost, reverse=True)
    to_retry = {item.cell.id for item in items if retry and item.now.state in _RETRIED}
    if on_slurm:
        from harness.launch_slurm import launch_slurm

        launch_slurm(sweep, study, items, to_retry, view, wait=wait)
        return items
    if "SLURM_JOB_ID" in os.environ and "SLURMD_NODENAME" not in os.environ:
        view.note("this shell has a Slurm allocation but is not on a node of it: srun dit-harness ... runs there")
    slots = default_slots(resources, gpus)
    if chosen is not None and retry:
        # what another launch, of other measurements, fails in meanwhile is tried here, too
        to_retry = {item.cell.id for item in items}
    try:
        _loop(sweep, items, to_retry, slots, gpus, view)
    except KeyboardInterrupt:
        _stop(items, view)
        raise
    return items


def _training_cost(item: CellRun) -> float:
    """Multiply-adds of a training, by the closed form: no torch is needed to order a queue."""
    recipe = item.cell.training
    return float(closed_form_macs(item.cell.model, item.cell.data.shape)) * recipe.batch_size * recipe.steps


def _check_inception(sweep: Sweep, items: list[CellRun]) -> None:
    """Days of training should not end in an evaluation that cannot be done: its weights must be there and readable."""
    from harness.evaluation import inception

    if any(e.extractor == inception.NAME for i in items if i.now.state is not State.DONE for e in i.evaluations):
        try:
            inception.check_weights(inception.find_weights(sweep.resources.inception_weights))
        except InputError as error:
            raise InputError(f"{sweep.path}: {error}") from None


def _check_adm_reference(sweep: Sweep, items: list[CellRun]) -> None:
    """As `_check_inception`, of the reference batch."""
    from harness.evaluation import adm

    due = [i for i in items if i.now.state is not State.DONE and any(e.reference == "adm" for e in i.evaluations)]
    for size in {item.cell.data.image_shape.size for item in due}:
        try:
            adm.find(sweep.resources.adm_reference, size)
        except InputError as error:
            raise InputError(f"{sweep.path}: {error}") from None


def _check_ranks(sweep: Sweep, gpus: list[str]) -> None:
    """Each rank takes an equal share of the global batch; here it needs a GPU of its own where GPUs are used at all."""
    resources = sweep.resources
    if resources.executor == "local" and resources.nodes > 1:
        raise InputError(f'{sweep.path}: resources.nodes: {resources.nodes} need executor = "slurm"; allowed here: 1')
    if gpus and resources.ranks > len(gpus):
        raise InputError(
            f"{sweep.path}: resources.ranks: {resources.ranks}, but of GPUs, one a rank, "
            f'{len(gpus)} {"is" if len(gpus) == 1 else "are"} visible here; allowed: at most as many, or device = "cpu"'
        )
    for name, cell in sweep.cells():
        batch = cell.training.batch_size
        if batch % resources.world:
            allowed = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
            raise InputError(
                f"{sweep.path}: {name}: training.batch_size {batch} is not divisible among {resources.world} ranks "
                f"(resources.ranks {resources.ranks} on each of resources.nodes {resources.nodes}); "
                f"allowed in total: {allowed}"
            )


def _check_writable(study: Study) -> None:
    try:
        study.runs_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{study.folder}: results cannot be written: {error.strerror}") from None
    for folder in (study.folder, study.runs_folder):
        if not os.access(folder, os.W_OK):
            raise InputError(f"{folder}: results cannot be written: no permission, or a read-only file system")


def _loop(sweep: Sweep, items: list[CellRun], to_retry: set[str], slots: int, gpus: list[str], view: View) -> None:
    """Fill the slots until nothing is left to start and nothing runs."""
    announced = {item.cell.id for item in items if item.now.state is State.DONE}
    while True:
        active = _fill_slots(sweep, items, to_retry, slots, gpus, view)
        view.tick(items)
        if not active:
            return
        time.sleep(POLL_SECONDS)
        for item in active:
            if item.refresh().state in _ACTIVE:
                continue
            lost = item.mine and item.now.state in (State.INTERRUPTED, State.PARTIAL)
            item.restarts += lost
            if lost and item.restarts <= RESTARTS:
                view.note(f"{item.name}: {item.now.message}; starting it again")
            elif item.cell.id not in announced and not _startable(item, to_retry):  # else another launch's is over
                announced.add(item.cell.id)
                view.finished(item)


def _fill_slots(
    sweep: Sweep, items: list[CellRun], to_retry: set[str], slots: int, gpus: list[str], view: View
) -> list[CellRun]:
    """Start cells while slots are free; returns the active ones, whoever started them."""
    active = [item for item in items if item.now.state in _ACTIVE]
    for item in items:
        if sum(item.in_local_slot for item in active) >= slots:
            break
        if not _startable(item, to_retry):
            continue
        if item.refresh().state in _ACTIVE:  # another launch was quicker
            active.append(item)
        elif _startable(item, to_retry):
            to_retry.discard(item.cell.id)
            note_takeover(item, view)
            if _start(sweep, item, _free_gpus(gpus, active, sweep.resources.ranks)):
                view.started(item)
            item.refresh()
            active.append(item)
    return active


def note_takeover(item: CellRun, view: View) -> None:
    """Say when a cell that is about to be started was another launch's, whose job or host is gone."""
    attempt = item.now.attempt
    if attempt is not None and not item.mine and attempt.outcome == "lost":
        view.note(f"{item.name}: taking over: {attempt.silence}")


def _startable(item: CellRun, to_retry: set[str]) -> bool:
    if item.now.state in _RETRIED:
        return item.cell.id in to_retry
    spent = item.mine and item.restarts > RESTARTS
    return item.now.state in _STARTABLE and not spent


def _free_gpus(gpus: list[str], active: list[CellRun], ranks: int) -> str | None:
    """So many GPUs with the fewest live jobs of this study, as CUDA_VISIBLE_DEVICES takes them."""
    if not gpus:
        return None
    claims = [item.now.attempt.claim.get("gpu") or "" for item in active if item.now.attempt and item.in_local_slot]
    taken = Counter(gpu for claim in claims for gpu in claim.split(","))
    return ",".join(sorted(gpus, key=lambda gpu: taken[gpu])[:ranks])


def _start(sweep: Sweep, item: CellRun, gpu: str | None) -> bool:
    """Claim the next attempt and submit it; False when another launcher was quicker."""
    run = item.run
    number = max(run.attempt_numbers(), default=0) + 1
    # the intention is on record before anything is submitted: a crash in between leaves a claim whose launcher is dead
    allocation = os.environ.get("SLURM_JOB_ID")
    if not run.claim(number, {"process": process_identity(), "time": now(), "gpu": gpu, "allocation": allocation}):
        return False
    run.write_cell(item.name, item.cell)
    executor = submitit.LocalExecutor(run.submitit_folder)
    executor.update_parameters(
        timeout_min=_NO_TIME_LIMIT_MIN, stderr_to_stdout=True, tasks_per_node=sweep.resources.ranks
    )
    job = Job(
        folder=str(run.folder.resolve()),
        attempt=number,
        cell=item.cell,
        evaluations=item.evaluations,
        recording=sweep.recording,
        resources=sweep.resources,
        results=str(run.folder.resolve().parents[2]),
        gpu=gpu,
        steps=item.steps,
        origin=provenance.origin()[0],
    )
    with _interrupts_ignored():
        submitted = executor.submit(job)
    try:
        controller = process_identity(int(submitted.job_id))
    except psutil.Error:  # gone already; what it left tells the rest
        controller = None
    run.record(number, "submitted", {"process": controller, "time": now(), "job_id": submitted.job_id})
    item.mine = True
    return True


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Children inherit an ignored signal: Ctrl-C then reaches only the launcher, which stops the jobs in order."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(items: list[CellRun], view: View) -> None:
    """Ask this launch's jobs to checkpoint and stop, and wait until they have."""
    running = [item for item in items if item.mine and item.refresh().state in _ACTIVE]
    if running:
        view.note(f"stopping {len(running)} running cells; each writes a checkpoint first")
    asked: set[int] = set()
    deadline = time.monotonic() + STOP_SECONDS
    while running and time.monotonic() < deadline:
        for item in running:
            attempt = item.now.attempt
            identity = attempt and (attempt.started or attempt.submitted)  # until the job is known, its controller
            pid = int(identity["process"]["pid"]) if identity else None
            if pid is not None and pid not in asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                asked.add(pid)
        time.sleep(POLL_SECONDS)
        running = [item for item in running if item.refresh().state in _ACTIVE]
