"""Plans, states and results as tables in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal, TypedDict

from rich.table import Table
from rich.text import Text

from harness.cli.words import duration, number, size_of
from harness.runs import triage
from harness.runs.attempts import Attempt
from harness.runs.cellruns import CellRun
from harness.runs.columns import PROTOCOL_COLUMNS, metric_name
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

#: A row of a table: value by column.
Row = Mapping[str, Any]

#: States that a failed or lost attempt leaves behind.
_TROUBLED = (State.FAILED, State.INTERRUPTED, State.PARTIAL)


@dataclass(frozen=True)
class Column:
    """A column: its title, the text of a row in it, and its alignment."""

    title: str
    text: Callable[[Row], str | Text]
    justify: Literal["left", "right"] = "left"


def _left(title: str, key: str = "", show: Callable[[Any], str | Text] = str) -> Column:
    """A left-aligned column of the value under `key` (by default the title), as text."""
    return Column(title, lambda row: show(row[key or title]))


def _right(title: str, key: str = "", show: Callable[[Any], str] = str) -> Column:
    """As `_left`, for numbers."""
    return Column(title, lambda row: show(row[key or title]), "right")


def _as_text(value: str | Text, style: str = "") -> Text:
    """The value as it is: rich takes brackets and colons in a plain string, which may be the user's, for markup."""
    return Text(value, style) if isinstance(value, str) else value


def _table(title: str, columns: Sequence[Column], rows: Iterable[Row], caption: str) -> Table:
    table = Table(
        title=_as_text(title, "table.title"),
        title_justify="left",
        caption=_as_text(caption, "table.caption"),
        header_style="bold",
        pad_edge=False,
    )
    table.caption_justify = "left"
    for column in columns:
        table.add_column(
            _as_text(column.title), justify=column.justify, overflow="fold", no_wrap=column.title == "cell"
        )
    for row in rows:
        table.add_row(*(_as_text(column.text(row)) for column in columns))
    return table


def _state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=_COLOURS[State(state)])


_PLAN_COLUMNS = (
    _left("cell", "name"),
    _left("id"),
    _left("block"),
    _right("depth"),
    _right("width"),
    _right("heads"),
    _right("patch", "patch_size"),
    _right("tokens"),
    _right("params (M)", "params_m", number),
    _right("GMACs", "gmacs", number),
    _right("train GMACs", "train_gmacs", number),
    _right("sampling GMACs", "sampling_gmacs", number),
    _right("GPU hours", "gpu_hours", number),
    _right("est. time", "estimated_s", duration),
    _left("state", show=_state_text),
)


def plan_table(title: str, rows: Sequence[Row], totals: Row) -> Table:
    """The grid with its prices, and the totals."""
    hours, assumed = totals["gpu_hours"], totals["throughput"] == "assumed"
    latents = f", latents {size_of(totals['latents_bytes'])}" if totals["latents"] else ""
    caption = (
        f"{totals['cells']} cell{'s' * (totals['cells'] != 1)}; training {number(totals['train_gmacs'])} GMACs, "
        f"sampling {number(totals['sampling_gmacs'])} GMACs; what is not done takes about "
        f"{duration(totals['estimated_s'])} on {totals['site']}. "
        "GMACs: 1e9 multiply-adds of one forward pass of one image (the paper's Gflops).\n"
        f"{f'{hours:,.0f}' if hours >= 10 else number(hours)} GPU hours at {number(totals['tflops'])} TFLOP/s a GPU "
        f"({totals['throughput']}{'; --tflops N to state another' if assumed else ''}). Disk: weights "
        f"{size_of(totals['weights_bytes'])}, samples {size_of(totals['samples_bytes'])}, states while training "
        f"{size_of(totals['states_bytes'])}{latents}."
    )
    return _table(title, _PLAN_COLUMNS, rows, caption)


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
        "seconds_left": progress.get("seconds_left"),
        "attempt": attempt.number if attempt else None,
        "host": (attempt.started or {}).get("host") if attempt else None,
        "node": _node(attempt) if attempt else None,
        "cause": triage.cause_of(attempt) if attempt and state.state in _TROUBLED else None,
        "message": "; ".join(part for part in (state.message, _measuring(item)) if part),
    }


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


