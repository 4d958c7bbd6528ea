"""The last words of a process that ended before its job began: they stand in its executor's files, not in the log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

#: How many of its last lines are kept.
LINES = 12

#: How much of the end of a file is read, in bytes.
_TAIL_BYTES = 16_384

#: What submitit itself writes, well or not.
_OF_SUBMITIT = re.compile(r"submitit (INFO|WARNING|ERROR) \(")

_FRAME = re.compile(r'\s*File "(.+)", line (\d+)')

_TRACEBACK = "Traceback (most recent call last)"


class LastWords(NamedTuple):
    """What a process printed last.

    Attributes:
        lines: its last lines; none where it printed nothing, as one that was killed.
        place: file and line that its traceback ends at; empty without one.
        raised: whether it ended by an error of Python's, which comes again when it is started again.
    """

    lines: tuple[str, ...] = ()
    place: str = ""
    raised: bool = False

    def __str__(self) -> str:
        """The last line, and where that was."""
        line = self.lines[-1].strip() if self.lines else ""
        return f"{line} ({self.place})" if self.place else line


NO_WORDS = LastWords()


def last_words(folder: Path, job: str) -> LastWords:
    """What the processes of a job have printed last.

    Args:
        folder: submitit's.
        job: submitit's number of the job.
    """
    found: list[str] = []
    for path in (*folder.glob(f"{job}.err"), *sorted(folder.glob(f"{job}_*_log.*"))):
        found += [line for line in _tail(path) if line.strip() and not _OF_SUBMITIT.match(line)]
    frames = [frame for line in found if (frame := _FRAME.match(line))]
    place = f"{frames[-1][1]}:{frames[-1][2]}" if frames else ""
    raised = any(line.startswith(_TRACEBACK) or _FRAME.match(line) for line in found)
    return LastWords(tuple(found[-LINES:]), place, raised)


def _tail(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
