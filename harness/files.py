"""Files that are whole or absent: atomic writes, and JSON that counts as absent when it is torn."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from harness.errors import DiskFullError, NonFiniteError

#: How many of the numbers that are not finite are named.
_NAMED = 5

#: Longest part of a file's name that is for people, in UTF-8; some file systems take 143 bytes of a whole name.
NAME_BYTES = 100

_FULL = (errno.ENOSPC, errno.EDQUOT)

#: How file systems without hard links answer; EPERM is Linux's own word for it.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def is_full(error: BaseException) -> bool:
    """Whether an error means that the disk or the quota is full; of an error from safetensors only the text tells."""
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

    Without `durable` nothing waits for the disk: a power cut (but not a kill) may leave the file empty. `put` replaces
    the rename; with `put_new` an existing file stays.

    Raises:
        DiskFullError: there is no space for it.
    """
    with full_disk_named(path):
        _make_folder(path.parent, durable)
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


def _make_folder(folder: Path, durable: bool) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent, durable)
    folder.mkdir(exist_ok=True)
    if durable:
        fsync(folder.parent)


def put_new(temporary: Path, path: Path) -> None:
    """Put a file where none is. A hard link is whole, and cannot be made twice.

    A file system without hard links gets a new file, which others may see half-written for a moment.

    Raises:
        FileExistsError: there is one.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with path.open("xb") as file:
            file.write(temporary.read_bytes())
            file.flush()
            os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file atomically."""
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a small text file atomically; for `durable` see `write_atomic`."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=durable)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write JSON atomically. For `durable` see `write_atomic`.

    Raises:
        NonFiniteError: a number is not finite; its keys are named, and nothing is written.
    """
    if odd := list(_not_finite(value)):
        raise NonFiniteError(f"{path.name}: {len(odd)} numbers are not finite: {', '.join(odd[:_NAMED])}")
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", durable=durable)


def _not_finite(value: Any, key: str = "") -> Iterator[str]:
    """The keys of the numbers in a JSON value that are not finite."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_finite(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _not_finite(inner, f"{key}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key} is {value}"


def read_json(path: Path, keys: Collection[str] = ()) -> dict[str, Any] | None:
    """The JSON object of a file; None when it is absent, torn, no object or lacks a key: all count as not written.

    A byte order mark is skipped. What Python cannot read, such as a number of thousands of digits, is torn.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.keys() >= set(keys) else None


def at_home(path: str) -> str:
    """A path as a user writes it, with the home for a leading `~`; that of an unknown user stays, and is not there."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path


def file_hash(path: Path) -> str:
    """Sha256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def large_file_hash(path: Path) -> str:
    """As `file_hash`, but reads the file again only after its size or time changed."""
    status = path.stat()
    return _known_hash(path, status.st_mtime_ns, status.st_size)


@cache
def _known_hash(path: Path, modified: int, size: int) -> str:
    return file_hash(path)


def fsync(path: Path) -> None:
    """Make the content of a file durable, or the renames and links in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=64)
def _clock_offset(folder: Path, minute: int) -> float:
    """By how much the file system's clock is ahead of the monotonic one; if no file can be written, this machine's own.

    The time of a new temporary file is the file server's.
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

    It is read once a minute; in between, the monotonic clock counts on.
    """
    moment = time.monotonic()
    return _clock_offset(folder, int(moment / 60)) + moment
