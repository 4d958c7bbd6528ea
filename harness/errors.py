"""The errors a user can cause or meet, each shown as one line."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


def first_line(error: Exception) -> str:
    """The first line of an error's message; without a message, the name of its class."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """The known name that looks most like an unknown one, as " (did you mean depth?)"; empty where none does."""
    close = difflib.get_close_matches(name, list(allowed), 1)
    return f" (did you mean {close[0]}?)" if close else ""


class InputError(ValueError):
    """Bad input: nothing was started. Shown as one line, exit code 2.

    The message names the file, the key and what is allowed.
    """


class CellFailedError(RuntimeError):
    """A cell cannot go on. The others are left alone; exit code 1."""


class NonFiniteError(CellFailedError, ValueError):
    """A value became infinite or no number. The message says how many of how many, and where.

    It is never written as a pixel, a latent, a statistic, a weight or a metric.
    """


@contextlib.contextmanager
def non_finite_in(where: str) -> Iterator[None]:
    """Say where a value that is not finite was found: `where` comes before the message of a `NonFiniteError`."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{where}: {error}") from error


class DiskFullError(OSError):
    """A file could not be written because the disk or the quota is full; an older file in its place is untouched."""
