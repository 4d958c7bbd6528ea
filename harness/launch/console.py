"""A job's log and its progress."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from harness.processes import now
from harness.runs.claims import Hold
from harness.runs.records import Progress
from harness.runs.state import Run
from harness.runs.trackers import Mirror
from harness.training.hooks import Report

#: Least time between two writes of progress.json.
PROGRESS_SECONDS = 0.5

#: Least time between two progress lines in the log.
LOG_SECONDS = 15.0

#: Least time between two looks of the trackers at the run's files.
TRACKER_SECONDS = 10.0


class Reporter:
    """Writes progress.json and, less often, a line of the log; and keeps the trackers up to date."""

    def __init__(self, hold: Hold, run: Run, mirror: Mirror) -> None:
        self._hold, self._run, self._mirror = hold, run, mirror
        self._mirrored = time.monotonic()
        self._written = self._printed = self._stage_begun = 0.0
        self._stage, self._stage_done = "", 0

    def __call__(self, value: Report) -> None:
        """Tell where the job is: `stage`, `done`, `total`, and what else is known."""
        moment = time.monotonic()
        if value["stage"] != self._stage:
            self._stage, self._stage_begun, self._stage_done = value["stage"], moment, value["done"]
            self._written = 0.0
        if moment - self._written < PROGRESS_SECONDS:
            return
        self._written = moment
        elapsed, done = moment - self._stage_begun, value["done"] - self._stage_done
        left = elapsed / done * (value["total"] - value["done"]) if done > 0 else None
        with self._hold.writing():
            self._run.write_progress(
                cast(Progress, {**value, "attempt": self._hold.number, "seconds_left": left, "time": now()})
            )
            if moment - self._mirrored >= TRACKER_SECONDS:
                self._mirrored = moment
                self._mirror.update()
        if moment - self._printed >= LOG_SECONDS:
            self._printed = moment
            loss = f", loss {value['loss']:.4f}" if value.get("loss") is not None else ""
            images = value.get("images_per_s")
            speed = f", {images:.{0 if images >= 10 else 1}f} images/s" if images else ""
            until = f", {left:.0f} s left" if left is not None else ""
            at = f"{value['stage']} {value['done']}/{value['total']}" if "waits" not in value else value["waits"]
            print(f"[{now()}] {at}{loss}{speed}{until}", flush=True)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Send stdout and stderr, also those of libraries in C, to the cell's log."""
    with path.open("a", encoding="utf-8") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # the launcher's PYTHONIOENCODING may lack a letter
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        handler, logger = logging.StreamHandler(sys.stdout), logging.getLogger("harness")
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            sys.stdout.flush()
            sys.stderr.flush()
            for old, new in zip(saved, (1, 2), strict=True):
                os.dup2(old, new)
                os.close(old)
