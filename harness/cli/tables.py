"""Plans, states and results as tables in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any, TypedDict

from rich.text import Text

from harness.cli.fitted import Column, FittedTable, Row
from harness.cli.words import duration, number, size_of
from harness.runs import triage
from harness.runs.attempts import Attempt
from harness.runs.cellruns import CellRun
from harness.runs.columns import PROTOCOL_COLUMNS, printed_title, without_seeds
from harness.runs.layout import EVALUATING
from harness.runs.state import State

#: The colours of the states; the active states come first.
_COLOURS = {
    State.RUNNING: "cyan",
    State.FAILED: "red",
    State.INTERRUPTED: "yellow",
    State.QUEUED: "cyan",
    State.PARTIAL: "yellow",
    State.CANCELLED: "yellow",
    State.DONE: "green",
    State.MISSING: "dim",
}

#: States that a failed or lost attempt leaves behind.
_TROUBLED = (State.FAILED, State.INTERRUPTED, State.PARTIAL)


def _left(
    title: str, key: str = "", show: Callable[[Any], str | Text] = str, *, rank: int = 0, least: int = 0
) -> Column:
    """A left-aligned column of the value under `key` (by default the title), as text; empty for None."""

    def text(row: Row) -> str | Text:
        value = row[key or title]
        return "" if value is None else show(value)

    return Column(title, text, "left", rank, least)


def _right(title: str, key: str = "", show: Callable[[Any], str] = str, *, rank: int = 0) -> Column:
    """As `_left`, for numbers, which are never broken."""
    return Column(title, _left(title, key, show).text, "right", rank)


def _state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=_COLOURS[State(state)])


#: Names of cells longer than this may take several lines.
_NAME = 60

_GPU_HOURS = "GPU hours"


def _time_of(row: Row) -> float:
    """What a finished cell took, and another one is estimated to take, in seconds."""
    measured = row.get("measured_s")
    return float(row["estimated_s"] if measured is None else measured)


def _interval(row: Row) -> str:
    """Between what times a cell that is not done is estimated to take."""
    if row.get("estimated_least") is None or row.get("measured_s") is not None:
        return ""
    return f"{duration(row['estimated_least'])} … {duration(row['estimated_most'])}"


def _probed(row: Row, key: str) -> float | None:
    """The median of what a probe measured."""
    found = (row.get("probe") or {}).get(key)
    return None if found is None else float(found[0])


def _memory(row: Row) -> str:
    """What the training held at most, by a probe."""
    found = (row.get("probe") or {}).get("memory_bytes")
    return "" if found is None else size_of(found)


_PLAN_COLUMNS = (
    _left("cell", "name", rank=15, least=_NAME),
    _left("id", rank=1),
    _left("block", rank=1),
    _right("depth", rank=5),
    _right("width", rank=4),
    _right("heads", rank=2),
    _right("patch", "patch_size", rank=3),
    _right("tokens", rank=7),
    _right("rate", "learning_rate", number, rank=3),
    _right("params (M)", "params_m", number, rank=10),
    _right("GMACs", "gmacs", number, rank=13),
    _right("steps", rank=6),
    _right("images", "images", number, rank=3),
    _right("epochs", "epochs", number, rank=4),
    _right("train GMACs", "train_gmacs", number, rank=9),
    _right("sampling GMACs", "sampling_gmacs", number, rank=6),
    _right(_GPU_HOURS, "gpu_hours", number, rank=8),
    Column("est. time", lambda row: duration(_time_of(row)), "right", 12),
    Column("from … to", _interval, "right", 11),
    Column("s a step", lambda row: number(_probed(row, "step")), "right", 5),
    Column("memory", _memory, "right", 6),
    Column("probe", lambda row: (row.get("probe") or {}).get("error", ""), "left", 14, 16),
    _left("state", show=_state_text, rank=14),
)


def plan_table(title: str, rows: Sequence[Row], totals: Row) -> FittedTable:
    """The grid with its prices, and the totals."""
    hours, assumed = totals["gpu_hours"], totals["throughput"] == "assumed"
    latents = f", latents {size_of(totals['latents_bytes'])}" if totals["latents"] else ""
    price = (
        f"{f'{hours:,.0f}' if hours >= 10 else number(hours)} GPU hours at {number(totals['tflops'])} TFLOP/s a GPU "
        f"({totals['throughput']}{'; --tflops N to state another' if assumed else ''}). "
    )
    took = "; the time of a finished cell is what it took" if any(row.get("measured_s") for row in rows) else ""
    left = (
        f"what is not done takes about {duration(totals['estimated_s'])} on {totals['site']} ({totals['time_source']})"
    )
    left = left if any(row["state"] != State.DONE for row in rows) else "all are done"
    caption = (
        f"{totals['cells']} cell{'s' * (totals['cells'] != 1)}; training {number(totals['train_gmacs'])} GMACs, "
        f"sampling {number(totals['sampling_gmacs'])} GMACs; {left}{took}. "
        "GMACs: 1e9 multiply-adds of one forward pass of one image (the paper's Gflops).\n"
        f"{price if totals['on_gpu'] else ''}Disk: weights "
        f"{size_of(totals['weights_bytes'])}, samples {size_of(totals['samples_bytes'])}, states while training "
        f"{size_of(totals['states_bytes'])}{latents}."
    )
    columns = [column for column in _PLAN_COLUMNS if totals["on_gpu"] or column.title != _GPU_HOURS]
    return FittedTable(title, columns, rows, caption)


def matches_table(title: str, rows: Sequence[Row]) -> FittedTable:
    """Networks at the compute of the first one."""
    columns = (
        _left("network", rank=4, least=_NAME),
        _right("params (M)", "params_m", number, rank=1),
        _right("GMACs", "gmacs", number, rank=2),
        _right("against the cell", "off", lambda off: f"{off:+.1%}", rank=3),
    )
    return FittedTable(title, columns, rows, "GMACs are matched, parameters are not. For a list of the grid:")


class StatusRow(TypedDict):
    """What `status` says of a cell; None where it is not known."""

    id: str
    name: str
    state: str
    stage: str | None
    done: int | None
    total: int | None
    loss: float | None
    images_per_s: float | None
    mfu: float | None
    seconds_left: float | None
    attempt: int | None
    host: str | None
    node: str | None
    cause: str | None
    message: str


def status_row(item: CellRun) -> StatusRow:
    """The row of a cell."""
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
        "mfu": progress.get("mfu"),
        "seconds_left": progress.get("seconds_left"),
        "attempt": attempt.number if attempt else None,
        "host": (attempt.started or {}).get("host") if attempt else None,
        "node": _node(attempt) if attempt else None,
        "cause": triage.cause_of(attempt) if attempt and state.state in _TROUBLED else None,
        "message": "; ".join(part for part in (_elsewhere(item), state.message, _measuring(item)) if part),
    }


def _elsewhere(item: CellRun) -> str:
    """A note that another study has the cell."""
    return f"a job of study {item.other_study}" if item.other_study else ""


def _measuring(item: CellRun) -> str:
    """A note that `evaluate` is measuring the cell's kept weights, and its progress."""
    run = item.run.on(EVALUATING)
    if run.live() is None:
        return ""
    progress = run.progress()
    return f"evaluating: {progress['stage']} {progress['done']}/{progress['total']}" if progress else "evaluating"


