"""The Inception network behind FID: where its weights lie, and whether they are the published ones.

The network is torch-fidelity's `inception-v3-compat`, a port of the TensorFlow graph of 2015 that the literature's FIDs
rest on. Its weights are not shipped here. Torch is imported only when they are read.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from harness.cell import INCEPTION
from harness.errors import InputError

NAME = INCEPTION

#: The published weights: first 8 hex digits of the file's sha256, which its own name carries.
PUBLISHED = "6726825d"

#: First 8 hex digits of sha256 over the sorted lines `name shape` of the network's tensors.
_LAYOUT = "d84f693f"

FILE = f"weights-inception-2015-12-05-{PUBLISHED}.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"


def metric_name(extractor: str) -> str:
    """Name of the Frechet distance in a feature space: FID for the published Inception weights, FD-<extractor> else.

    Args:
        extractor: name of an extractor, or the label `name@hash` of a record.
    """
    return "FID" if extractor == f"{NAME}@{PUBLISHED}" else f"FD-{extractor.partition('@')[0]}"


def find_weights(configured: str | None) -> Path:
    """The weights file: the one configured (`resources.inception_weights`), else where torch keeps what it downloads.

    Raises:
        InputError: it is not there; the message says where to get it.
    """
    if configured is not None:
        path = Path(configured)
        if not path.is_file():
            raise InputError(f"resources.inception_weights: {path}: no such file; allowed: a copy of {URL}")
        return path
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    path = Path(os.environ.get("TORCH_HOME", cache)).expanduser() / "hub" / "checkpoints" / FILE
    if not path.is_file():
        raise InputError(
            f"evaluation.extractor {NAME} needs its weights: download {URL} and set resources.inception_weights to the "
            f"file, or put it into {path.parent}"
        )
    return path


def weights_label(path: Path) -> str:
    """`inception-v3-compat@<first 8 hex digits of the file's sha256>`: identifies the feature space in records."""
    status = path.stat()
    return f"{NAME}@{_sha256(path, status.st_mtime_ns, status.st_size)[:8]}"


def check_weights(path: Path) -> None:
    """Check that the file holds the network's weights and nothing that would be executed.

    torch-fidelity unpickles whatever it is given, so this comes first.

    Raises:
        InputError: a pickle that carries code, a damaged file, or other tensors.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        lines = [f"{k} {tuple(v.shape)}" for k, v in state.items() if not k.endswith("num_batches_tracked")]
    except Exception as error:  # a damaged pickle fails in any way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: no readable Inception weights ({reason}); allowed: a copy of {URL}") from None
    if hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:8] != _LAYOUT:
        raise InputError(f"{path}: other weights than {NAME} has; allowed: a copy of {URL}")


@functools.cache
def _sha256(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
