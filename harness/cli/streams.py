"""stdout and stderr as the user gave them: closed, on a terminal that goes away, or in an encoding of few letters."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

#: What a shell reports of a command whose reader went away: 128 + SIGPIPE.
BROKEN_PIPE = 141


def prepare() -> None:
    """Make the streams fit to print anything to: see the module. Called first of all."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed (`>&-`): the next file that is opened would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or cast(TextIO, open(1, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    sys.stderr = sys.stderr or cast(TextIO, open(2, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a letter that the encoding lacks is no reason to fail
    for name in ("COLUMNS", "LINES"):  # "0" is what some programs set where there is no terminal
        if not os.environ.get(name, "1").strip("0"):
            del os.environ[name]


def flush() -> None:
    """Write what is still in memory, so that an error is met here and not when Python ends."""
    sys.stdout.flush()
    sys.stderr.flush()


def silence(*streams: TextIO) -> None:
    """Let these streams write to nowhere from here on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class _Lasting:
    """A stream that is written to as long as somebody reads it, and to nowhere after that."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # a closed pipe, a terminal that is gone
                raise
            silence(self._stream)

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting() -> Iterator[None]:
    """In here, work goes on although nobody reads what it prints any more."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Lasting(stream)) for stream in before)
    try:
        yield
    finally:
        flush()
        sys.stdout, sys.stderr = before
