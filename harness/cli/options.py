"""Options and arguments that several verbs share, and what every verb does first.

An option about resources or evaluations is a field of a spec, which gives its name, type, bounds, allowed names and
help. The specs are imported only when the options of a verb are needed: the list of verbs then takes half the time.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from harness.cli import streams
from harness.errors import InputError
from harness.files import at_home

if TYPE_CHECKING:
    from rich.console import Console

    from harness.cli.fitted import FittedTable
    from harness.runs.cellruns import CellRun
    from harness.runs.study import Study
    from harness.spec.fields import FieldFacts
    from sweeps.grid import Sweep

VerbT = TypeVar("VerbT", bound=Callable[..., None])


def home(path: Any) -> Any:
    """A path, or None, in which `~` is the user's home; shells leave `--results=~/x` and what is quoted alone."""
    return path if path is None else type(path)(at_home(str(path)))


StudyArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", callback=home, help="A sweep file (.toml), or the name of a study.")
]

CellArgument = Annotated[str, typer.Argument(help="Name of the cell, or the beginning of its id.")]

CellsOption = Annotated[
    list[str] | None,
    typer.Option("--cell", help="Only cells of this name or pattern (XL-*), or id; again for more. Default: all."),
]

ResultsOption = Annotated[
    Path,
    typer.Option("--results", envvar="DIT_HARNESS_RESULTS", callback=home, help="The folder that holds the studies."),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

WideOption = Annotated[bool, typer.Option("--wide", help="Show all columns, however narrow the terminal is.")]

WaitOption = Annotated[bool, typer.Option("--wait", help="Follow until all jobs have ended.", rich_help_panel="Slurm")]

RESULTS = Path("results")

#: Panel of the options that are fields of an evaluation.
EVALUATION = "Evaluation (several values with commas between: their product)"

#: Options whose name differs from that of their field.
_FLAGS = {"data_download": "--download"}


def takes_fields(*, resources: tuple[str, ...] = (), evaluation: tuple[str, ...] = ()) -> Callable[[VerbT], VerbT]:
    """Give a verb an option for each of these fields of `Resources` and `Evaluation`; the latter take lists.

    The verb receives them as `**given`: the field's name to the value given, or None.
    """

    def mark(verb: VerbT) -> VerbT:
        signature = inspect.signature(verb, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        vars(verb).update(__signature__=signature.replace(parameters=own), fields=(resources, evaluation))
        return verb

    return mark


class Verbs(TyperGroup):
    """The verbs; a verb gets its options of `takes_fields` when it is called."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb. A closed pipe is for `harness.cli.main` to end with; typer would take it for a failed cell."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            streams.silence(sys.stdout, sys.stderr)
            raise typer.Exit(streams.BROKEN_PIPE) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The name of the verb, its command, and the other arguments."""
        command: Any
        name, command, others = super().resolve_command(ctx, args)
        verb = inspect.unwrap(command.callback)
        if not hasattr(verb, "fields"):
            return name, command, others
        from harness.spec.evaluation import Evaluation
        from harness.spec.fields import fields_of
        from harness.spec.resources import Resources

        resources, evaluation = vars(verb).pop("fields")
        options = [_option(fields_of(Evaluation)[field], several=True) for field in evaluation]
        options += [_option(fields_of(Resources)[field]) for field in resources]
        signature = inspect.signature(verb)
        vars(verb).update(__signature__=signature.replace(parameters=[*signature.parameters.values(), *options]))
        app = typer.Typer(add_completion=False, rich_markup_mode=self.rich_markup_mode)
        app.command(name, help=command.help)(verb)
        return name, typer.main.get_command(app), others


def _option(field: FieldFacts, *, several: bool = False) -> inspect.Parameter:
    """The parameter from which typer makes the option of a field. Bounds are only shown; the spec checks them."""
    kind = field.types[0]
    panel = str(field.marks["executor"]).capitalize() if "executor" in field.marks else None
    metavar = "<path>" if "format" in field.marks else None
    if several and kind is not bool:
        kind, panel = str, EVALUATION
    elif field.bounds:
        metavar = f"<{kind.__name__} range> [{field.bounds}]"
    flag = f"--{field.name.replace('_', '-')}"
    names = f"{flag}/--no-{flag[2:]}" if kind is bool and field.default else _FLAGS.get(field.name, flag)
    text = re.sub(r"`(\w+)`", lambda other: f"--{other[1].replace('_', '-')}", field.help)
    allowed = f" (allowed: {', '.join(field.allowed)})" if field.allowed else ""
    text = f"{text[0].upper()}{text[1:]}{allowed}."
    option = typer.Option(None, names, metavar=metavar, help=text, rich_help_panel=panel)
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind | None)


def resolve(argument: str, results: Path, given: Mapping[str, Any] | None = None) -> tuple[Sweep, Study]:
    """The sweep and the study that an argument names; given resources replace the sweep's own, for every cell."""
    from harness.launch.executor import Schedulers
    from harness.runs.study import Study
    from sweeps.grid import load_sweep, study_name

    name = study_name(argument)
    study = Study(results, name, Schedulers(name))
    study.check_schema()
    path: Path | None = Path(argument)
    if not argument.endswith(".toml"):
        path = next((path for path in (study.sweep_file, Path("sweeps") / f"{name}.toml") if path.exists()), None)
    if path is None:
        raise InputError(
            f"{argument}: no study of this name in {results}, and no sweeps/{name}.toml; give a sweep file"
        )
    from harness.spec.resources import Resources

    asked = {key: value for key, value in (given or {}).items() if key in Resources.model_fields and value is not None}
    sweep = load_sweep(path, name).with_resources(asked)
    if sweep.resources.executor == "local":
        from harness.spec.fields import fields_of

        for field in fields_of(Resources).values():
            if field.name in asked and field.marks.get("executor") == "slurm":
                raise InputError(
                    f"--{field.name.replace('_', '-')}: it is for Slurm, and this sweep runs here; "
                    "allowed with: --executor slurm"
                )
    return sweep, study


def items_of(sweep: Sweep, study: Study) -> list[CellRun]:
    """The cells of the sweep with their runs and states."""
    from harness.runs.cellruns import cell_runs

    return cell_runs(sweep, study)


def find_cell(items: list[CellRun], cell: str, study: Study) -> CellRun:
    """The one cell of this name, or whose id begins so.

    Raises:
        InputError: there is none, or several.
    """
    found = [item for item in items if item.name == cell or item.cell.id.startswith(cell)]
    if len(found) != 1:
        problem = "no cell" if not found else "several cells"
        names = ", ".join(item.name for item in items)
        raise InputError(f"{cell}: {problem} of this name in {study.name}; allowed: {names}")
    return found[0]


def matching(items: list[CellRun], patterns: list[str], study: Study) -> list[CellRun]:
    """The cells whose names match one of the patterns (`XL-*`), or whose ids begin so, in their order.

    Raises:
        InputError: a pattern matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        mine = {i.cell.id for i in items if fnmatchcase(i.name, pattern) or (pattern and i.cell.id.startswith(pattern))}
        if not mine:
            names = ", ".join(item.name for item in items)
            raise InputError(f"--cell {pattern}: matches no cell of {study.name}; allowed: {names}")
        found |= mine
    return [item for item in items if item.cell.id in found]


def print_warnings(sweep: Sweep) -> None:
    """Print warnings about the sweep: what is allowed but should be known before it starts."""
    from sweeps.grid import warnings

    for line in warnings(sweep):
        print(f"warning: {line}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN is refused."""
    print(json.dumps(value, indent=1, allow_nan=False))


def print_table(table: FittedTable, *, wide: bool) -> None:
    """Print a table, with all of its columns or with those that fit."""
    from dataclasses import replace

    console().print(replace(table, wide=wide), crop=False)


def console(*, stderr: bool = False) -> Console:
    """Where tables and bars are drawn."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # as all that prints does: rich itself would end the process with exit code 1

    # a pipe has no width; tables should not be squeezed into 80 columns there, unless the user says so
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    # titles, names and messages are the user's: what looks like markup in them is not
    return Terminal(width=width, stderr=stderr, markup=False, emoji=False, highlight=False)
