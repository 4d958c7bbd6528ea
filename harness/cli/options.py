"""Options and arguments that several verbs share, and what every verb does first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import InputError

if TYPE_CHECKING:
    from harness.runs.cellruns import CellRun
    from harness.runs.study import Study
    from sweeps.grid import Sweep


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


def resolve(argument: str, results: Path) -> tuple[Sweep, Study]:
    """The sweep and the study an argument names."""
    from harness.launch.slurm_commands import Queue
    from harness.runs.study import Study
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


def items_of(sweep: Sweep, study: Study) -> list[CellRun]:
    """The cells of the sweep with their runs and states."""
    from harness.runs.cellruns import cell_runs

    return cell_runs(sweep, study)


def find_cell(items: list[CellRun], cell: str, study: Study) -> CellRun:
    """The one cell of this name, or whose id begins so."""
    found = [item for item in items if item.name == cell or item.cell.id.startswith(cell)]
    if len(found) != 1:
        problem = "no cell" if not found else "several cells"
        names = ", ".join(item.name for item in items)
        raise InputError(f"{cell}: {problem} of this name in {study.name}; allowed: {names}")
    return found[0]


def with_resources(sweep: Sweep, **asked: Any) -> Sweep:
    """The sweep with the resources that the command line asks for in their place, validated as in the file."""
    from dataclasses import replace

    from harness.spec.identity import validated
    from harness.spec.resources import Resources

    asked = {key: value for key, value in asked.items() if value is not None and value is not False}
    given = {key: str(value) if isinstance(value, Path) else value for key, value in asked.items()}
    fields = {**sweep.resources.model_dump(), **given}
    return replace(sweep, resources=validated(Resources, fields, "command line, resources"))


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN is refused."""
    print(json.dumps(value, indent=1, allow_nan=False))


def console() -> Any:
    """Where tables and bars are drawn."""
    from rich.console import Console

    # a pipe has no width; tables should not be squeezed into 80 columns there
    return Console(width=None if sys.stdout.isatty() else 200)
