"""A folder with the sweep of a few small cells, and the command run in it: what the tests of whole studies share."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.commands import ROOT, run_here

Found = TypeVar("Found")

#: Columns that tell how long something took: they differ from run to run.
TIMINGS = {"train_seconds", "sample_seconds", "images_per_s", "tflops", "mfu"}

_SWEEP = """
title = "small cells"
[grid]
{grid}
[model]
{model}
{more}
[training]
steps = {steps}
batch_size = {batch_size}
learning_rate = {rate}
ema_window = 0.1
[recording]
loss_images = 16
[[evaluation]]
samples = 330
sampler = "ddim"
sampling_steps = 4
{evaluation}
[resources]
checkpoint_seconds = {checkpoint}
sampling_batch = {sampling_batch}
"""


def sweep_text(
    grid: str = "depth = [1, 2]",
    model: str = "width = 16\npatch_size = 4",
    *,
    more: str = "",
    steps: int = 40,
    batch_size: int = 8,
    rate: str = "1e-3",
    evaluation: str = "",
    checkpoint: float = 60,
    sampling_batch: int = 100,
) -> str:
    """A sweep whose cells train in seconds; `more` are further tables, `evaluation` further lines of that table."""
    return _SWEEP.format(
        grid=grid, model=model, more=more, steps=steps, batch_size=batch_size, rate=rate, evaluation=evaluation,
        checkpoint=checkpoint, sampling_batch=sampling_batch,
    )  # fmt: skip


class Bench:
    """A folder with one sweep, and the command run in it."""

    def __init__(self, folder: Path, sweep: str | None = None) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.sweep = folder / "small.toml"
        self.sweep.write_text(sweep_text() if sweep is None else sweep)
        self.study = folder / "results" / "small"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A process of its own, which can be killed."""
        return subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_here(self.folder, *arguments)

    def launch(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run("launch", str(self.sweep), *options)

    def status(self) -> dict[str, dict[str, Any]]:
        done = self.run("status", str(self.sweep), "--json")
        assert done.returncode == 0, done.stderr
        return {row["name"]: row for row in json.loads(done.stdout)}

    def runs(self) -> dict[str, Path]:
        """The run folders by the first two letters of their cells' names."""
        names = json.loads((self.study / "cells.json").read_text())
        found = {name[:2]: self.study.parent / "runs" / cell for cell, name in names.items()}
        return {name: folder for name, folder in found.items() if folder.exists()}

    def weights(self) -> dict[str, bytes]:
        return {name: next(path.glob("checkpoints/weights-*")).read_bytes() for name, path in self.runs().items()}

    def attempts(self) -> dict[str, list[str]]:
        return {
            n: sorted(f.name for f in (p / "attempts").iterdir() if f.stem.isdigit()) for n, p in self.runs().items()
        }

    def rows(self) -> list[dict[str, str]]:
        with (self.study / "results.csv").open() as file:
            return list(csv.DictReader(file))

    def metrics(self) -> dict[str, list[str]]:
        keys = ("frechet", "kid", "precision", "recall", "inception_score", "loss_train", "loss_heldout")
        return {row["name"]: [row[key] for key in keys] for row in self.rows()}

    def processes(self) -> list[dict[str, Any]]:
        """Of the jobs that are at work."""
        found = []
        for path in self.study.parent.glob("runs/*/attempts/*.started.json"):
            if not path.with_name(path.name.replace("started", "ended")).exists():
                found.append(json.loads(path.read_text())["process"])
        return found

    def is_training(self) -> bool:
        """Whether a cell has written a checkpoint of its training."""
        return any(self.study.parent.glob("runs/*/checkpoints/state-*.safetensors"))


def wait_for(condition: Callable[[], Found], seconds: float = 120) -> Found:
    """The first answer that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")
