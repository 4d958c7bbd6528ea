"""Numbers, durations and settings as words."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.launch.levers import Lever
    from harness.launch.remeasure import Cost
    from harness.runs.cellruns import CellRun
    from harness.spec.evaluation import Evaluation
    from sweeps.grid import Sweep


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 45 s, 3.2 min, 1.5 h, 2.1 d, 1.3 years."""
    if seconds is None:
        return ""
    return _in_largest(seconds, years=365.25 * 86400, d=86400, h=3600, min=60) or f"{seconds:.0f} s"


def size_of(count: int | None) -> str:
    """Bytes as people say them: 512 B, 84.0 GB, 1.2 TB; "unknown" where they cannot be known."""
    if count is None:
        return "unknown"
    return _in_largest(count, TB=1e12, GB=1e9, MB=1e6, kB=1e3) or f"{count} B"


def _in_largest(value: float, **units: float) -> str:
    """A value in the largest unit that is not above it (units fall in size); empty if all are."""
    return next((f"{value / size:.1f} {unit}" for unit, size in units.items() if value >= size), "")


def number(value: float | None) -> str:
    """A number to four significant digits; empty when not measured."""
    return "" if value is None else f"{value:.4g}"


def rate(value: float) -> str:
    """A speed, whole unless it is small: 1234, 12, 0.4."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def reflowed(text: str) -> str:
    """A text whose paragraphs are one line each, to be broken by the terminal; one after a backspace is kept."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(part if part.startswith("\b") else " ".join(part.split()) for part in paragraphs)


def wrapped(line: str) -> str:
    """A sentence in lines that fit the terminal, the second and later ones indented further than the first."""
    width = min(shutil.get_terminal_size().columns, 110)
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def state_line(item: CellRun) -> str:
    """A cell, its state, and the message that explains it."""
    return f"{item.name}: {item.now.state}{f': {item.now.message}' if item.now.message else ''}"


_LABELS = {"uniform": "classes drawn evenly", "balanced": "classes in turn", "training": "classes as in training"}


def evaluation_lines(sweep: Sweep, when: str | None = None) -> list[str]:
    """One line for each evaluation; sampling seeds share a line. `when` replaces the training steps."""
    if not sweep.evaluations:
        return ["no [[evaluation]]: cells are trained and their losses recorded; nothing is sampled or scored"]
    from harness.spec.evaluation import extractor_name

    sources = sweep.grid.sources
    objectives = {cell.diffusion.objective: cell.diffusion.samplers for _, cell in sweep.cells()}
    lines: dict[tuple[str, str], list[int]] = {}
    for origin, evaluation in zip(sweep.origins, sweep.evaluations, strict=True):
        extractors = dict.fromkeys(extractor_name(evaluation.resolved(data).extractor) for data in sources)
        at = f"after {', '.join(f'{step:,}' for step in evaluation.at)} steps and at the end" if evaluation.at else ""
        sampling = sampling_text(evaluation, labelled=any(data.labels for data in sources))
        text = f"{sampling}, features of {' or '.join(extractors)}, reference {evaluation.reference}"
        head = f"{origin.key} (protocol {origin.protocol.name})" if origin.protocol else origin.key
        if len(objectives) > 1:
            whose = [name for name, samplers in objectives.items() if evaluation.sampler in samplers]
            head += f", of {' and '.join(whose)}"
        lines.setdefault((f"{head}: {text}", when or at or "at the end"), []).append(evaluation.seed)
    return [
        f"{text}, sampling seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {when}"
        for (text, when), seeds in lines.items()
    ]


def parts_line(totals: Mapping[str, Any]) -> str:
    """What the GPU hours of a plan are for."""
    names = {"train": "training", "encoding": "encoding the images once"}
    parts = {part: totals[f"{part}_gmacs"] for part in ("train", "sampling", "decoding", "scoring", "encoding")}
    share = totals["gpu_hours"] / sum(parts.values())
    texts = [f"{names.get(part, part)} {number(gmacs * share)}" for part, gmacs in parts.items() if gmacs]
    return f"GPU hours: {', '.join(texts)}"


#: A cell that takes this share of the wall time decides it.
_MOST_OF_ALL = 0.7


def first_lines(seconds: Mapping[str, float]) -> list[str]:
    """What is trained before the cells, in one line; none where nothing is."""
    parts = [f"{what} (about {duration(max(1, each))})" for what, each in seconds.items()]
    return [f"trained first, once for all studies, and not in the table: {', '.join(parts)}"] if parts else []


def lever_lines(levers: Sequence[Lever]) -> list[str]:
    """How to pay less, one line each."""
    lines = []
    for lever in levers:
        disk = f" and {size_of(lever.disk)} of disk" if lever.disk else ""
        lines.append(f"  {number(lever.hours)} GPU hours{disk} less: {lever.change}; {lever.price}")
    return ["to pay less:", *lines] if lines else []


def longest_line(rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any]) -> str:
    """That one cell decides the wall time, where it does; empty elsewhere."""
    left = [row for row in rows if row["state"] != "done"]
    longest = max(left, key=lambda row: row["estimated_s"], default=None)
    if longest is None or len(left) < 2 or longest["estimated_s"] < _MOST_OF_ALL * total["estimated_s"]:
        return ""
    on = f"{longest['ranks']} GPUs" if longest["ranks"] > 1 else "one GPU"
    return (
        f"{longest['name']} alone takes {duration(longest['estimated_s'])} on {on}: more ranks for it "
        "([[resources.for]]) or for all (--ranks) shorten the study; what ranks lose by waiting is left out"
    )


def cost_line(cost: Cost, cells: int) -> str:
    """What `evaluate` will do, and its cost."""
    many = "s" * (cells != 1)
    if cost.done == cost.total:
        return f"{cost.total} evaluations of {cells} cell{many}, all of them done already"
    basis = "by the records of the study" if cost.measured else "assumed"
    return (
        f"{'at most ' * cost.at_most}{cost.total} evaluations of {cells} cell{many}, {cost.done} of them done already; "
        f"sampling {number(cost.sampling_gmacs)} GMACs, about {duration(cost.seconds)} on one slot ({basis})"
    )


def sampling_text(evaluation: Evaluation, *, labelled: bool = True) -> str:
    """The sampling in words, without the seed."""
    guidance = "no guidance" if evaluation.guidance == 1 else f"guidance {evaluation.guidance:g}"
    if evaluation.guidance != 1 and evaluation.guidance_channels != "as-published":
        guidance += f" on {evaluation.guidance_channels} channels"
    return (
        f"{evaluation.samples:,} samples, {evaluation.sampler.upper()} {evaluation.sampling_steps} steps, {guidance}, "
        f"{_LABELS[evaluation.labels] + ', ' if labelled else ''}{'averaged' if evaluation.ema else 'plain'} weights"
    )
