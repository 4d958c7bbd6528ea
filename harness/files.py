"""Files that are whole or absent: atomic writes, and JSON that counts as not written when it is torn."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from harness.errors import DiskFullError

#: Longest part of a file's name that is for people, in UTF-8; some file systems take 143 bytes of a whole name.
NAME_BYTES = 100

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk, or the quota, is full; safetensors passes it on as text only."""
    if not isinstance(error, OSError):
        return False
    return isinstance(error, DiskFullError) or error.errno in _FULL or os.strerror(errno.ENOSPC) in str(error)


@contextlib.contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turn the system's "no space" into one line that says what could not be written, and how much is free."""
    try:
        yield
    except OSError as error:
        if not is_full(error) or isinstance(error, DiskFullError):
            raise
        what = "the quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
        free = shutil.disk_usage(next(folder for folder in path.parents if folder.exists())).free / 1e6
        raise DiskFullError(f"{path}: cannot be written: {what} ({free:.1f} MB free, too little for it)") from error


def file_name(name: str, ending: str) -> str:
    """A name for people as the name of a file: cut to `NAME_BYTES`, with an ending that tells it from others."""
    return name.encode(errors="surrogateescape")[:NAME_BYTES].decode(errors="ignore") + ending


def write_atomic(
    path: Path,
    write: Callable[[Path], object],
    *,
    durable: bool = True,
    put: Callable[[Path, Path], object] = Path.replace,
) -> None:
    """Let `write` fill a temporary file beside `path`, fsync it and rename it into place: whole or not at all.

    Without `durable` nothing waits for the disk: a power cut (but no kill) may leave the file empty. `put` replaces
    the renaming; with `os.link` a file that is there already stays.

    Raises:
        DiskFullError: there is no space for it.
    """
    with full_disk_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # a temporary name is longer than the file's own, which may be as long as any can be
        handle, name = tempfile.mkstemp(prefix=file_name(f".{path.name}", "."), suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            if durable:
                fsync(temporary)
            temporary.chmod(0o644)
            put(temporary, path)
            if durable:
                fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file atomically."""
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a small text file atomically; for `durable` see `write_atomic`."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write JSON atomically; NaN is refused. For `durable` see `write_atomic`."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object of a file; None when it is absent, torn or no object (then it counts as not written)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def file_hash(path: Path) -> str:
    """Sha256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def large_file_hash(path: Path) -> str:
    """As `file_hash`; as long as size and time of the file stay, it is read once."""
    status = path.stat()
    return _known_hash(path, status.st_mtime_ns, status.st_size)


@cache
def _known_hash(path: Path, modified: int, size: int) -> str:
    return file_hash(path)


def fsync(path: Path) -> None:
    """Make what a file holds last, or the renames and links in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=64)
def _clock_offset(folder: Path, minute: int) -> float:
    """What the file system's clock is ahead of the monotonic one; this machine's own clock where it cannot be asked.

    An unnamed file (where there are none, one that is removed at once) carries the file server's time.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b".")
            file.flush()
            return os.fstat(file.fileno()).st_mtime - time.monotonic()
    except OSError:
        return time.time() - time.monotonic()


def file_clock(folder: Path) -> float:
    """Now, by the clock that stamps the files of `folder` (s since 1970), however wrong this machine's clock is.

    Asked once a minute; in between the monotonic clock counts.
    """
    moment = time.monotonic()
    return _clock_offset(folder, int(moment / 60)) + moment
