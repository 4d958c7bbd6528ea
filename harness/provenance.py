"""Where a result came from: code, packages, hardware. Recorded with every attempt."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("dit-scaling-harness", "torch", "torchvision", "torch-fidelity", "numpy", "scipy", "safetensors")


def git_commit() -> str | None:
    """Commit of the harness's own checkout, with a trailing + when tracked files were changed; None outside git."""
    source = Path(__file__).resolve().parent.parent
    try:
        # the harness may be installed into somebody else's repository: that commit would say nothing
        top = _git(source, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != source:
            return None
        commit = _git(source, "rev-parse", "--short=12", "HEAD")
        changed = _git(source, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()


def packages() -> dict[str, str]:
    """Versions of the packages that decide results."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> dict[str, Any]:
    """Host, Python, packages, commit and command of this process."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": packages(),
        "commit": git_commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "slurm": {k: v for k, v in os.environ.items() if k in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID")},
    }


def numeric_conditions(threads: int, sampling_batch: int, device: str) -> dict[str, Any]:
    """What must be the same for two runs to agree bit for bit (imports torch)."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "torch": torch.__version__,
        "device": device,
        "hardware": name,
        "threads": threads,
        "sampling_batch": sampling_batch,
    }
