"""How plans, states and launches look in a terminal."""

from __future__ import annotations

from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from harness import triage
from harness.evaluation.inception import metric_name
from harness.launch import CellRun
from harness.records import PROTOCOL_COLUMNS
from harness.runs import EVALUATING, Attempt, State

if TYPE_CHECKING:
    from harness.cell import Evaluation
    from harness.evaluate import Cost
    from sweeps.grid import Sweep

Row = dict[str, Any]

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


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 45 s, 3.2 min, 1.5 h, 2.1 d, 1.3 years."""
    if seconds is None:
        return ""
    for unit, size in (("years", 365.25 * 86400), ("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def size_of(count: int | None) -> str:
    """Bytes as people say them: 512 B, 84.0 GB, 1.2 TB; "unknown" where they cannot be known."""
    if count is None:
        return "unknown"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def number(value: float | None) -> str:
    """A number to four significant digits; empty when not measured."""
    return "" if value is None else f"{value:.4g}"


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
        f"{_gpu_hours(totals['gpu_hours'])} at {number(totals['tflops'])} TFLOP/s a GPU ({totals['throughput']}"
        f"{'; --tflops N to state another' if totals['throughput'] == 'assumed' else ''}). Disk: weights "
        f"{size_of(totals['weights_bytes'])}, samples {size_of(totals['samples_bytes'])}, states while training "
        f"{size_of(totals['states_bytes'])}{_latents(totals)}."
    )
    table.caption_justify = "left"
    return table


_LABELS = {"uniform": "classes drawn evenly", "balanced": "classes in turn", "training": "classes as in training"}


def evaluation_lines(sweep: Sweep, when: str | None = None) -> list[str]:
    """What is measured, a line each, sampling seeds together. `when` replaces the training steps."""
    sources = [cell.data for _, cell in sweep.cells()]
    lines: dict[tuple[str, str], list[int]] = {}
    for origin, evaluation in zip(sweep.origins, sweep.evaluations, strict=True):
        extractors = dict.fromkeys(str(evaluation.resolved(data).extractor) for data in sources)
        at = f"after {', '.join(f'{step:,}' for step in evaluation.at)} steps and at the end" if evaluation.at else ""
        sampling = sampling_text(evaluation, labelled=any(data.labels for data in sources))
        text = f"{sampling}, features of {' or '.join(extractors)}, reference {evaluation.reference}"
        head = f"{origin.key} (protocol {origin.protocol.name})" if origin.protocol else origin.key
        lines.setdefault((f"{head}: {text}", when or at or "at the end"), []).append(evaluation.seed)
    return [
        f"{text}, sampling seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {when}"
        for (text, when), seeds in lines.items()
    ]


def cost_line(cost: Cost, cells: int) -> str:
    """What `evaluate` is about to do."""
    many = "s" * (cells != 1)
    if cost.done == cost.total:
        return f"{cost.total} evaluations of {cells} cell{many}, all of them done already"
    basis = "by the records of the study" if cost.measured else "assumed"
    return (
        f"{cost.total} evaluations of {cells} cell{many}, {cost.done} of them done already; sampling "
        f"{number(cost.sampling_gmacs)} GMACs, about {duration(cost.seconds)} on one slot ({basis})"
    )


def sampling_text(evaluation: Evaluation, *, labelled: bool = True) -> str:
    """How samples are made, in words, without their seed."""
    guidance = "no guidance" if evaluation.guidance == 1 else f"guidance {evaluation.guidance:g}"
    if evaluation.guidance != 1 and evaluation.guidance_channels != "as-published":
        guidance += f" on {evaluation.guidance_channels} channels"
    return (
        f"{evaluation.samples:,} samples, {evaluation.sampler.upper()} {evaluation.sampling_steps} steps, {guidance}, "
        f"{_LABELS[evaluation.labels] + ', ' if labelled else ''}{'averaged' if evaluation.ema else 'plain'} weights"
    )


def _gpu_hours(hours: float) -> str:
    return f"{hours:,.0f} GPU hours" if hours >= 10 else f"{number(hours)} GPU hours"


def _latents(totals: Row) -> str:
    """Encoded images, once for all cells that share them."""
    return f", latents {size_of(totals['latents_bytes'])}" if totals["latents"] else ""


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


class PlainView:
    """A line whenever something begins or ends: for logs and pipes."""

    def __init__(self, console: Console, items: list[CellRun]) -> None:
        self._console, self._total = console, len(items)
        self._done = sum(item.now.state is State.DONE for item in items)
        if self._done:
            self.note(f"{self._done} of {self._total} cells are done already")

    def __enter__(self) -> PlainView:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def started(self, item: CellRun) -> None:
        """A cell was started."""
        self.note(f"{item.name}: started")

    def finished(self, item: CellRun) -> None:
        """A cell ended."""
        self._done += item.now.state is State.DONE
        reason = f": {item.now.message}" if item.now.message else ""
        self.note(f"{item.name}: {item.now.state}{reason} ({self._done}/{self._total} done)")

    def tick(self, items: list[CellRun]) -> None:
        """Plain lines show no progress in between."""

    def note(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveView(PlainView):
    """One bar for the sweep and one for each running cell, with loss, images/s and time left."""

    def __init__(self, console: Console, items: list[CellRun]) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._live = Live(self._progress, console=console, refresh_per_second=4)
        self._tasks: dict[str, TaskID] = {}
        super().__init__(console, items)
        self._sweep = self._progress.add_task("[bold]sweep", total=self._total, completed=self._done, detail="")

    def __enter__(self) -> LiveView:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop drawing."""
        self._live.stop()

    def finished(self, item: CellRun) -> None:
        """A cell ended: its bar goes."""
        super().finished(item)
        if (task := self._tasks.pop(item.cell.id, None)) is not None:
            self._progress.remove_task(task)

    def tick(self, items: list[CellRun]) -> None:
        """Draw what the running cells tell."""
        self._progress.update(self._sweep, completed=self._done)
        for item in items:
            told = item.now.progress
            if item.now.state not in (State.RUNNING, State.QUEUED):
                continue
            if item.cell.id not in self._tasks:
                self._tasks[item.cell.id] = self._progress.add_task(item.name, total=None, detail="starting")
            if told:
                loss = f"loss {told['loss']:.4f} " if told.get("loss") is not None else ""
                speed = f"{told['images_per_s']:.0f} images/s " if told.get("images_per_s") else ""
                left = f"{duration(told['seconds_left'])} left" if told.get("seconds_left") is not None else ""
                self._progress.update(
                    self._tasks[item.cell.id],
                    total=told["total"],
                    completed=told["done"],
                    detail=f"{told['stage']} {loss}{speed}{left}",
                )
