"""The verbs that come before a study on latents: train-vae, encode."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from harness.cli.options import (
    RESULTS,
    DataFolderOption,
    DownloadOption,
    ResultsOption,
    StudyArgument,
    console,
    resolve,
)


def _prepare(work: str, study: str, results: Path, data_folder: Path | None, download: bool) -> None:
    """Run `train-vae` or `encode` behind a progress bar."""
    from dataclasses import replace

    from harness.cli.bars import WorkBar
    from harness.errors import CellFailedError
    from harness.launch import prepare
    from harness.launch.signals import StopFlag
    from harness.training.hooks import Hooks, StoppedError

    sweep, folder = resolve(study, results)
    asked: dict[str, Any] = {
        "data_folder": str(data_folder) if data_folder else None,
        "data_download": download or None,
    }
    options = {key: value for key, value in asked.items() if value is not None}
    sweep = replace(sweep, resources=sweep.resources.model_copy(update=options))
    try:
        with WorkBar(console()) as bar:
            if work == "train-vae":
                hooks = Hooks(should_stop=StopFlag().is_set, report=bar.report)
                prepare.train_vaes(sweep, folder, hooks, bar.say)
            else:
                prepare.encode_all(sweep, folder, Hooks(report=bar.report), bar.say)
    except (KeyboardInterrupt, StoppedError) as error:
        print(str(error) or "stopped; the same command goes on after the last whole shard", file=sys.stderr)
        raise typer.Exit(130) from None
    except (CellFailedError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None


def train_vae(
    study: StudyArgument,
    results: ResultsOption = RESULTS,
    data_folder: DataFolderOption = None,
    download: DownloadOption = False,
) -> None:
    """Train the autoencoder that the sweep names (data.vae, kind "trained"), where no pretrained one can be had.

    Stays in the foreground; Ctrl-C writes a checkpoint, and the same command goes on. Studies share it.
    """
    _prepare("train-vae", study, results, data_folder, download)


def encode(
    study: StudyArgument,
    results: ResultsOption = RESULTS,
    data_folder: DataFolderOption = None,
    download: DownloadOption = False,
) -> None:
    """Encode the sweep's images, and their mirror images, by the autoencoder that it names; once, for all studies.

    A pretrained one is read from results/_vae/NAME, a folder of that name, or the Hugging Face hub. Interrupted, the
    same command goes on after the last whole shard.
    """
    _prepare("encode", study, results, data_folder, download)