_STATUS_COLUMNS = (
    _left("cell", "name"),
    _left("id"),
    _left("state", show=_state_text),
    Column("progress", lambda row: f"{row['stage']} {row['done']}/{row['total']}" if row["stage"] else ""),
    _right("loss", show=number),
    _right("images/s", "images_per_s", number),
    _right("left", "seconds_left", duration),
    _right("attempt", show=lambda number: str(number or "")),
    _left("node", show=lambda name: name or ""),
    _left("message"),
)


def status_table(title: str, rows: Sequence[StatusRow], most: int | None = None) -> Table:
    """The state of every cell, in the order of the grid; at most `most` cells, preferably active ones."""
    lively = sorted(rows, key=lambda row: [*_COLOURS].index(State(row["state"])))
    shown = {row["id"] for row in lively[:most]}
    counts = {state: sum(row["state"] == state for row in rows) for state in State}
    caption = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    if len(shown) < len(rows):
        caption += f"; {len(rows) - len(shown)} of them are not shown here"
    return _table(title, _STATUS_COLUMNS, [row for row in rows if row["id"] in shown], caption)


#: Measures in a results table besides the distance: name in results.csv, title.
_MEASURES = {
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "loss_train": "loss train",
    "loss_heldout": "loss held-out",
}

_CONDITIONS = {column: column.replace("_", " ") for column in PROTOCOL_COLUMNS} | {"samples": "N", "ema": "EMA"}


def results_table(title: str, rows: Sequence[Row]) -> Table:
    """One row a cell, step and protocol, ordered by GMACs; the distance carries its metric's name.

    Over several sampling seeds: mean and standard deviation, never the best. If rows were measured differently, each
    difference has its own column, and the caption warns.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    order = ("gmacs", "name", "step", "samples", "sampling_steps", "guidance", "protocol")
    rows = [row for row in rows if row["extractor"]] or rows  # those of losses alone only where there are no others
    for row in sorted(rows, key=lambda row: [row[column] or 0 for column in order]):
        groups.setdefault((row["cell"], row["step"], row["protocol"]), []).append(row)
    varying = [column for column in _CONDITIONS if len({row[column] for row in rows}) > 1]
    seeds = max(len(group) for group in groups.values())
    names = sorted({metric_name(row["extractor"]) for row in rows if row["extractor"]})
    columns = (
        _left("cell", "name"),
        _right("step"),
        *(_right(_CONDITIONS[column], column, lambda value: "" if value is None else str(value)) for column in varying),
        *([_left("protocol")] if len({row["protocol"] for row in rows}) > 1 else []),
        _right("params (M)", "params_m", number),
        _right("GMACs", "gmacs", number),
        *([_right(" / ".join(names), "frechet")] if names else []),
        *(_right(title, column) for column, title in _MEASURES.items() if names or column.startswith("loss")),
        *([_right("seeds")] if seeds > 1 else []),
        _right("time", "seconds", duration),
    )
    return _table(title, columns, map(_over_seeds, groups.values()), _results_caption(rows[0], varying, seeds))


def _over_seeds(group: list[Row]) -> Row:
    """One row for several sampling seeds: each measure as text, and the sum of their times."""
    measured = {column: _mean([row[column] for row in group]) for column in ("frechet", *_MEASURES)}
    seconds = (group[0]["train_seconds"] or 0) + sum(row["sample_seconds"] or 0 for row in group)
    return {**group[0], **measured, "seeds": len(group), "seconds": seconds}


def _mean(values: list[float | None]) -> str:
    """Mean and standard deviation of what was measured."""
    found = [value for value in values if value is not None]
    if len(found) < 2 or len(set(found)) == 1:
        return number(found[0] if found else None)
    return f"{number(mean(found))} ± {stdev(found):.2g}"


def _results_caption(row: Row, varying: list[str], seeds: int) -> str:
    """What all rows share, and a warning if they do not compare."""
    if not row["extractor"] and not varying:
        return "losses only: noise MSE of the averaged weights, on images that are the same for every cell"
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
