"""The verbs that come before a study: train-extractor; on latents train-vae and encode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.cli import options as cli
from harness.cli import streams

if TYPE_CHECKING:
    from harness.launch.view import Say
    from harness.runs.study import Study
    from harness.training.hooks import Hooks
    from sweeps.grid import Sweep

_DATA = ("data_folder", "data_download")

_RESOURCES = (
    *("executor", "threads", "ranks", "device"),
    *("nodes", "partition", "account", "qos", "constraint", "time", "mem_gb", "gpus"),
)


@cli.takes_fields(resources=_DATA)
def train_vae(study: cli.StudyArgument, results: cli.ResultsOption = cli.RESULTS, **given: Any) -> None:
    """Train the autoencoder that the sweep names (data.vae, kind "trained"), where no pretrained one can be had.

    Stays in the foreground; Ctrl-C writes a checkpoint, and the same command goes on. Studies share it.
    """
    from harness.launch.prepare import train_vaes
    from harness.launch.signals import StopFlag

    _prepare(train_vaes, study, results, given, StopFlag().is_set)


@cli.takes_fields(resources=(*_DATA, "device"))
def train_extractor(study: cli.StudyArgument, results: cli.ResultsOption = cli.RESULTS, **given: Any) -> None:
    """Train the feature extractors that the sweep names (extractor = {kind = "trained"}), and say what they are worth.

    `launch` does so by itself, except on Slurm. It stays in the foreground, and begins anew when it was stopped.
    Studies on the same images share it.
    """
    from harness.launch.extractors import train_all
    from harness.launch.signals import StopFlag

    _prepare(train_all, study, results, given, StopFlag().is_set)


@cli.takes_fields(resources=(*_DATA, *_RESOURCES))
def encode(
    study: cli.StudyArgument, results: cli.ResultsOption = cli.RESULTS, wait: cli.WaitOption = False, **given: Any
) -> None:
    """Encode the sweep's images, and their mirror images, by the autoencoder that it names; once, for all studies.

    A pretrained one is read from results/_vae/NAME, a folder of that name, or the Hugging Face hub. Several ranks
    (--ranks, on Slurm also --nodes) share the images; the bytes are the same on any number. What the options say of a
    cell holds for a data set here.

    Locally it stays in the foreground; interrupted, the same command goes on after the last whole shard. On Slurm it
    submits a job for each data set and returns, and the same command tells how far it is; with --wait it follows, and
    Ctrl-C ends the following only.
    """
    from functools import partial

    from harness.launch.encode import encode_all

    _prepare(partial(encode_all, wait=wait), study, results, given)


def _prepare(
    work: Callable[[Sweep, Study, Hooks, Say], None],
    study: str,
    results: Path,
    given: Mapping[str, Any],
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Do the work behind a progress bar."""
    from harness.cli.bars import WorkBar
    from harness.errors import CellFailedError
    from harness.launch.signals import interrupting
    from harness.training.hooks import Hooks, StoppedError

    sweep, folder = cli.resolve(study, results, given)
    try:
        with interrupting(), streams.lasting(), WorkBar(cli.console()) as bar:
            work(sweep, folder, Hooks(should_stop=should_stop, report=bar.report), bar.say)
    except (KeyboardInterrupt, StoppedError) as error:
        print(str(error) or "stopped; the same command goes on after the last whole shard", file=sys.stderr)
        raise typer.Exit(130) from None
    except (CellFailedError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None
