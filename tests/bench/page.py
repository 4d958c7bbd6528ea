"""docs/performance.md and performance.json: every part of the bench as it was last measured, where and when."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.bench.pairs import ROUNDS, Row

DOCS = Path(__file__).parents[2] / "docs"

_OPENING = f"""# Performance

`make bench` measures all parts; `python -m tests.bench --write PART` measures one anew and keeps the others, with
nothing else running. A and B are taken in turn in one run, A B A B; B / A is the median of the ratios of {ROUNDS} pairs
(least to most), unless a part says otherwise. A and B themselves, in milliseconds, are of the machine named.
[performance.json](performance.json) holds the same.
"""


def machine() -> str:
    """The machine in words."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    capability, flags = torch.backends.cpu.get_cpu_capability(), Path("/proc/cpuinfo")
    known = flags.exists() and platform.machine() == "x86_64"
    bf16 = ", bf16 emulated" if known and "bf16" not in flags.read_text() else ""
    return f"{os.cpu_count()} cores ({platform.machine()}, {capability}{bf16}){gpu}, torch {torch.__version__}"


def write(name: str, found: Mapping[str, Any], order: Sequence[str], folder: Path = DOCS) -> None:
    """Put what a part has measured into both files, in the place of what it measured before.

    Args:
        name: of the part.
        found: "rows" of pairs as dicts, or "commands", pairs of texts; "notes", lines of text.
        order: the names of all parts.
        folder: where the files are.
    """
    path = folder / "performance.json"
    parts = json.loads(path.read_text()) if path.exists() else {}
    parts[name] = {"machine": machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}", **found}
    parts = {part: parts[part] for part in order if part in parts}
    path.write_text(json.dumps(parts, indent=1) + "\n")
    (folder / "performance.md").write_text(page(parts, order))


def page(parts: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> str:
    """The page, from what is in the JSON file."""
    lines = [_OPENING]
    for name, part in parts.items():
        lines += [
            f"## {name.capitalize()}",
            "",
            f"`python -m tests.bench {name}`, {part['date']}, {part['machine']}.",
            "",
        ]
        if part.get("rows"):
            lines += ["| what | A | B | A, ms | B, ms | B / A |", "|---|---|---|---|---|---|"]
        for row in (Row(**each) for each in part.get("rows", [])):
            spread = f"{row.median:.2f} ({row.least:.2f} to {row.most:.2f})"
            lines.append(f"| {row.what} | {row.name_a} | {row.name_b} | {row.a:.4g} | {row.b:.4g} | {spread} |")
        if part.get("commands"):
            lines += ["| command | wall time |", "|---|---|"]
            lines += [f"| {command} | {told} |" for command, told in part["commands"]]
        lines += [*part.get("notes", []), ""]
    if missing := [name for name in order if name not in parts]:
        lines.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n".join(lines).rstrip() + "\n"
