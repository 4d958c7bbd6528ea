"""The errors a user can cause or meet, each shown as one line."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The first line of an error's message; without a message, the name of its class."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class InputError(ValueError):
    """Bad input: nothing was started. Shown as one line, exit code 2.

    The message names the file, the key and what is allowed.
    """


class CellFailedError(RuntimeError):
    """A cell cannot go on. The others are left alone; exit code 1."""


class NonFiniteLossError(CellFailedError):
    """The loss became infinite or NaN."""


class DiskFullError(OSError):
    """A file could not be written because the disk or the quota is full; an older file in its place is untouched."""
