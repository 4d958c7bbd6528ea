"""Measure, and write docs/performance.md and performance.json beside it: `python -m tests.bench [PART ...]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.bench import besides, commands, distance, gpu, host, ranks, sampling, start, training
from tests.bench.pairs import ROUNDS, Row

DOCS = Path(__file__).parents[2] / "docs"

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


def machine() -> str:
    """The machine in words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{os.cpu_count()} cores ({platform.machine()}, {capability}){gpu}, torch {torch.__version__}"


def main() -> None:
    """Print the tables, and write them with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join([*PARTS, 'commands'])}; by default all")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and .json, too")
    given = parser.parse_args()
    wanted = given.parts or [*PARTS, "commands"]
    if odd := set(wanted) - {*PARTS, "commands"}:
        parser.error(f"{', '.join(sorted(odd))}: allowed: {', '.join([*PARTS, 'commands'])}")
    console = Console(width=170)
    found: dict[str, Any] = {"machine": machine(), "command": f"make bench ({ROUNDS} pairs a row)", "rows": []}
    for name in wanted:
        if name == "commands":
            timed = commands.large_studies() + commands.thousand_cells()
            table = Table("command", "wall time", title="Commands on large studies", title_justify="left")
            found["commands"] = timed
            for line in timed:
                table.add_row(*line)
        else:
            table = Table("what", "A", "B", "A", "B", "B / A, median (min to max)", title=name, title_justify="left")
            for row in PARTS[name]():
                found["rows"].append(row._asdict())
                table.add_row(*row.cells)
        console.print(table if table.row_count else f"{name}: not measured: no GPU")
        if name == "sampling":
            found["fid_50k_s"] = sampling.fid_50k_seconds()
            console.print(fid_line(found["fid_50k_s"]))
    if given.write:
        (DOCS / "performance.json").write_text(json.dumps(found, indent=1) + "\n")
        (DOCS / "performance.md").write_text(page(found))


def fid_line(seconds: float | None) -> str:
    """How long the samples of FID-50K of S/2 take."""
    told = "not measured, it takes a GPU" if seconds is None else f"{seconds / 60:.1f} minutes on one GPU"
    return f"The samples of FID-50K of S/2 (250 steps, no guidance), without decoding and scoring: {told}."


def page(found: Mapping[str, Any]) -> str:
    """docs/performance.md, from what is in performance.json."""
    lines = [
        "# Performance",
        "",
        f"Measured by `{found['command']}` on {found['machine']}.",
        "A and B are taken in turn in one run, A B A B; B / A is the median of the pairs' ratios (least to most). A, B",
        "themselves are of that machine, in milliseconds. [performance.json](performance.json) holds the same.",
        "",
        "| what | A | B | A, ms | B, ms | B / A |",
        "|---|---|---|---|---|---|",
    ]
    for row in (Row(**each) for each in found["rows"]):
        spread = f"{row.median:.2f} ({row.least:.2f} to {row.most:.2f})"
        lines.append(f"| {row.what} | {row.name_a} | {row.name_b} | {row.a:.4g} | {row.b:.4g} | {spread} |")
    if "fid_50k_s" in found:
        lines += ["", fid_line(found["fid_50k_s"])]
    if "commands" in found:
        lines += [
            "",
            "Commands on large studies, made up; Slurm's commands are stand-ins:",
            "",
            "| command | wall time |",
            "|---|---|",
        ]
        lines += [f"| {name} | {told} |" for name, told in found["commands"]]
    if not torch.cuda.is_available():
        lines += ["", "Not measured: anything on a GPU."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
