"""The verbs that run cells: launch and evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.options import (
    RESULTS,
    CellsPerGpuOption,
    CellsPerJobOption,
    DataFolderOption,
    DownloadOption,
    ExecutorOption,
    GpusOption,
    MaxParallelOption,
    MemoryOption,
    NodesOption,
    RanksOption,
    ResultsOption,
    SlurmOption,
    StudyArgument,
    TimeOption,
    WaitOption,
    console,
    find_cell,
    items_of,
    resolve,
    with_resources,
)

if TYPE_CHECKING:
    from harness.runs.cellruns import CellRun
    from harness.runs.study import Study
    from sweeps.grid import Sweep


def _counts(items: list[CellRun]) -> str:
    """How many cells are in which state."""
    from collections import Counter

    return ", ".join(f"{count} {state}" for state, count in Counter(str(item.now.state) for item in items).items())


def launch(
    study: StudyArgument,
    results: ResultsOption = RESULTS,
    slots: Annotated[int | None, typer.Option(min=1, help="Cells at once. Default: what cores or GPUs allow.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of a cell, or of each of its ranks.")] = None,
    ranks: RanksOption = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Images a rank holds at once; gradients add up to the global batch. Default: all."),
    ] = None,
    cells_per_gpu: CellsPerGpuOption = None,
    data_folder: DataFolderOption = None,
    download: DownloadOption = False,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed and cancelled cells again, too.")] = False,
    executor: ExecutorOption = None,
    partition: SlurmOption = None,
    account: SlurmOption = None,
    qos: SlurmOption = None,
    constraint: SlurmOption = None,
    time: TimeOption = None,
    mem_gb: MemoryOption = None,
    gpus: GpusOption = None,
    nodes: NodesOption = None,
    max_parallel: MaxParallelOption = None,
    cells_per_job: CellsPerJobOption = None,
    wait: WaitOption = False,
) -> None:
    """Train, sample and score every cell that is not done; resume what was interrupted.

    Locally it stays in the foreground. Ctrl-C lets the running cells write a checkpoint and stop; the same command goes
    on. On Slurm it submits and returns; with --wait it follows, and Ctrl-C ends the following only.

    A cell that is too large or too slow for one GPU is trained by several ranks (--ranks, on Slurm also --nodes), which
    divide its global batch, and in pieces that fit (--micro-batch). Neither changes what is trained: the same cell on
    another number of ranks agrees up to the order of float summation, and a cell begun on two goes on on one.
    """
    from harness.runs.state import State

    sweep, folder = resolve(study, results)
    sweep = with_resources(
        sweep,
        slots=slots,
        threads=threads,
        ranks=ranks,
        nodes=nodes,
        micro_batch=micro_batch,
        data_folder=data_folder,
        data_download=download,
        executor=executor,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        time=time,
        mem_gb=mem_gb,
        gpus=gpus,
        max_parallel=max_parallel,
        cells_per_job=cells_per_job,
        cells_per_gpu=cells_per_gpu,
    )
    items = _run_all(sweep, folder, items_of(sweep, folder), retry=retry, wait=wait)
    hint = " --retry" if any(item.now.state in (State.FAILED, State.CANCELLED) for item in items) else ""
    _tell_results(sweep, folder, items_of(sweep, folder), items, f"launch {study}{hint}")


def _run_all(sweep: Sweep, study: Study, items: list[CellRun], *, wait: bool, **options: Any) -> list[CellRun]:
    """Launch behind a view of these cells; exit once all is submitted to Slurm, without `wait`."""
    from harness.cli.bars import LiveView, PlainView
    from harness.launch.launch import launch as run_all
    from sweeps.grid import warnings

    on_slurm = sweep.resources.executor == "slurm"
    for line in warnings(sweep):
        print(f"warning: {line}", file=sys.stderr)
    screen = console()
    view_type = LiveView if screen.is_terminal else PlainView
    try:
        with view_type(screen, items) as view:
            ended = run_all(sweep, study, view, wait=wait, **options)
    except KeyboardInterrupt:
        told = "the Slurm jobs go on" if on_slurm else "stopped; the same command goes on from the checkpoints"
        print(told, file=sys.stderr)
        raise typer.Exit(130) from None
    if on_slurm and not wait:
        print(f"{_counts(ended)}; to follow: dit-harness status {study.name}, or the same command with --wait")
        raise typer.Exit(0)
    return ended


def _tell_results(
    sweep: Sweep,
    study: Study,
    everything: list[CellRun],
    items: list[CellRun],
    again: str,
    owed: set[tuple[str, str]] | None = None,
) -> None:
    """Write the tables, print the results (of the cells and records `owed` only, when given) and what is not done.

    Raises:
        Exit: with code 1, when something is not done.
    """
    from harness.cli.tables import results_table
    from harness.runs.collect import collect as write_tables
    from harness.runs.state import State

    rows = write_tables(study, everything)
    shown = [row for row in rows if owed is None or (row["cell"], f"{row['evaluation']}@{row['step']}") in owed]
    if shown:
        console().print(results_table(sweep.title, shown))
    if rows:
        print(f"{len(rows)} rows in {study.table('results.csv')}")
    unfinished = [item for item in items if item.now.state is not State.DONE]
    for item in unfinished:
        print(f"{item.name}: {item.now.state}: {item.now.message} (log: {item.run.log})", file=sys.stderr)
    if unfinished:
        print(f"{len(unfinished)} of {len(items)} cells are not done; again: dit-harness {again}", file=sys.stderr)
        raise typer.Exit(1)


_EVALUATION = "Evaluation (several values with commas between: their product)"


def _varied(what: str) -> Any:
    return typer.Option(help=what, rich_help_panel=_EVALUATION)


def evaluate(
    study: StudyArgument,
    results: ResultsOption = RESULTS,
    protocol: Annotated[
        str | None, _varied("Start from this protocol instead of the sweep's first evaluation: paper, fast, ...")
    ] = None,
    samples: Annotated[str | None, _varied("Generated images.")] = None,
    sampler: Annotated[str | None, _varied("ddpm, ddim.")] = None,
    sampling_steps: Annotated[str | None, _varied("Steps of the sampler, as 16,32,64,128,256.")] = None,
    guidance: Annotated[str | None, _varied("Scales of classifier-free guidance; 1: none.")] = None,
    guidance_channels: Annotated[str | None, _varied("as-published, all, first-three.")] = None,
    labels: Annotated[str | None, _varied("Classes of the samples: uniform, balanced, training.")] = None,
    extractor: Annotated[str | None, _varied("Feature spaces.")] = None,
    reference: Annotated[str | None, _varied("train, held-out, adm.")] = None,
    seed: Annotated[str | None, _varied("Sampling seeds; several give mean and deviation.")] = None,
    ema: Annotated[bool | None, typer.Option("--ema/--no-ema", help="Averaged or plain weights.")] = None,
    at: Annotated[str | None, typer.Option(help="Training steps whose weights are kept. Default: the last.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Name or id of a cell; again for more. Default: all.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="Cells at once, apart from those that train.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of a cell or rank, unless it was trained with others.")
    ] = None,
    ranks: RanksOption = None,
    cells_per_gpu: CellsPerGpuOption = None,
    data_folder: DataFolderOption = None,
    download: DownloadOption = False,
    inception_weights: Annotated[Path | None, typer.Option(help="File of the weights of inception-v3-compat.")] = None,
    adm_reference: Annotated[Path | None, typer.Option(help="File of the reference adm.")] = None,
    executor: ExecutorOption = None,
    partition: SlurmOption = None,
    account: SlurmOption = None,
    qos: SlurmOption = None,
    constraint: SlurmOption = None,
    time: TimeOption = None,
    mem_gb: MemoryOption = None,
    gpus: GpusOption = None,
    nodes: NodesOption = None,
    max_parallel: MaxParallelOption = None,
    cells_per_job: CellsPerJobOption = None,
    wait: WaitOption = False,
) -> None:
    """Measure kept weights again, otherwise: other samplers, steps, guidance, seeds, labels, references, protocols.

    Trains nothing, and may run beside a training. What has no weights kept is named and left out; what is measured
    already is not measured again. The rows come into results.csv beside the others.
    """
    from harness.cli.words import cost_line, evaluation_lines
    from harness.launch import remeasure as work
    from harness.runs.state import State

    sweep, folder = resolve(study, results)
    sweep = with_resources(
        sweep,
        slots=slots,
        threads=threads,
        ranks=ranks,
        data_folder=data_folder,
        data_download=download,
        inception_weights=inception_weights,
        adm_reference=adm_reference,
        executor=executor,
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        time=time,
        mem_gb=mem_gb,
        gpus=gpus,
        nodes=nodes,
        max_parallel=max_parallel,
        cells_per_job=cells_per_job,
        cells_per_gpu=cells_per_gpu,
    )
    options = {
        "samples": samples,
        "sampler": sampler,
        "sampling_steps": sampling_steps,
        "guidance": guidance,
        "guidance_channels": guidance_channels,
        "labels": labels,
        "extractor": extractor,
        "reference": reference,
        "seed": seed,
        "ema": ema,
    }
    everything = items_of(sweep, folder)  # with the sweep's own evaluations, which the tables put first
    sweep = work.with_evaluations(sweep, protocol, options)
    chosen = [find_cell(everything, name, folder) for name in dict.fromkeys(cell)] if cell else everything
    selection = work.select(sweep, chosen, None if at is None else work.values(at, "at"))
    for line in selection.skipped:
        print(f"left out: {line}", file=sys.stderr)
    for line in evaluation_lines(sweep, f"after {at} steps" if at else "after the last step"):
        print(line)
    print(cost_line(work.cost(selection.items, everything), len(selection.items)))
    if busy := [item.name for item in selection.items if item.now.state in (State.QUEUED, State.RUNNING)]:
        told = "nothing is submitted for them now" if sweep.resources.executor == "slurm" else "waiting for it"
        names = f"{', '.join(busy[:3])}{f' and {len(busy) - 3} more' if len(busy) > 3 else ''}"
        print(f"another evaluate is at work on {names}: {told}", file=sys.stderr)
    items = _run_all(sweep, folder, selection.items, chosen=selection.items, retry=True, wait=wait)
    owed = {(item.cell.id, key) for item in selection.items for key in item.owed}
    _tell_results(sweep, folder, everything, items, f"evaluate {study}, with the same options", owed)
