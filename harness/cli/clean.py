"""The verb clean."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options as cli
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.launch.clean import Leftovers

#: Most cells that are named before the question.
_NAMED = 20


def clean(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="[STUDY]", callback=cli.home, help="Only cells that this study launched. Default: of all studies."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without a question.")] = False,
    results: cli.ResultsOption = cli.RESULTS,
) -> None:
    """Remove the runs of cells that no study lists any more, after saying how many and how much disk.

    A study lists the cells of its last launch. So a cell is left over when its sweep was made smaller and launched
    again, or when the folder of its study was removed; the latents and autoencoders that only such cells read go with
    them. What a job works on stays, and so does every table.
    """
    from harness.launch.clean import leftovers, remove
    from sweeps.grid import load_sweep, study_name

    name = None if study is None else study_name(study)
    sweep = load_sweep(Path(study)) if study is not None and study.endswith(".toml") else None
    found = leftovers(results, name, [cell.id for _, cell in sweep.cells()] if sweep else [])
    if name is not None and sweep is None and not (results / name).is_dir() and not (found.runs or found.torn):
        raise InputError(f"{study}: no study of this name in {results}, and no run that it has left there")
    _describe(found)
    count = sum(not entry.busy for entry in found.runs)
    if not count and not found.torn:
        where = f"{results}: " if name is None else f"{name}: "
        print(f"{where}nothing to remove: a study lists every cell{', but those at work' if found.runs else ''}")
        return
    if not yes and not _agreed():
        print("nothing was removed")
        return
    removed = remove(found, results)
    for line in removed.left:
        print(f"left alone: {line}", file=sys.stderr)
    print(f"removed {_cells(removed.cells)}")


def _cells(count: int) -> str:
    return f"{count} cell{'s' * (count != 1)}"


def _describe(found: Leftovers) -> None:
    """Say what would go, the largest first, and what is left alone."""
    from harness.cli.words import size_of
    from harness.launch.clean import size_of_folder

    going = sorted((entry for entry in found.runs if not entry.busy), key=lambda entry: -entry.size)
    for entry in going[:_NAMED]:
        print(f"{entry.label}: {size_of(entry.size)}, {entry.run.folder}")
    if len(going) > _NAMED:
        print(f"... and {len(going) - _NAMED} smaller ones")
    for folder in (*found.shared, *found.torn):
        print(f"{folder.name}: {size_of(size_of_folder(folder))}, {folder}")
    for entry in found.runs:
        if entry.busy:
            print(f"left alone: {entry.label}: {entry.busy} has it", file=sys.stderr)
    if going or found.torn:
        print(f"{_cells(len(going))} that no study lists, {size_of(found.size)} in all")


def _agreed() -> bool:
    """Ask.

    Raises:
        InputError: nobody can answer.
    """
    try:
        return typer.confirm("Remove them?")
    except typer.Abort:
        raise InputError("nobody has answered, nothing was removed; --yes removes without a question") from None
