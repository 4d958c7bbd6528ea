"""Measure, and with --write put it into docs/performance.md and .json: `python -m tests.bench [PART ...]`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.bench import besides, commands, distance, gpu, host, page, ranks, sampling, start, training
from tests.bench.pairs import Row

#: The parts of the bench by name.
PARTS: dict[str, Callable[[], list[Row]]] = {
    "host": host.rows,
    "training": lambda: training.rows(os.cpu_count() or 1),
    "besides": lambda: besides.rows(os.cpu_count() or 1),
    "gpu": gpu.rows,
    "ranks": ranks.rows,
    "start": start.rows,
    "sampling": lambda: sampling.rows(os.cpu_count() or 1),
    "distance": lambda: [distance.frechet_row(dims) for dims in (64, 2048)],
}

ORDER = [*PARTS, "commands"]


def main() -> None:
    """Print the tables, and write each with --write when it is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(ORDER)}; by default all")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and .json, too")
    given = parser.parse_args()
    wanted = given.parts or ORDER
    if odd := set(wanted) - {*ORDER}:
        parser.error(f"{', '.join(sorted(odd))}: allowed: {', '.join(ORDER)}")
    console = Console(width=170)
    for name in wanted:
        found, table = measured(name)
        console.print(table if table.row_count else f"{name}: not measured: no GPU")
        for line in found.get("notes", []):
            console.print(line)
        if given.write and table.row_count:
            page.write(name, found, ORDER)


def measured(name: str) -> tuple[dict[str, Any], Table]:
    """What a part measures (see `page.write`), and its table."""
    if name == "commands":
        timed = commands.large_studies() + commands.thousand_cells()
        table = Table("command", "wall time", title="Commands on large studies, made up", title_justify="left")
        for line in timed:
            table.add_row(*line)
        return {"commands": timed, "notes": ["", "The studies are made up, and Slurm's commands are stand-ins."]}, table
    table = Table("what", "A", "B", "A", "B", "B / A, median (min to max)", title=name, title_justify="left")
    torch.set_num_threads(os.cpu_count() or 1)  # whatever the part before has set
    rows = PARTS[name]()
    for row in rows:
        table.add_row(*row.cells)
    found: dict[str, Any] = {"rows": [row._asdict() for row in rows]}
    if name == "besides":
        found["notes"] = ["", f"{besides.ROUNDS} pairs a row."]
    if name == "sampling":
        found["notes"] = ["", fid_line(sampling.fid_50k_seconds())]
    return found, table


def fid_line(seconds: float | None) -> str:
    """How long the samples of FID-50K of S/2 take."""
    told = "not measured, it takes a GPU" if seconds is None else f"{seconds / 60:.1f} minutes on one GPU"
    return f"The samples of FID-50K of S/2 (250 steps, no guidance), without decoding and scoring: {told}."


if __name__ == "__main__":
    main()
