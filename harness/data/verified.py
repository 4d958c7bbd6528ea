"""Which files match their checksums: read once by a launch, and believed until a file changes. Imports no torch."""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import InputError
from harness.files import read_json, write_json
from harness.processes import now
from harness.threads import helpers

#: From so many bytes on, it is said that they are read.
_WORTH_A_LINE = 1e9


class Verified:
    """The files of a folder that were read and match.

    Args:
        folder: of the files.
        record: a file that holds, for each one, what tells whether it has changed since; jobs only read it.
    """

    def __init__(self, folder: Path, record: Path) -> None:
        self._folder, self._record = folder, record
        self._known: Mapping[str, Any] = (read_json(record, ("files",)) or {"files": {}})["files"]

    def require(self, name: str, checksum: str) -> None:
        """Check that a file matches its checksum; one that was read before, and has not changed, is not read again.

        Raises:
            InputError: it is missing or damaged.
        """
        path = self._folder / name
        if not self._trusts(name, _stamp(path, checksum)) and not is_whole(path, checksum):
            raise InputError(f"{path}: missing or damaged (its checksum differs); make it again: dit-harness encode")

    def verify(self, checksums: Mapping[str, str], say: Callable[[str], None]) -> None:
        """Read the files that are new or have changed, by as many threads as cores, and record those that match.

        Args:
            checksums: by the name of the file.
            say: takes a line, when there is much to read.

        Raises:
            InputError: a file is missing or damaged; the others are recorded all the same.
        """
        stamps = {name: _stamp(self._folder / name, checksum) for name, checksum in checksums.items()}
        new = [name for name, stamp in stamps.items() if not self._trusts(name, stamp)]
        if not new:
            return
        if (size := sum((stamps[name] or [0])[0] for name in new)) > _WORTH_A_LINE:
            say(f"reads {size / 1e9:.0f} GB in {self._folder} once, to check them")
        with helpers("checksums", os.cpu_count() or 1) as pool:  # zlib lets go of the interpreter lock
            whole = list(pool.map(lambda name: is_whole(self._folder / name, checksums[name]), new))
        odd = [name for name, matches in zip(new, whole, strict=True) if not matches]
        self._known = {name: stamp for name, stamp in stamps.items() if name not in odd}
        by = f"process {os.getpid()} on {socket.gethostname()}"
        write_json(self._record, {"by": by, "time": now(), "files": dict(self._known)})
        for name in odd:
            self.require(name, checksums[name])

    def _trusts(self, name: str, stamp: list[Any] | None) -> bool:
        return stamp is not None and self._known.get(name) == stamp


def checksum_of(path: Path) -> str:
    """CRC32 of a file's bytes, as hexadecimal digits."""
    return f"{zlib.crc32(np.memmap(path, np.uint8, 'r').data):08x}"


def is_whole(path: Path, checksum: str) -> bool:
    """Whether a file is there and has this checksum."""
    return path.is_file() and path.stat().st_size > 0 and checksum_of(path) == checksum


def _stamp(path: Path, checksum: str) -> list[Any] | None:
    """What changes when a file is changed, replaced or copied, and the checksum that it is to have."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino, checksum]
