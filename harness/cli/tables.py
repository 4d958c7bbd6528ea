"""How plans, states and launches look in a terminal."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from rich.table import Table

from harness.cli.words import Row, duration, gpu_hours_text, latents_text, number, size_of
from harness.runs import triage
from harness.runs.attempts import EVALUATING, Attempt
from harness.runs.cellruns import CellRun
from harness.runs.columns import PROTOCOL_COLUMNS, metric_name
from harness.runs.state import State

_COLOURS = {
    State.DONE: "green",
    State.RUNNING: "cyan",
    State.QUEUED: "cyan",
    State.PARTIAL: "yellow",
    State.INTERRUPTED: "yellow",
    State.FAILED: "red",
    State.CANCELLED: "yellow",
    State.MISSING: "dim",
}

#: All states, those where something happens first.
_LIVELY = (
    State.RUNNING,
    State.FAILED,
    State.INTERRUPTED,
    State.QUEUED,
    State.PARTIAL,
    State.CANCELLED,
    State.DONE,
    State.MISSING,
)

#: States that a failed or lost attempt leaves behind.
_TROUBLED = (State.FAILED, State.INTERRUPTED, State.PARTIAL)


def _table(title: str, columns: list[tuple[str, bool]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", pad_edge=False)
    for name, numeric in columns:
        table.add_column(
            name, justify="right" if numeric else "left", overflow="fold", no_wrap=not numeric and name == "cell"
        )
    return table


def state_text(state: str) -> str:
    """A state in its colour."""
    colour = _COLOURS[State(state)]
    return f"[{colour}]{state}[/{colour}]"


def plan_table(title: str, rows: list[Row], totals: Row) -> Table:
    """The grid with its prices, and the totals."""
    table = _table(
        title,
        [
            ("cell", False),
            ("id", False),
            ("block", False),
            ("depth", True),
            ("width", True),
            ("heads", True),
            ("patch", True),
            ("tokens", True),
            ("params (M)", True),
            ("GMACs", True),
            ("train GMACs", True),
            ("sampling GMACs", True),
            ("GPU hours", True),
            ("est. time", True),
            ("state", False),
        ],
    )
    for row in rows:
        table.add_row(
            row["name"],
            row["id"],
            row["block"],
            *(str(row[k]) for k in ("depth", "width", "heads", "patch_size", "tokens")),
            *(number(row[k]) for k in ("params_m", "gmacs", "train_gmacs", "sampling_gmacs", "gpu_hours")),
            duration(row["estimated_s"]),
            state_text(row["state"]),
        )
    table.caption = (
        f"{totals['cells']} cell{'s' * (totals['cells'] != 1)}; training {number(totals['train_gmacs'])} GMACs, "
        f"sampling {number(totals['sampling_gmacs'])} GMACs; what is not done takes about "
        f"{duration(totals['estimated_s'])} on {totals['slots']} slots of this machine. "
        "GMACs: 1e9 multiply-adds of one forward pass of one image (the paper's Gflops).\n"
        f"{gpu_hours_text(totals['gpu_hours'])} at {number(totals['tflops'])} TFLOP/s a GPU ({totals['throughput']}"
        f"{'; --tflops N to state another' if totals['throughput'] == 'assumed' else ''}). Disk: weights "
        f"{size_of(totals['weights_bytes'])}, samples {size_of(totals['samples_bytes'])}, states while training "
        f"{size_of(totals['states_bytes'])}{latents_text(totals)}."
    )
    table.caption_justify = "left"
    return table


def status_row(item: CellRun) -> Row:
    """What `status` tells of a cell."""
    state, attempt = item.now, item.now.attempt
    progress = state.progress or {}
    return {
        "id": item.cell.id,
        "name": item.name,
        "state": state.state.value,
        "stage": progress.get("stage"),
        "done": progress.get("done"),
        "total": progress.get("total"),
        "loss": progress.get("loss"),
        "images_per_s": progress.get("images_per_s"),
        "seconds_left": progress.get("seconds_left"),
        "attempt": attempt.number if attempt else None,
        "host": (attempt.started or {}).get("host") if attempt else None,
        "node": _node(attempt) if attempt else None,
        "cause": triage.cause_of(attempt) if attempt and state.state in _TROUBLED else None,
        "message": "; ".join(part for part in (state.message, _measuring(item)) if part),
    }


def _measuring(item: CellRun) -> str:
    """That `evaluate` works on the cell's kept weights, and how far it is."""
    run = item.run.on(EVALUATING)
    if run.live() is None:
        return ""
    told = run.progress()
    return f"evaluating: {told['stage']} {told['done']}/{told['total']}" if told else "evaluating"


def _node(attempt: Attempt) -> str | None:
    """Where the job runs or ran: Slurm's name of the node, or the machine's."""
    started = attempt.started or {}
    return started.get("slurm", {}).get("SLURMD_NODENAME") or started.get("host")