def _node(attempt: Attempt) -> str | None:
    """Where the job runs or ran: Slurm's name of the node, or the machine's."""
    started = attempt.started or {}
    return started.get("slurm", {}).get("SLURMD_NODENAME") or started.get("host")


def troubles(items: list[CellRun]) -> list[triage.Trouble]:
    """Failed and lost cells, grouped by cause."""
    found = ((item.name, item.now.attempt, item.now.message) for item in items if item.now.state in _TROUBLED)
    return triage.group((name, attempt, message) for name, attempt, message in found if attempt)


def _progress(row: Row) -> str:
    """Where a cell is: "train 300/1000"; what has no count is not given one."""
    if not row["stage"]:
        return "starting" if row["state"] == State.RUNNING else ""
    return f"{row['stage']} {row['done']}/{row['total']}" if row["total"] else str(row["stage"])


_STATUS_COLUMNS = (
    _left("cell", "name", rank=10, least=_NAME),
    _left("id", rank=1),
    _left("state", show=_state_text, rank=9),
    Column("progress", _progress, rank=8),
    _right("loss", show=number, rank=5),
    _right("images/s", "images_per_s", number, rank=4),
    _right("MFU", "mfu", lambda share: f"{share:.0%}", rank=3),
    _right("left", "seconds_left", duration, rank=6),
    _right("attempt", rank=3),
    _left("node", rank=2, least=16),
    _left("message", rank=7, least=16),
)


def status_table(title: str, rows: Sequence[StatusRow], most: int | None = None) -> FittedTable:
    """The state of every cell, in the order of the grid; at most `most` cells, preferably active ones."""
    lively = sorted(rows, key=lambda row: [*_COLOURS].index(State(row["state"])))
    shown = {row["id"] for row in lively[:most]}
    counts = {state: sum(row["state"] == state for row in rows) for state in State}
    caption = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if len(shown) < len(rows):
        caption += f"; {len(rows) - len(shown)} of them are not shown here"
    return FittedTable(title, _STATUS_COLUMNS, [row for row in rows if row["id"] in shown], caption)


#: Measures in a results table besides those in a feature space: name in results.csv, title, rank.
_MEASURES = (
    ("precision", "precision", 9),
    ("recall", "recall", 8),
    ("loss_train", "loss train", 3),
    ("loss_heldout", "loss held-out", 7),
)

#: Measures in a feature space, whose name is a part of theirs.
_DISTANCES = ("frechet", "kid")

_CONDITIONS = {column: column.replace("_", " ") for column in PROTOCOL_COLUMNS} | {"samples": "N", "ema": "EMA"}


