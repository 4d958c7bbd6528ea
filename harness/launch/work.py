"""What a job does: it records its start, trains, measures, and records its end. Resumable.

The run folder alone decides what is left to do: the job makes what is missing there, and nothing else.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.data.dataset import Source
from harness.data.latents import open_latents
from harness.data.sources import load
from harness.errors import CellFailedError, DiskFullError, InputError
from harness.files import write_text
from harness.launch import guidance
from harness.launch.compiling import choose_sampling, record_compiled, sampling_code, training_code, use_cache
from harness.launch.conditions import conditions_of, for_training
from harness.launch.console import Reporter
from harness.launch.estimate import Basis, Probes, work_of
from harness.launch.payload import Payload, Placed
from harness.launch.signals import StopFlag
from harness.model.cost import count_cell
from harness.processes import now, process_identity
from harness.runs import provenance, triage
from harness.runs.cellruns import losses_key, owed_evaluations, split_key
from harness.runs.claims import SupersededError
from harness.runs.columns import metric_name
from harness.runs.records import Estimated
from harness.runs.speed import train_tflops
from harness.runs.study import Study
from harness.runs.trackers import Mirror
from harness.spec.cell import Cell
from harness.spec.evaluation import Evaluation
from harness.spec.resources import EXECUTORS
from harness.training.conditions import be_deterministic
from harness.training.gemm import gemm_tflops
from harness.training.hooks import Hooks, Report, StoppedError
from harness.training.loop import Options, train
from harness.training.ranks import LostRankError, RankFailedError, Ranks, error_line, is_lost, meet

if TYPE_CHECKING:
    from harness.evaluation.measure import Subject


class EvaluationsFailedError(CellFailedError):
    """Some of a cell's evaluations failed; the others are measured.

    Attributes:
        trouble: what the first one said of its error (see `harness.runs.triage.describe`), and the keys of all.
    """

    def __init__(
        self, errors: Mapping[str, Exception], missing: Mapping[str, tuple[Evaluation, int]], owed: int
    ) -> None:
        described = []
        for key, error in errors.items():
            evaluation, step = missing[key]
            line = error_line(error).removeprefix(f"evaluation {key}: ")
            described.append(f"{evaluation.sampler} {evaluation.id} at step {step}: {line}")
        super().__init__(f"{len(errors)} of {owed} evaluations failed: {'; '.join(described)}")
        self.trouble = {**_trouble(next(iter(errors.values()))), "evaluations": list(errors)}


def attempt(job: Payload, stop: StopFlag) -> tuple[str, str]:
    """Do the work, and record how it ended; returns the outcome and its message.

    Raises:
        SupersededError: another job owns the run, and nothing more was written.
    """
    outcome, message, trouble = "done", "", {}
    try:
        with job.hold.writing():
            pass
        work(job, stop)
    except SupersededError:
        raise
    except StoppedError as error:
        outcome, message = "stopped", str(error)
    except (RankFailedError, EvaluationsFailedError) as error:
        outcome, message, trouble = "failed", str(error), error.trouble
    except (CellFailedError, InputError, DiskFullError) as error:
        outcome, message, trouble = "failed", str(error), triage.describe(error)
    except LostRankError as error:
        outcome, message = "lost", str(error)
    except Exception as error:  # no error of one cell may stop the sweep
        with contextlib.suppress(OSError):
            traceback.print_exc()
        outcome, message, trouble = "failed", f"{type(error).__name__}: {error}", triage.describe(error)
    _record_end(job, {"outcome": outcome, "message": message, **trouble, "time": now()})
    return outcome, message


def _record_end(job: Payload, ended: Mapping[str, Any]) -> None:
    """Record the end. On a full disk the progress file, which is not needed any more, makes room for the record."""
    try:
        job.hold.record("ended", ended)
    except DiskFullError:
        with job.hold.writing():
            job.run.progress_file.unlink(missing_ok=True)
        job.hold.record("ended", ended)


def work(job: Payload, stop: StopFlag) -> None:
    """Train and measure, on every rank; only the first one writes."""
    run = job.run
    with meet() if job.resources.world > 1 else nullcontext(Ranks()) as ranks:
        # `evaluate` feeds no tracker: a training that runs beside it writes the same points
        names = job.recording.trackers if ranks.is_first and job.steps is None else ()
        mirror = Mirror(names, run, job.cell, job.attempt, job.study)
        try:
            _train_and_measure(job, stop, ranks, mirror)
        finally:
            if ranks.is_first:
                with contextlib.suppress(SupersededError), job.hold.writing():
                    mirror.close()


def _train_and_measure(job: Payload, stop: StopFlag, ranks: Ranks, mirror: Mirror) -> None:
    run = job.run
    use_cache(job)
    device = device_of(job, ranks)
    conditions = ranks.on_first(lambda: conditions_of(job, device))
    torch.set_num_threads(conditions["threads"])
    be_deterministic(compiled=conditions["compile"] != "off")
    hooks = Hooks(should_stop=stop.is_set)
    owed = ranks.on_first(partial(_owed, job))
    keys = list(owed) or [losses_key(job.cell)]
    missing = ranks.on_first(partial(run.missing_evaluations, keys))
    keep = sorted({split_key(key)[1] for key in keys})
    trained = ranks.on_first(lambda: all(run.has_weights(split_key(key)[1]) for key in missing))
    trains = job.steps is None and not trained
    if trains:
        conditions = for_training(job, conditions, ranks)
    if ranks.is_first:
        best = gemm_tflops(device, job.cell.training.precision) * ranks.world if trains else None
        _record_start(job, conditions, best)
        report = with_speed(Reporter(job.hold, run, mirror), job.cell, best)
        hooks = replace(hooks, writing=job.hold.writing, report=report, at_once=stop.at_once)
    with ranks.one_by_one():
        dataset = load(job.cell.data, Source.of(job.resources, job.shared.images_folder))
    if trains:
        train(
            job.cell,
            open_latents(job.cell.data, job.shared) if job.cell.data.vae else dataset,
            run,
            Options(
                device=device,
                keep=keep,
                recording=job.recording,
                checkpoint_seconds=job.resources.checkpoint_seconds,
                micro_batch=conditions["micro_batch"],
                anew=job.anew,
                compiled=conditions["compile"],
                recompute=conditions["recompute"],
            ),
            hooks,
            ranks,
        )
        if conditions["compile"] != "off" and ranks.is_first:
            record_compiled(training_code(job, conditions["compile"]))
    from harness.evaluation.measure import Subject, record_losses  # slow to import

    loss_images = job.recording.loss_images
    subject = Subject(job.cell, run, dataset, job.shared, job.resources, loss_images, conditions, hooks, ranks)
    if not owed:
        record_losses(subject, missing)
    while owed and missing:
        _measure_all(job, subject, {key: owed[key] for key in missing}, len(owed))
        owed, before = ranks.on_first(partial(_owed, job)), missing
        missing = ranks.on_first(partial(run.missing_evaluations, list(owed)))
        if not job.search or missing == before:
            break


def _owed(job: Payload) -> dict[str, tuple[Evaluation, int]]:
    """What the job owes; of a search it grows as records come."""
    if job.search:
        return guidance.owed(job.run, job.evaluations, job.search, job.steps or ())
    return owed_evaluations(job.cell, job.evaluations, job.steps)


def _measure_all(job: Payload, subject: Subject, missing: Mapping[str, tuple[Evaluation, int]], owed: int) -> None:
    """Measure the evaluations that are missing, by their keys, each at a step; `owed` counts those that are not, too.

    Raises:
        EvaluationsFailedError: some failed, and the others are measured.
    """
    from harness.evaluation.measure import measure

    run, ranks = subject.run, subject.ranks
    failed: dict[str, Exception] = {}
    for key, (evaluation, step) in missing.items():
        if not ranks.on_first(partial(run.missing_evaluations, [key])):  # measured meanwhile on the other track
            continue
        try:
            record = measure(subject, evaluation, step, partial(_compiles, job, evaluation, subject.device))
        except Exception as error:
            if is_lost(error) or ranks.any_rank(not _of_one_evaluation(error)):  # all ranks are here, or none answers
                raise
            if not isinstance(error, (CellFailedError, InputError)):
                traceback.print_exc()
            failed[key] = error
            print(f"[{now()}] step {step}: evaluation {evaluation.id} failed: {error_line(error)}", flush=True)
            continue
        if record:
            if record["conditions"]["compile_sampling"] == "on":
                record_compiled(sampling_code(job, evaluation))
            found = record["metrics"]
            print(f"[{now()}] step {step}: {metric_name(found['extractor'])} {found['frechet']:.6g}", flush=True)
    if failed:
        raise EvaluationsFailedError(failed, missing, owed)


def _compiles(job: Payload, evaluation: Evaluation, device: str, before: bool | None) -> bool:
    """Whether the network is compiled to sample an evaluation; says so, and why."""
    choice = choose_sampling(job, evaluation, device, before)
    print(f"[{now()}] sampling compiled: {'yes' if choice.compiled else 'no'}, {choice.why}", flush=True)
    return choice.compiled


def _of_one_evaluation(error: Exception) -> bool:
    """Whether the cell's other evaluations may do better.

    Not after a stop, when the job lost its folder or a rank, on a full disk (no record can be written), or when the
    machine or its GPU is broken (a process never uses a GPU again after such an error). A want of memory is of one
    evaluation: guidance and extractors differ in what they need.
    """
    if isinstance(error, (StoppedError, SupersededError)):
        return False
    return _trouble(error)["cause"] not in (triage.Cause.DISK, triage.Cause.NODE)


def _trouble(error: Exception) -> dict[str, Any]:
    return error.trouble if isinstance(error, RankFailedError) else triage.describe(error)


def with_speed(report: Callable[[Report], None], cell: Cell, best: float | None) -> Callable[[Report], None]:
    """Add to reports of a training what its speed is in operations.

    Args:
        report: takes the reports.
        cell: what is trained.
        best: the rate of a matrix product in 1e12 operations per second; None where nothing is trained.
    """
    if best is None:
        return report
    macs = count_cell(cell).macs

    def say(value: Report) -> None:
        if value["stage"] == "train" and (speed := value.get("images_per_s")):
            tflops = train_tflops(macs, speed)
            value = {**value, "tflops": tflops, "mfu": tflops / best}
        report(value)

    return say


def _record_start(job: Payload, conditions: dict[str, Any], best: float | None) -> None:
    """Record that the attempt has started, and how; remove the files that a killed one left behind."""
    run = job.run
    with job.hold.writing():
        run.remove_temporary_files()
        if job.steps is None and run.has_weights(job.cell.training.steps):
            for path in run.state_files():  # the training was killed before it removed them itself
                path.unlink(missing_ok=True)
        for extension in job.extensions:
            if not (copy := run.extension_file(extension.content_hash)).exists():
                write_text(copy, extension.text)
    origin, changed = provenance.origin_of_job(job.origin)
    Study(Path(job.results), job.study).save_diff(origin.diff, changed)
    extend = {extension.name: extension.content_hash for extension in job.extensions}
    apart = job.cell.seeds.model_dump(exclude_none=True)
    started = {
        "process": process_identity(),
        "time": now(),
        "gpu": job.gpu,
        "conditions": conditions,
        **({} if best is None else {"gemm_tflops": best}),
        **({} if job.basis is None or job.steps else {"estimate": _estimate(job, job.basis, conditions["device"])}),
        "seeds": {
            "training": job.cell.seed,
            **apart,
            "sampling": [*(job.search or (evaluation.seed for evaluation in job.evaluations))],
        },
        **({"extend": extend} if extend else {}),
        **asdict(origin),
        **provenance.environment(),
    }
    job.hold.record("started", started)
    ranks = f", {conditions['ranks']} ranks" if conditions["ranks"] > 1 else ""
    print(f"[{now()}] attempt {job.attempt} of {run.label} on {conditions['hardware']}{ranks}", flush=True)


def _estimate(job: Payload, basis: Basis, device: str) -> Estimated:
    """How long the whole cell is estimated to take, as the plan estimates it."""
    work = work_of(job.cell, job.evaluations, count_cell(job.cell).macs)
    probe = Probes(job.shared).of(job.cell, job.resources, device)
    return basis.estimate(work, device, job.resources.world, probe)


def device_of(job: Placed, ranks: Ranks) -> str:
    """Where the job computes: on the CPU only where no GPU was asked for or given.

    Raises:
        CellFailedError: torch sees no GPU, or fewer than the launcher gave.
    """
    wanted = EXECUTORS.load(job.resources.executor).wants_gpu(job)
    if job.resources.device == "cuda" and not torch.cuda.is_available():
        raise CellFailedError("resources.device is cuda, and torch sees no GPU here")
    if not wanted:
        return "cpu"
    given, seen = job.gpu.split(",") if job.gpu else [""], torch.cuda.device_count()
    if not torch.cuda.is_available() or seen < len(given):
        some = f"{seen} of {len(given)} GPUs" if seen else "no GPU"
        raise CellFailedError(
            f"the job has GPU {job.gpu or '(any)'}, and torch sees {some} here; "
            'mend that, or set resources.device = "cpu" to do without'
        )
    # a rank sees either the GPUs of all ranks on its node or its own only
    torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
    return "cuda"
