"""The command `dit-harness`: parse, call, print. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import errno
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import InputError

if TYPE_CHECKING:
    from harness.launch import CellRun
    from harness.runs import Study
    from sweeps.grid import Sweep

app = typer.Typer(
    name="dit-harness",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Scaling studies of Diffusion Transformers: from a grid of models to the GFLOPs-vs-FID plots.

    A study is a sweep file (TOML), such as sweeps/quickstart.toml. Every verb takes the file, or the study's name (the
    file's stem) once it was launched.

    \b
    dit-harness plan sweeps/quickstart.toml      what would run, and what it costs
    dit-harness launch sweeps/quickstart.toml    train, sample and score every cell; again to resume
    dit-harness report quickstart                table, fits, figures, report.html

    Exit codes: 0 all well, 1 some cells failed, 2 bad input (nothing was started), 130 stopped by Ctrl-C.""",
)

StudyArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file (.toml), or the name of a study.")]
CellArgument = Annotated[str, typer.Argument(help="Name of the cell, or the beginning of its id.")]
ResultsOption = Annotated[
    Path, typer.Option("--results", envvar="DIT_HARNESS_RESULTS", help="The folder that holds the studies.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DataFolderOption = Annotated[Path | None, typer.Option(help="Folder with the data set's files.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="Download missing data (torchvision).")]
ExecutorOption = Annotated[str | None, typer.Option(help="local or slurm.")]
SlurmOption = Annotated[str | None, typer.Option(help="Slurm: as sbatch takes it.", rich_help_panel="Slurm")]
TimeOption = Annotated[
    int | None, typer.Option(help="Slurm: minutes of a job; a longer cell is requeued.", rich_help_panel="Slurm")
]
MemoryOption = Annotated[float | None, typer.Option(help="Slurm: GiB of a cell on each node.", rich_help_panel="Slurm")]
GpusOption = Annotated[
    int | None, typer.Option(help="Slurm: GPUs of a node: 0, or one for each of --ranks.", rich_help_panel="Slurm")
]
NodesOption = Annotated[
    int | None, typer.Option(help="Slurm: nodes of one cell, each with --ranks processes.", rich_help_panel="Slurm")
]
RanksOption = Annotated[
    int | None, typer.Option(min=1, help="Processes that share one cell on each node, each on a GPU of its own.")
]
CellsPerGpuOption = Annotated[int | None, typer.Option(min=1, help="Cells that share a GPU. Default: 1.")]
CellsPerJobOption = Annotated[
    int | None,
    typer.Option(
        help="Slurm: slots of a job, each for cell after cell. Default: a job a cell.", rich_help_panel="Slurm"
    ),
]
MaxParallelOption = Annotated[
    int | None,
    typer.Option(help="Slurm: jobs at once. Default: all, or with --cells-per-job one.", rich_help_panel="Slurm"),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Slurm: follow until all has ended.", rich_help_panel="Slurm")]
RESULTS = Path("results")


def _resolve(argument: str, results: Path) -> tuple[Sweep, Study]:
    """The sweep and the study an argument names."""
    from harness.runs import Study
    from harness.slurm import Queue
    from sweeps.grid import load_sweep, study_name

    name = study_name(argument)
    study = Study(results, name, Queue(name))
    study.check_schema()
    if argument.endswith(".toml"):
        return load_sweep(Path(argument)), study
    for path in (study.sweep_file, Path("sweeps") / f"{name}.toml"):
        if path.exists():
            return load_sweep(path, name), study
    raise InputError(f"{argument}: no study of this name in {results}, and no sweeps/{name}.toml; give a sweep file")


def _items(sweep: Sweep, study: Study) -> list[CellRun]:
    from harness.launch import cell_runs

    return cell_runs(sweep, study)


def _find_cell(items: list[CellRun], cell: str, study: Study) -> CellRun:
    """The one cell of this name, or whose id begins so."""
    found = [item for item in items if item.name == cell or item.cell.id.startswith(cell)]
    if len(found) != 1:
        problem = "no cell" if not found else "several cells"
        names = ", ".join(item.name for item in items)
        raise InputError(f"{cell}: {problem} of this name in {study.name}; allowed: {names}")
    return found[0]


def _with_resources(sweep: Sweep, **asked: Any) -> Sweep:
    """The sweep with the resources that the command line asks for in their place, validated as in the file."""
    from dataclasses import replace

    from harness.cell import Resources, validated

    asked = {key: value for key, value in asked.items() if value is not None and value is not False}
    given = {key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}
    fields = {**sweep.resources.model_dump(), **given}
    return replace(sweep, resources=validated(Resources, fields, "command line, resources"))


def _counts(items: list[CellRun]) -> str:
    """How many cells are in which state."""
    from collections import Counter

    return ", ".join(f"{count} {state}" for state, count in Counter(str(item.now.state) for item in items).items())


def _warn_of_silence(study: Study) -> None:
    """Say when the states are without Slurm's word."""
    error = getattr(study.scheduler, "error", None)
    if error is not None:
        print(f"Slurm does not answer: {error}; the states are what the runs' own files tell", file=sys.stderr)


def _write_now(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def _console() -> Any:
    from rich.console import Console

    # a pipe has no width; tables should not be squeezed into 80 columns there
    return Console(width=None if sys.stdout.isatty() else 200)


@app.command()
def plan(
    study: StudyArgument,
    results: ResultsOption = RESULTS,
    tflops: Annotated[
        float | None,
        typer.Option(help="What a GPU sustains, 1e12 operations/s. Default: as finished cells did, or assumed 100."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show every cell: shape, tokens, parameters, GMACs, cost, GPU hours, disk, estimated time and state.

    Starts nothing, and needs neither the data nor a GPU. Training compute is the paper's 3 * GMACs * batch * steps; an
    operation is half a multiply-add.
    """
    from harness.plan import plan as price
    from harness.plan import totals
    from harness.views import evaluation_lines, plan_table
    from sweeps.grid import warnings

    sweep, folder = _resolve(study, results)
    if tflops is not None and not 0 < tflops < math.inf:
        raise InputError(f"--tflops: {tflops}; allowed: a finite number above 0")
    rows = price(sweep, _items(sweep, folder), tflops)
    if as_json:
        _print_json(rows)
        return
    _console().print(plan_table(sweep.title, rows, totals(sweep, rows)))
    for line in evaluation_lines(sweep):
        print(line)
    for line in warnings(sweep):
        print(f"warning: {line}", file=sys.stderr)


def _prepare(work: str, study: str, results: Path, data_folder: Path | None, download: bool) -> None:
    """Run `train-vae` or `encode` behind a progress bar."""
    from dataclasses import replace

    from harness import prepare
    from harness.errors import CellFailedError
    from harness.job import StopFlag
    from harness.progress import WorkBar
    from harness.train import Hooks, StoppedError

    sweep, folder = _resolve(study, results)
    asked: dict[str, Any] = {
        "data_folder": str(data_folder) if data_folder else None,
        "data_download": download or None,
    }
    options = {key: value for key, value in asked.items() if value is not None}
    sweep = replace(sweep, resources=sweep.resources.model_copy(update=options))
    try:
        with WorkBar(_console()) as bar:
            if work == "train-vae":
                hooks = Hooks(should_stop=StopFlag().is_set, report=bar.report)
                prepare.train_vaes(sweep, folder, hooks, bar.say)
            else:
                prepare.encode_all(sweep, folder, Hooks(report=bar.report), bar.say)
    except (KeyboardInterrupt, StoppedError) as error:
        print(str(error) or "stopped; the same command goes on after the last whole shard", file=sys.stderr)
        raise typer.Exit(130) from None
    except (CellFailedError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command("train-vae")
def train_vae(
    study: StudyArgument,
    results: ResultsOption = RESULTS,
    data_folder: DataFolderOption = None,
    download: DownloadOption = False,
) -> None:
    """Train the autoencoder that the sweep names (data.vae, kind "trained"), where no pretrained one can be had.

    Stays in the foreground; Ctrl-C writes a checkpoint, and the same command goes on. Studies share it.
    """
    _prepare("train-vae", study, results, data_folder, download)


@app.command()
def encode(
    study: StudyArgument,
    results: ResultsOption = RESULTS,
    data_folder: DataFolderOption = None,
    download: DownloadOption = False,
) -> None:
    """Encode the sweep's images, and their mirror images, by the autoencoder that it names; once, for all studies.

    A pretrained one is read from results/_vae/NAME, a folder of that name, or the Hugging Face hub. Interrupted, the
    same command goes on after the last whole shard.
    """
    _prepare("encode", study, results, data_folder, download)


@app.command()
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
    from harness.runs import State

    sweep, folder = _resolve(study, results)
    sweep = _with_resources(
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
    items = _run_all(sweep, folder, _items(sweep, folder), retry=retry, wait=wait)
    hint = " --retry" if any(item.now.state in (State.FAILED, State.CANCELLED) for item in items) else ""
    _tell_results(sweep, folder, _items(sweep, folder), items, f"launch {study}{hint}")


def _run_all(sweep: Sweep, study: Study, items: list[CellRun], *, wait: bool, **options: Any) -> list[CellRun]:
    """Run `harness.launch.launch` behind a view of these cells; exit once all is submitted to Slurm, without `wait`."""
    from harness.launch import launch as run_all
    from harness.views import LiveView, PlainView
    from sweeps.grid import warnings

    on_slurm = sweep.resources.executor == "slurm"
    for line in warnings(sweep):
        print(f"warning: {line}", file=sys.stderr)
    console = _console()
    view_type = LiveView if console.is_terminal else PlainView
    try:
        with view_type(console, items) as view:
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
    from harness.collect import collect as write_tables
    from harness.runs import State
    from harness.views import results_table

    rows = write_tables(study, everything)
    shown = [row for row in rows if owed is None or (row["cell"], f"{row['evaluation']}@{row['step']}") in owed]
    if shown:
        _console().print(results_table(sweep.title, shown))
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


@app.command()
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
    from harness import evaluate as work
    from harness.runs import State
    from harness.views import cost_line, evaluation_lines

    sweep, folder = _resolve(study, results)
    sweep = _with_resources(
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
    everything = _items(sweep, folder)  # with the sweep's own evaluations, which the tables put first
    sweep = work.with_evaluations(sweep, protocol, options)
    chosen = [_find_cell(everything, name, folder) for name in dict.fromkeys(cell)] if cell else everything
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


@app.command()
def status(
    study: StudyArgument,
    results: ResultsOption = RESULTS,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until nothing is queued or running.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 2.0,
) -> None:
    """Show the state of every cell, and group the failures by cause. Reads only; changes nothing.

    With --watch a live table in a terminal, a line for every change in a pipe; Ctrl-C ends the watching only.
    """
    from harness import views
    from harness.follow import watch as follow

    if watch and as_json:
        raise InputError("--watch and --json: allowed: one of them")
    sweep, folder = _resolve(study, results)
    items = _items(sweep, folder)
    if watch:
        try:
            follow(_console(), sweep.title, items, every)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    elif as_json:
        _print_json([views.status_row(item) for item in items])
    else:
        _console().print(views.status_table(sweep.title, [views.status_row(item) for item in items]))
    if not as_json:
        for trouble in views.troubles(items):
            print(trouble)
    _warn_of_silence(folder)


@app.command()
def cancel(
    study: StudyArgument,
    cell: Annotated[
        str | None, typer.Argument(help="Name of the cell, or the beginning of its id. Default: all.")
    ] = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Stop what is queued or running, evaluations too; a running cell writes a checkpoint first.

    `launch --retry` goes on with it, and `evaluate` with what it had begun.
    """
    from harness.cancel import cancel as stop
    from harness.evaluate import at_work

    sweep, folder = _resolve(study, results)
    items = _items(sweep, folder)
    chosen = [_find_cell(items, cell, folder)] if cell else items
    told = stop([*chosen, *at_work(chosen)], [*items, *at_work(items)])
    for line in told.problems:
        print(line, file=sys.stderr)
    print(f"{told.cells} cell{'s' * (told.cells != 1)} asked to stop")
    if told.problems:
        raise typer.Exit(1)


@app.command()
def logs(
    study: StudyArgument,
    cell: CellArgument,
    results: ResultsOption = RESULTS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more until the cell has ended.")] = False,
    evaluating: Annotated[bool, typer.Option("--evaluating", help="Of `evaluate` instead of `launch`.")] = False,
) -> None:
    """Print what a cell's jobs printed; with --follow also what is to come, waiting for a first line if need be."""
    from harness.evaluate import of_evaluating
    from harness.follow import follow_log

    sweep, folder = _resolve(study, results)
    item = _find_cell(_items(sweep, folder), cell, folder)
    item = of_evaluating(item) if evaluating else item
    if not follow:
        if not item.run.log.exists():
            raise InputError(f"{cell}: has no log yet (state: {item.now.state})")
        sys.stdout.write(item.run.log.read_text(encoding="utf-8", errors="replace"))
        return
    try:
        follow_log(item, _write_now, lambda line: print(line, file=sys.stderr))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def collect(study: StudyArgument, results: ResultsOption = RESULTS) -> None:
    """Write results.csv, nested.csv, curves.csv, attempts.csv and samples/*.png from the run folders."""
    from harness.collect import collect as write_tables

    sweep, folder = _resolve(study, results)
    rows = write_tables(folder, _items(sweep, folder))
    print(f"{len(rows)} rows in {folder.table('results.csv')}")


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="A sweep file, a study's name, or a folder of tables (results/paper).")],
    results: ResultsOption = RESULTS,
) -> None:
    """Draw the figures (PNG and SVG), fit the laws (fits.json) and write one self-contained report.html."""
    from harness.collect import collect as write_tables

    folder = Path(study)
    if not (folder.is_dir() and any((folder / name).exists() for name in ("published.csv", "results.csv"))):
        sweep, runs = _resolve(study, results)
        if not write_tables(runs, _items(sweep, runs)):
            raise InputError(f"{study}: no cell is evaluated yet; first: dit-harness launch {study}")
        folder = runs.folder
    from analysis.report import write_report

    written = write_report(folder)
    for line in written.summary:
        print(line)
    print(f"{len(written.paths)} files, all on one page: {written.paths[-1]}")


@app.command()
def export(
    study: StudyArgument,
    cell: CellArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file or folder to make; must not exist.")],
    format: Annotated[
        str, typer.Option(help="official (a .pt file), diffusers (a pipeline folder), or npz (its samples).")
    ] = "official",
    raw: Annotated[bool, typer.Option("--raw", help="The plain weights instead of the averaged ones (EMA).")] = False,
    step: Annotated[int | None, typer.Option(min=1, help="A kept step. Default: the last.")] = None,
    vae: Annotated[Path | None, typer.Option(help="diffusers: another folder of its AutoencoderKL.")] = None,
    evaluation: Annotated[
        str | None, typer.Option(help="npz: beginning of the evaluation's id, where there are several.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="npz: the first so many. Default: all.")] = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Write a trained cell's weights as an official DiT checkpoint or a diffusers DiTPipeline folder, or its samples.

    npz: the generated images as evaluators of the ADM suite take them, arr_0 uint8 (N, H, W, C), and arr_1, labels.

    Weights: only of adaln-zero with labels, the others exist in neither format. Two things to know about the diffusers
    folder. Its transformer spaces the timestep frequencies differently and so gives slightly other outputs, until
    harness.model.interchange.match_timesteps is called on it. And DiTPipeline drops the learned variance and fixes the
    null class at 1000: a model of other than 1000 classes must be called with guidance_scale <= 1.
    """
    from harness.exchange import SAMPLES_FORMAT, export_samples
    from harness.exchange import export as write
    from harness.runs import Shared

    sweep, folder = _resolve(study, results)
    item = _find_cell(_items(sweep, folder), cell, folder)
    if format == SAMPLES_FORMAT:
        if raw or vae is not None:
            raise InputError(f"{'--raw' if raw else '--vae'}: is about weights; leave it out with --format npz")
        told = export_samples(item.run, item.cell, output, step=step, evaluation=evaluation, count=samples)
        print(f"{item.name}: {told}, in {output}")
        return
    if evaluation is not None or samples is not None:
        raise InputError(f"{'--samples' if samples is not None else '--evaluation'}: allowed with --format npz")
    shared = Shared(results)
    note = write(
        item.run, item.cell, output, format, ema=not raw, step=step, vae=vae, shared=shared, sweep=str(sweep.path)
    )
    print(f"{item.name}: {'plain' if raw else 'averaged'} weights in {output}")
    if note:
        print(f"note: {note}", file=sys.stderr)


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A .pt file, or a folder of DiTTransformer2DModel or DiTPipeline.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to make; must not exist.")],
    heads: Annotated[
        int | None, typer.Option(min=1, help="Attention heads; an official file of no published size needs it.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Of a training checkpoint the plain weights, not the averaged ones.")
    ] = False,
) -> None:
    """Read an official DiT checkpoint or a diffusers DiT into a weights file of this harness.

    Nothing in the file is executed: a pickle that carries code is refused. Weights that do not fit are refused too,
    with every missing, unknown and misshapen tensor named. The result holds the weights (under model. and ema., as the
    weights files of runs do) and, as metadata, the model's shape. It belongs to no study: which data, batch and steps
    made it is not known here.
    """
    from harness.exchange import import_weights

    found = import_weights(source, output, heads=heads, ema=not raw)
    model, shape = found.model, found.shape
    print(
        f"{output}: depth {model.depth}, width {model.width}, heads {model.heads}, patch_size {model.patch_size}, "
        f"input {shape.size}x{shape.size}x{shape.channels}, {shape.classes} classes"
    )


def main() -> None:
    """Run the command; bad input and missing permission are one line and exit code 2, a full disk is one and 1."""
    try:
        app()
    except InputError as error:
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        from harness.files import is_full

        if is_full(error):
            print(f"error: {error}; what runs goes on; make room, then the same command", file=sys.stderr)
            sys.exit(1)
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(2)
        raise


if __name__ == "__main__":
    main()