def results_table(title: str, rows: Sequence[Row]) -> FittedTable:
    """One row a model, step and protocol, in the order of the grid; a metric has the name that the report gives it.

    Over several seeds, of training or of sampling: mean and standard deviation, never the best. If rows were measured
    differently, each difference has its own column, and the caption warns.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    rows = [row for row in rows if row["extractor"]] or rows  # those of losses alone only where there are no others
    for row in rows:
        groups.setdefault((without_seeds(row["name"]), row["step"], row["protocol"]), []).append(row)
    varying = [column for column in _CONDITIONS if len({row[column] for row in rows}) > 1]
    seeds = max(len(group) for group in groups.values())
    several = len({row["step"] for row in rows}) > 1
    columns = (
        _left("cell", "name", rank=15, least=_NAME),
        _right("step", rank=13 if several else 2),
        *(_condition(column, rows) for column in varying),
        *([_left("protocol", rank=1)] if len({row["protocol"] for row in rows}) > 1 else []),
        _right("params (M)", "params_m", number, rank=4),
        _right("GMACs", "gmacs", number, rank=6),
        *(_right(_names(column, rows), column, rank=rank) for column, rank in zip(_DISTANCES, (14, 10), strict=True)),
        *(_right(title, column, rank=rank) for column, title, rank in _MEASURES),
        *([_right("seeds", rank=1)] if seeds > 1 else []),
        _right("time", "seconds", duration, rank=5),
    )
    return FittedTable(title, columns, [*map(_over_seeds, groups.values())], _results_caption(rows, varying, seeds))


def _condition(column: str, rows: Sequence[Row]) -> Column:
    """A condition in which rows differ; without it they look alike."""
    is_text = any(isinstance(row[column], str) for row in rows)
    make = _left if is_text else _right
    shown = make(_CONDITIONS[column], column, rank=12)
    return replace(shown, least=16) if is_text else shown


def _names(column: str, rows: Sequence[Row]) -> str:
    """What a metric is called in the feature spaces of the rows."""
    return " / ".join(sorted({printed_title(column, row["extractor"] or "") for row in rows}))


def _over_seeds(group: list[Row]) -> Row:
    """One row for several seeds: each measure as text, and the time of all.

    Of a cell with several sampling seeds the mean counts as one value, unless there is no other cell.
    """
    cells: dict[str, list[Row]] = {}
    for row in group:
        cells.setdefault(row["cell"], []).append(row)

    def values(column: str) -> list[float]:
        found = [[row[column] for row in rows if row[column] is not None] for rows in cells.values()]
        return [mean(each) for each in found if each] if len(cells) > 1 else found[0]

    measured = {column: _mean(values(column)) for column in (*_DISTANCES, *(m[0] for m in _MEASURES))}
    seconds = sum(rows[0]["train_seconds"] or 0 for rows in cells.values())
    seconds += sum(row["sample_seconds"] or 0 for row in group)
    name = without_seeds(group[0]["name"]) if len(cells) > 1 else group[0]["name"]
    return {**group[0], **measured, "name": name, "seeds": max(len(cells), len(group)), "seconds": seconds}


def _mean(found: list[float]) -> str:
    """Mean and standard deviation of what was measured."""
    if len(found) < 2 or len(set(found)) == 1:
        return number(found[0] if found else None)
    return f"{number(mean(found))} ± {stdev(found):.2g}"


def _results_caption(rows: Sequence[Row], varying: list[str], seeds: int) -> str:
    """What all rows share, what the time is, and a warning if they do not compare."""
    row, parts = rows[0], []
    if seeds > 1:
        kinds = {"training": ("seed", "seeds"), "sampling": ("sampling_seed",)}
        several = " and ".join(
            what for what, columns in kinds.items() if len({tuple(map(row.get, columns)) for row in rows}) > 1
        )
        parts.append(f"mean ± standard deviation over up to {seeds} {several} seeds")
    scored = ", sampling and scoring" if row["extractor"] else ""
    parts.append(f"time: training to this step{scored}{', of all seeds' if seeds > 1 else ''}")
    if not row["extractor"] and not varying:
        losses = "losses only: MSE of what the averaged weights predict, on images that are the same for every cell"
        return "; ".join([losses, *parts])
    shared = {
        "samples": f"{row['samples']:,} samples",
        "reference": f"against {row['reference']}",
        "extractor": f"features of {row['extractor']}",
    }
    parts = [", ".join(text for column, text in shared.items() if column not in varying), *parts]
    if len({row["objective"] for row in rows}) > 1:
        parts.append("losses of two objectives do not compare")
        if _equal_passes(rows):  # the samplers are part of what is compared
            varying = [column for column in varying if column not in ("sampler", "sampling_steps")]
    if varying:
        differ = " and ".join(_CONDITIONS[column] for column in varying)
        parts.append(f"warning: measured in different ways ({differ}); compare values of one protocol only")
    return "; ".join(part for part in parts if part)


def _equal_passes(rows: Sequence[Row]) -> bool:
    """Whether each objective has one sampler, all with as many forward passes."""
    ways = {(row["objective"], row["sampler"], row["sampling_steps"]) for row in rows}
    return len(ways) == len({row["objective"] for row in rows}) and len({row["sampling_passes"] for row in rows}) == 1
