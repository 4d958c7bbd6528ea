"""Identify processes, tell whether they live, and let only one of them do a piece of work."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from harness.errors import InputError

_LOG = logging.getLogger(__name__)

#: How often a lock that another process holds is tried again, in seconds.
_LOCK_POLL_SECONDS = 0.02

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
    """What identifies a process for good: host, boot, PID namespace, pid and start time."""
    process = psutil.Process(pid)
    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "namespace": _pid_namespace(),
        "pid": process.pid,
        "started": process.create_time(),
        "ticks": _ticks(process.pid),
    }


def _pid_namespace() -> str | None:
    """The namespace in which pids count here: two containers on one machine have the same pids for other processes."""
    return _namespace_of(os.getpid())


@lru_cache(maxsize=1)  # a process stays in its own; a forked one may be in another
def _namespace_of(pid: int) -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; setting the clock does not change it."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def unseen(identity: Mapping[str, Any]) -> str:
    """Why it cannot be known from here whether the process lives ("of host node7"); empty when it can."""
    host, namespace = identity.get("host"), identity.get("namespace")
    if host != socket.gethostname():
        return f"of host {host}"
    if identity.get("boot") != boot_id():
        return f"of another machine named {host}, or of this one before its last start,"
    if namespace is not None and namespace != _pid_namespace():  # version 0.1.0 wrote none
        return "in another PID namespace (a container)"
    return f"behind a /proc that hides process {identity.get('pid')}" if _is_hidden(identity) else ""


def _is_hidden(identity: Mapping[str, Any]) -> bool:
    """Whether there is such a process, and /proc does not show it (hidepid, or no /proc)."""
    try:
        pid = int(identity["pid"])
        os.kill(pid, 0)
    except PermissionError:
        pass  # it exists, and belongs to another user
    except (OSError, KeyError, ValueError, TypeError, OverflowError):
        return False
    return sys.platform == "linux" and _ticks(pid) is None


def is_alive(identity: Mapping[str, Any] | None) -> bool | None:
    """Whether the process lives; None when it cannot be known from here (see `unseen`)."""
    if not identity:
        return False
    if unseen(identity):
        return None
    try:
        process = psutil.Process(int(identity["pid"]))
        ticks = identity.get("ticks")
        if ticks is not None and (mine := _ticks(process.pid)) is not None:
            same = mine == ticks
        else:
            same = abs(process.create_time() - float(identity["started"])) < _START_TOLERANCE
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return None
    except (psutil.Error, KeyError, ValueError, TypeError):
        return False


def signal_process(identity: Mapping[str, Any] | None, number: int) -> bool:
    """Send a signal to a process that is known to live here; returns whether so. Its pid may be another's by now."""
    if identity is None or not is_alive(identity):
        return False
    try:
        os.kill(int(identity["pid"]), number)
    except OSError:
        return False
    return True


class HeldError(InputError):
    """Another process is at work on a folder; `holder` says which, and on what."""

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


@contextlib.contextmanager
def file_lock(path: Path, work: str, patience: float = math.inf) -> Iterator[None]:
    """Hold the lock of a file against all other processes; the system lets go of it when this process dies.

    A file system without locks (ENOLCK, ENOTSUP) gives none; the log says so once.

    Args:
        path: the file, made if need be; its folder must be there. Other processes read in it who holds the lock.
        work: what this process does, for them.
        patience: how long to wait, in seconds.

    Raises:
        HeldError: another process holds it, and `patience` is over.
        FileNotFoundError: the folder is gone.
    """
    deadline = time.monotonic() + patience
    while True:
        with path.open("a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    lock.seek(0)
                    raise HeldError(lock.read() or "another process") from None
                time.sleep(_LOCK_POLL_SECONDS)
                continue
            except OSError as error:
                _note_no_locks(path.parent, error.strerror)
            if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                continue  # somebody removed the file meanwhile, and others would lock a new one
            lock.truncate(0)
            lock.write(f"{work}, process {os.getpid()} on {socket.gethostname()},")
            lock.flush()
            yield
            return


@lru_cache(maxsize=64)
def _note_no_locks(folder: Path, reason: str) -> None:
    _LOG.warning(
        "note: %s: no file locks (%s): a job that stalls in a write may finish it after a takeover", folder, reason
    )


@contextlib.contextmanager
def exclusive(folder: Path, work: str) -> Iterator[None]:
    """Lock `folder` (made if need be) against other processes, and remove the half-written files of a killed one.

    The lock lies beside the folder: it stays when somebody removes that while a process works on it.

    Raises:
        HeldError: another process holds it.
        InputError: it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locks = folder.parent / ".locks"
            locks.mkdir(exist_ok=True)
            stack.enter_context(file_lock(locks / folder.name, work, patience=0))
        except HeldError as error:
            raise HeldError(f"{folder}: {error} is at work on it; wait for it", str(error).rstrip(",")) from None
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror}") from None
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield
