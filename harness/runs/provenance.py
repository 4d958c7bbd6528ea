"""Where a result came from: code, command, packages, hardware, scheduler. Recorded with every attempt.

A launch runs git once and hands the answer to its jobs as an `Origin`. A checkout may be edited while jobs wait in a
queue: a job that finds other sources than those of the launch runs git again, so that its record tells what ran.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("dit-scaling-harness", "torch", "torchvision", "torch-fidelity", "numpy", "scipy", "safetensors")

#: The code that decides results.
_CODE = ("harness", "sweeps", "pyproject.toml", "constraints.txt")

#: Untracked files with these endings count as code.
_UNTRACKED = (".py", ".toml")

_SLURM_KEYS = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_STEP_ID",
    "SLURM_JOB_NODELIST",
    "SLURMD_NODENAME",
    "SLURM_JOB_PARTITION",
    "SLURM_CLUSTER_NAME",
)


@dataclass(frozen=True)
class Origin:
    """The code, and the command that launched it.

    Attributes:
        commit: of the harness's own checkout, with a trailing + when the code differs from it; None outside git.
        code: hash of the sources on the disk, within git or not (see `code_hash`).
        diff: hash of the difference between sources and commit; None where there is none.
        command: as it was typed, without the path of the program.
    """

    commit: str | None
    code: str
    diff: str | None
    command: str


@lru_cache(maxsize=1)
def origin() -> tuple[Origin, str]:
    """The origin of what this process launches, and the text of its difference from the commit; found once."""
    commit, text = git_state(_source())
    name = hashlib.sha256(text.encode()).hexdigest()[:12] if text else None
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return Origin(commit, code_hash(), name, command), text


def origin_of_job(launched: Origin | None) -> tuple[Origin, str]:
    """The origin of a job, and the text of the difference that the job has to save.

    While the sources are those of the launch, its origin holds, and the launch has saved the difference already.
    """
    if launched is not None and launched.code == code_hash():
        return launched, ""
    mine, text = origin()
    return (mine if launched is None else replace(mine, command=launched.command)), text


def _source() -> Path:
    return Path(__file__).resolve().parents[2]


def code_hash() -> str:
    """Hash over names and contents of the Python files in harness/ and sweeps/, 12 digits."""
    source = _source()
    digest = hashlib.sha256()
    for folder in ("harness", "sweeps"):
        for path in sorted((source / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(source).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def git_state(source: Path) -> tuple[str | None, str]:
    """Commit of a checkout (12 digits, and + when its code differs) and the difference; (None, "") outside git."""
    try:
        # the harness may be installed inside another project's repository, whose commit tells nothing about it
        top, commit = _git(source, "rev-parse", "--show-toplevel", "HEAD").split("\n")
        if Path(top).resolve() != source:
            return None, ""
        changed = _git(source, "diff", "--no-color", "--no-ext-diff", "HEAD", "--", *_CODE)
        untracked = _git(source, "ls-files", "--others", "--exclude-standard", "--", *_CODE).splitlines()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None, ""
    added = [_as_added(source, name) for name in untracked if name.endswith(_UNTRACKED)]
    diff = "\n".join(part for part in (changed, *added) if part)
    return commit[:12] + ("+" if diff else ""), diff


def _as_added(source: Path, name: str) -> str:
    """The difference that adds an untracked file."""
    try:
        lines = (source / name).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(difflib.unified_diff([], lines, "/dev/null", f"b/{name}", lineterm=""))


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=True)
    return done.stdout.strip()


def packages() -> dict[str, str]:
    """Versions of the packages that decide results."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def environment() -> dict[str, Any]:
    """Host, system, Python, packages, hardware, and what Slurm's variables say of this process."""
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": packages(),
        "machine": machine(),
        "slurm": {key: os.environ[key] for key in _SLURM_KEYS if key in os.environ},
    }


def cpu_name() -> str:
    """The model of this machine's processor."""
    return _found_in("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """CPU, cores (all, and those this process may use), memory in GiB; GPUs and their driver where torch sees any."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "usable_cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }
    torch = sys.modules.get("torch")  # a job has imported it; other processes need not
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["driver"] = _found_in("/proc/driver/nvidia/version", r"\b(\d+\.\d+(?:\.\d+)?)\b")
        found["cuda"] = torch.version.cuda
    return found


def _found_in(file: str, pattern: str) -> str | None:
    """The first match of the pattern's group in a file of the system; None without a match or without the file."""
    try:
        match = re.search(pattern, Path(file).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return match[1].strip() if match else None
