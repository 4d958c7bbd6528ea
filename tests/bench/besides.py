"""What EMA, log and checkpoints add to a training step, as a job does them: at the default cadence, holding its run.

The denoising loss, which is measured twice in a training, is left out: its cost is of the training, not of a step.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch

from harness.processes import process_identity
from harness.runs.state import Run
from harness.spec.resources import Compilation, Recording
from harness.training.hooks import Hooks, Report
from harness.training.loop import Options, train
from harness.training.state import TrainState
from tests.bench.pairs import Row, Told, pair
from tests.bench.training import SETTINGS, Setting, source

#: Pairs of a row, whose calls take seconds to minutes.
ROUNDS = 5

#: Steps of a training whose log has a row every fifth step; and of one that writes none meanwhile.
_LOGGED, _ENDLESS = 1000, 10**9

#: Seconds of a training between which its steps are timed alone.
_ALONE = (1.0, 9.0)


class _EnoughError(Exception):
    """The training has made the steps that are timed."""


def besides(setting: Setting, how: Compilation) -> Row:
    """Steps without EMA, log and checkpoints, against the steps from one checkpoint to the next one."""
    data = source(setting)

    def timed(steps: int, checkpoint_seconds: float | None, is_edge: Callable[[Run, float], bool]) -> Told:
        """Seconds of a step of a training of so many steps, between the first two looks that are edges."""
        recipe = setting.cell.training.model_copy(update={"steps": steps})
        cell = setting.cell.model_copy(update={"training": recipe})
        looks, edges = list[float](), list[tuple[int, float]]()

        def report(value: Report) -> None:
            looks.append(time.perf_counter())
            if is_edge(run, looks[-1] - looks[0]):
                edges.append((value["done"], looks[-1]))
            if len(edges) == 2:
                raise _EnoughError

        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder) / "runs" / cell.id)
            run.folder.mkdir(parents=True)
            hold = run.claim(1, {"process": process_identity()})
            assert hold is not None
            options = Options("cpu", [], Recording(loss_steps=(1,)), checkpoint_seconds, compiled=how)
            with contextlib.suppress(_EnoughError):
                train(cell, data, run, options, Hooks(writing=hold.writing, report=report))
        (before, begun), (after, ended) = edges
        return Told((ended - begun) / (after - before))

    def alone() -> Told:
        marks = [*_ALONE]
        with mock.patch.object(TrainState, "average"):
            return timed(_ENDLESS, _ENDLESS, lambda _, passed: passed >= marks[0] and bool(marks.pop(0)))

    def whole() -> Told:
        seen = set[Path]()

        def has_new_state(run: Run, passed: float) -> bool:
            new = set(run.state_files()) - seen
            seen.update(new)
            return bool(new)

        return timed(_LOGGED, None, has_new_state)

    what = f"EMA, log and checkpoints of {setting.name}, {torch.get_num_threads()} threads"
    return pair(what, ("a step", alone), ("with them", whole), rounds=ROUNDS)


def rows(threads: int) -> list[Row]:
    """Three settings, compiled as `--compile auto` does."""
    torch.set_num_threads(threads)
    return [besides(setting, "off" if setting.latents else "whole") for setting in SETTINGS[:3]]
