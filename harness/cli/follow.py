"""Live views: `status --watch` and `logs --follow`. Both only read."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from harness.cli import tables
from harness.cli.words import state_line
from harness.runs.cellruns import CellRun
from harness.runs.state import ACTIVE, State

#: A live table shows so many cells, if there are as many, before it shows the reasons of failures whole.
_FEW = 3

#: Time between two looks at a log.
LOG_SECONDS = 0.5


def watch(console: Console, title: str, items: list[CellRun], seconds: float) -> None:
    """Show the states as they change, until nothing is queued or running. Reads only; Ctrl-C ends the watching.

    In a terminal: a table, redrawn every `seconds`. In a pipe: a line when a cell changes its state, then the table.
    """
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    known = {item.cell.id: State.DONE for item in items if item.now.state is State.DONE}
    idle = True
    with live or contextlib.nullcontext():
        while True:
            if live:
                live.update(_picture(console, title, items), refresh=True)
            else:
                for item in items:
                    if item.now.state is not known.get(item.cell.id, State.MISSING):
                        console.print(state_line(item), markup=False, soft_wrap=True)
                known = {item.cell.id: item.now.state for item in items}
            was_idle, idle = idle, not any(item.now.state in ACTIVE for item in items)
            if idle and was_idle:  # one look may fall between the end of a cell and the start of the next
                break
            time.sleep(seconds)
            for item in items:
                if item.now.state is not State.DONE:
                    item.refresh()
    if not live:
        console.print(tables.status_table(title, [tables.status_row(item) for item in items]))


def _picture(console: Console, title: str, items: list[CellRun]) -> Group:
    """The table and what went wrong, at the height of the terminal.

    The counts and the cells at work come first; where there is no room for more, the others, the reasons of failures
    and the headings go, in this order.
    """
    rows = [tables.status_row(item) for item in items]
    active = sum(item.now.state in ACTIVE for item in items)
    causes = [str(trouble) for trouble in tables.troubles(items)]
    whole = [Text(cause, style="red") for cause in causes]
    short = [Text(cause, style="red", no_wrap=True, overflow="ellipsis") for cause in causes]
    few = min(_FEW, len(rows))
    for shown, head, least in ((whole, True, few), (short, True, few), (short[:1], True, 0), ([], True, 0)):
        if (found := _fitted(console, title, rows, shown, head, max(active, least))) is not None:
            return found
    return _fitted(console, title, rows, [], False, 0) or Group()


def _fitted(
    console: Console, title: str, rows: list[tables.StatusRow], causes: list[Text], head: bool, least: int
) -> Group | None:
    """As many cells as fit, above these causes; None when they are fewer than `least`."""
    most = len(rows)
    while most >= least:
        table = replace(tables.status_table(title, rows, most), one_line=True, head=head)
        picture = Group(table, *causes)
        excess = len(console.render_lines(picture, pad=False)) - console.height
        if excess <= 0:
            return picture
        most -= excess
    return None


def follow_log(item: CellRun, write: Callable[[str], object], note: Callable[[str], object]) -> None:
    """Pass on what a cell's jobs print, until the cell has ended: done, failed, cancelled or interrupted.

    Waits while there is no log yet, and says so; a log that was replaced or cut is read from its beginning.

    Args:
        item: the cell.
        write: takes the log's text.
        note: takes a line about the log.
    """
    with contextlib.ExitStack() as files:
        log: TextIO | None = None
        waiting = False
        while True:
            # also waits for a cell never launched: one that waits for a slot looks the same
            ended = item.refresh().state not in (*ACTIVE, State.MISSING)
            if ended:
                time.sleep(LOG_SECONDS)  # the last line is written just after the end is recorded
            if log is None or _replaced(item, log):
                files.close()
                log = None
                with contextlib.suppress(FileNotFoundError):
                    log = files.enter_context(item.run.log.open(encoding="utf-8", errors="replace"))
            if log is not None:
                write(log.read())
            elif not waiting and not ended:
                waiting = True
                note(f"{item.name}: no log yet ({item.now.state}); waiting for it")
            if ended:
                if item.now.state is not State.DONE:
                    note(state_line(item))
                return
            time.sleep(LOG_SECONDS)


def _replaced(item: CellRun, log: TextIO) -> bool:
    """Whether the log was replaced by another file, or became shorter than what was read."""
    mine = os.fstat(log.fileno())
    try:
        there = item.run.log.stat()
    except FileNotFoundError:
        return True
    return (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino) or there.st_size < log.tell()