def troubles(items: list[CellRun]) -> list[triage.Trouble]:
    """Failed and lost cells, grouped by cause."""
    found = ((item.name, item.now.attempt, item.now.message) for item in items if item.now.state in _TROUBLED)
    return triage.group((name, attempt, message) for name, attempt, message in found if attempt)


def status_table(title: str, rows: list[Row], most: int | None = None) -> Table:
    """The state of every cell; of more than `most`, those where something happens, in the order of the grid."""
    table = _table(
        title,
        [
            ("cell", False),
            ("id", False),
            ("state", False),
            ("progress", False),
            ("loss", True),
            ("images/s", True),
            ("left", True),
            ("attempt", True),
            ("node", False),
            ("message", False),
        ],
    )
    shown = rows
    if most is not None and len(rows) > most:
        liveliest = {row["id"] for row in sorted(rows, key=lambda row: _LIVELY.index(State(row["state"])))[:most]}
        shown = [row for row in rows if row["id"] in liveliest]
    for row in shown:
        progress = f"{row['stage']} {row['done']}/{row['total']}" if row["stage"] else ""
        table.add_row(
            row["name"],
            row["id"],
            state_text(row["state"]),
            progress,
            number(row["loss"]),
            number(row["images_per_s"]),
            duration(row["seconds_left"]),
            str(row["attempt"] or ""),
            row["node"] or "",
            row["message"].replace("[", "\\["),
        )
    counts = {state: sum(row["state"] == state for row in rows) for state in State}
    table.caption = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if len(shown) < len(rows):
        table.caption += f"; {len(rows) - len(shown)} of them are not shown here"
    table.caption_justify = "left"
    return table


#: Columns of a results table: name in results.csv, title.
_MEASURES = {
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "loss_train": "loss train",
    "loss_heldout": "loss held-out",
}

_CONDITIONS = {column: column.replace("_", " ") for column in PROTOCOL_COLUMNS} | {"samples": "N", "ema": "EMA"}


def results_table(title: str, rows: list[Row]) -> Table:
    """One row a cell, step and protocol, ordered by GMACs; the distance carries its metric's name.

    Over several sampling seeds: mean and standard deviation, never the best. Where rows were measured differently, what
    differs has columns of its own, and the caption warns.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    order = ("gmacs", "name", "step", "samples", "sampling_steps", "guidance", "protocol")
    for row in sorted(rows, key=lambda row: [row[column] for column in order]):
        groups.setdefault((row["cell"], row["step"], row["protocol"]), []).append(row)
    several = len({row["protocol"] for row in rows}) > 1
    varying = [column for column in _CONDITIONS if len({row[column] for row in rows}) > 1]
    seeds = max(len(group) for group in groups.values())
    metrics = sorted({metric_name(row["extractor"]) for row in rows})
    table = _table(
        title,
        [
            ("cell", False),
            ("step", True),
            *((_CONDITIONS[column], True) for column in varying),
            *([("protocol", False)] if several else []),
            ("params (M)", True),
            ("GMACs", True),
            (" / ".join(metrics), True),
            *((title, True) for title in _MEASURES.values()),
            *([("seeds", True)] if seeds > 1 else []),
            ("time", True),
        ],
    )
    for group in groups.values():
        row = group[0]
        table.add_row(
            row["name"],
            str(row["step"]),
            *("" if row[column] is None else str(row[column]) for column in varying),
            *([row["protocol"]] if several else []),
            *(number(row[column]) for column in ("params_m", "gmacs")),
            *(_over_seeds([row[column] for row in group]) for column in ("frechet", *_MEASURES)),
            *([str(len(group))] if seeds > 1 else []),
            duration((row["train_seconds"] or 0) + sum(row["sample_seconds"] for row in group)),
        )
    table.caption = _results_caption(rows[0], varying, seeds)
    table.caption_justify = "left"
    return table


def _over_seeds(values: list[float | None]) -> str:
    """Mean and standard deviation of what was measured."""
    found = [value for value in values if value is not None]
    if len(found) < 2 or len(set(found)) == 1:
        return number(found[0] if found else None)
    return f"{number(mean(found))} ± {stdev(found):.2g}"


def _results_caption(row: Row, varying: list[str], seeds: int) -> str:
    """What all rows share, and what may not be compared."""
    shared = {
        "samples": f"{row['samples']:,} samples",
        "reference": f"against {row['reference']}",
        "extractor": f"features of {row['extractor']}",
    }
    parts = [", ".join(text for column, text in shared.items() if column not in varying)]
    if seeds > 1:
        parts.append(f"mean ± standard deviation over up to {seeds} sampling seeds")
    if varying:
        differ = " and ".join(_CONDITIONS[column] for column in varying)
        parts.append(f"warning: measured in different ways ({differ}); compare values of one protocol only")
    return "; ".join(part for part in parts if part)
