"""Measure, and write docs/performance.md and performance.json beside it: `python -m tests.bench [PART ...]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.bench import commands, distance, host, training
from tests.bench.pairs import ROUNDS, Row

DOCS = Path(__file__).parents[2] / "docs"

#: The parts of the bench by name.
PARTS: dict[str, Callable[[], list[Row]]] = {
    "host": host.rows,
    "training": lambda: training.rows(os.cpu_count() or 1),
    "distance": lambda: [distance.frechet_row(dims) for dims in (64, 2048)],
}


def machine() -> str:
    """The machine in words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores ({platform.machine()}, {capability}){gpu}, torch {torch.__version__}"


def main() -> None:
    """Print the tables, and write them with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join([*PARTS, 'commands'])}; by default all")
    parser.add_argument("--write", action="store_true", help="write docs/performance.json, too")
    given = parser.parse_args()
    wanted = given.parts or [*PARTS, "commands"]
    if odd := set(wanted) - {*PARTS, "commands"}:
        parser.error(f"{', '.join(sorted(odd))}: allowed: {', '.join([*PARTS, 'commands'])}")
    console = Console(width=170)
    found: dict[str, Any] = {"machine": machine(), "command": f"make bench ({ROUNDS} pairs a row)", "rows": []}
    for name in wanted:
        if name == "commands":
            timed = commands.thousand_cells()
            table = Table("command", "wall time", title="A study of 1,000 cells", title_justify="left")
            found["commands"] = timed
            for line in timed:
                table.add_row(*line)
        else:
            table = Table("what", "A", "B", "A", "B", "B / A, median (min to max)", title=name, title_justify="left")
            for row in PARTS[name]():
                found["rows"].append(row._asdict())
                table.add_row(*row.cells)
        console.print(table)
    if given.write:
        (DOCS / "performance.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
