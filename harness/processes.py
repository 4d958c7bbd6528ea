"""Identify processes, tell whether they live, and let only one of them do a piece of work."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from harness.errors import InputError

#: A process counts as the recorded one when the start times differ by less than this (clock ticks are coarse).
_START_TOLERANCE = 2.0


def now() -> str:
    """UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Identifies one boot of a machine; pids mean nothing across boots."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{int(psutil.boot_time())}"


def process_identity(pid: int | None = None) -> dict[str, Any]:
    """What identifies a process for good: host, boot, pid and start time."""
    process = psutil.Process(pid)
    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": process.pid,
        "started": process.create_time(),
        "ticks": _ticks(process.pid),
    }


def _ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; setting the clock does not change it."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def is_alive(identity: dict[str, Any] | None) -> bool | None:
    """Whether the process lives; None when it cannot be known from here (another host)."""
    if not identity:
        return False
    if identity.get("host") != socket.gethostname():
        return None
    if identity.get("boot") != boot_id():
        return False
    try:
        process = psutil.Process(int(identity["pid"]))
        ticks = identity.get("ticks")
        if ticks is not None and (mine := _ticks(process.pid)) is not None:
            same = mine == ticks
        else:
            same = abs(process.create_time() - float(identity["started"])) < _START_TOLERANCE
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError):
        return False


class HeldError(InputError):
    """Another process is at work on a folder."""


@contextlib.contextmanager
def exclusive(folder: Path, work: str) -> Iterator[None]:
    """Lock `folder` (made if need be) against other processes; the system releases it when this process dies.

    Raises:
        HeldError: another process holds it.
        InputError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise HeldError(f"{folder}: {lock.read() or 'another process'} is at work on it; wait for it") from None
        lock.truncate(0)
        lock.write(f"{work}, process {os.getpid()} on {socket.gethostname()},")
        lock.flush()
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield
