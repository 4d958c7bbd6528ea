"""Why attempts failed, and what helps: for an error, an attempt, and the cells of a study. Imports no torch."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.errors import CellFailedError, DiskFullError, InputError, NonFiniteError
from harness.files import is_full
from harness.runs.attempts import Attempt
from harness.runs.words import LastWords

#: How many of its last lines of a traceback the attempt's record keeps; the log holds it whole.
TRACEBACK_LINES = 12

#: How many cells a summary names; it counts the others.
NAMED_CELLS = 3


class Cause(StrEnum):
    """The kind of trouble that ended an attempt."""

    MEMORY = "out of memory"
    NON_FINITE = "non-finite"
    NODE = "node"
    TIME = "time limit"
    DISK = "disk"
    INPUT = "bad input"
    CODE = "code"
    START = "did not start"
    LOST = "lost"

    @classmethod
    def _missing_(cls, value: object) -> Cause | None:
        """What records of older versions say."""
        return cls.NON_FINITE if value == "non-finite loss" else None


#: What helps against each cause; a summary prints it after the cause.
ADVICE = {
    Cause.MEMORY: "ask for more memory, or for less of it at once (training: micro_batch, recompute; else: "
    "sampling_batch, fewer slots); then --retry",
    Cause.NON_FINITE: "lower the learning rate (another cell), or mend what the message names; a --retry ends alike",
    Cause.NODE: "look at the node, or avoid it; then --retry",
    Cause.TIME: "ask for more time, or write checkpoints more often; then launch again",
    Cause.DISK: "make room; then --retry, which goes on from the last checkpoint",
    Cause.INPUT: "mend what the message names; then --retry",
    Cause.CODE: "mend the code at that line (logs CELL shows the traceback); then --retry",
    Cause.START: "mend what its last lines name (logs CELL shows more of them); then --retry",
    Cause.LOST: "killed by somebody, or by the system for its memory; launching again goes on from the last checkpoint",
}

#: What the messages of libraries contain, in lower case.
_MEMORY_WORDS = (
    "out of memory",
    "not enough memory",
    "cannot allocate memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "failed to map segment",
    "can't start new thread",
    "bad_alloc",
)

_NODE_WORDS = (
    "uncorrectable ecc",
    "no cuda-capable device",
    "no cuda gpus are available",
    "cuda driver",
    "fallen off the bus",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
    "torch sees no gpu",
    "stale file handle",
    "input/output error",
)

_INPUT_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)

#: Slurm's words for the end of a job.
_SLURM_CAUSES = {
    "OUT_OF_MEMORY": Cause.MEMORY,
    "TIMEOUT": Cause.TIME,
    "DEADLINE": Cause.TIME,
    "NODE_FAIL": Cause.NODE,
    "BOOT_FAIL": Cause.NODE,
}


def classify(error: BaseException) -> Cause:
    """The cause of an error that ended a job."""
    text = f"{type(error).__name__}: {error}".lower()
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    # torch's OutOfMemoryError is known by its name, so that this module does not import torch
    if isinstance(error, MemoryError) or no_memory or type(error).__name__ == "OutOfMemoryError":
        return Cause.MEMORY
    if isinstance(error, NonFiniteError):
        return Cause.NON_FINITE
    if is_full(error):
        return Cause.DISK
    if isinstance(error, (RuntimeError, OSError, ImportError)):
        if any(words in text for words in _MEMORY_WORDS):
            return Cause.MEMORY
        if any(words in text for words in _NODE_WORDS):
            return Cause.NODE
    if isinstance(error, (InputError, CellFailedError, *_INPUT_ERRORS)):
        return Cause.INPUT
    return Cause.CODE


def describe(error: BaseException) -> dict[str, Any]:
    """What `attempts/NNN.ended.json` keeps of an error.

    Returns:
        `cause`; for an error whose message does not say enough also `where` (see there) and `traceback` (last lines).
    """
    cause = classify(error)
    if isinstance(error, (CellFailedError, InputError, DiskFullError)):
        return {"cause": str(cause)}
    lines = "".join(traceback.format_exception(error)).splitlines()[-TRACEBACK_LINES:]
    return {"cause": str(cause), "where": where(error), "traceback": lines}


def describe_words(words: LastWords) -> dict[str, Any]:
    """What `attempts/NNN.ended.json` keeps of a process that ended before its job began: `cause` and `traceback`."""
    return {"cause": str(_cause_of_words(words)), "traceback": list(words.lines)}


def _cause_of_words(words: LastWords) -> Cause:
    text = " ".join(words.lines).lower()
    if "MemoryError" in words.lines[-1] or any(known in text for known in _MEMORY_WORDS):
        return Cause.MEMORY
    return Cause.DISK if os.strerror(errno.ENOSPC).lower() in text else Cause.START


def where(error: BaseException) -> str:
    """The error's type and the innermost line of this project in its traceback: "KeyError at harness/train.py:123"."""
    source = Path(__file__).resolve().parents[2]
    frames = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if Path(frame.filename).is_relative_to(source / "harness")]
    if not frames:
        return type(error).__name__
    frame = (here or frames)[-1]
    path = Path(frame.filename)
    name = path.relative_to(source).as_posix() if path.is_relative_to(source) else path.name
    return f"{type(error).__name__} at {name}:{frame.lineno}"


def cause_of(attempt: Attempt) -> Cause | None:
    """The cause of a failed attempt, from its record, or of a lost one, from the scheduler's word for its state.

    None for other attempts, and for failures of old versions, which recorded no cause.
    """
    if attempt.outcome == "failed":
        cause = (attempt.ended or {}).get("cause")
        try:
            return None if cause is None else Cause(cause)
        except ValueError:  # of a later version
            return None
    if attempt.outcome != "lost":
        return None
    word = attempt.seen.word if attempt.seen else ""
    if attempt.words.lines and word not in _SLURM_CAUSES:
        return _cause_of_words(attempt.words)
    return _SLURM_CAUSES.get(word, Cause.NODE if attempt.unseen else Cause.LOST)


@dataclass(frozen=True)
class Trouble:
    """Cells that failed by the same cause."""

    cause: Cause
    where: str  # for errors in the code; else empty
    cells: list[str]
    message: str  # of the first cell

    def __str__(self) -> str:
        """One line: how many cells, the cause, some names, the first message, and what helps."""
        count = f"{len(self.cells)} cell{'s' * (len(self.cells) != 1)}"
        more = f" and {len(self.cells) - NAMED_CELLS} more" if len(self.cells) > NAMED_CELLS else ""
        cause = f"{self.cause}, {self.where}" if self.where else str(self.cause)
        named = ", ".join(self.cells[:NAMED_CELLS]) + more
        return f"{count}: {cause} ({named}): {' '.join(self.message.split())} -> {ADVICE[self.cause]}"


def group(ended: Iterable[tuple[str, Attempt, str]]) -> list[Trouble]:
    """Failed and lost cells by cause, the most frequent first.

    Args:
        ended: for each cell its name, its last attempt, and the message of its state.
    """
    groups: dict[tuple[Cause, str], Trouble] = {}
    for name, attempt, message in ended:
        cause = cause_of(attempt)
        if cause is None:
            continue
        place = str((attempt.ended or {}).get("where", "")) if cause == Cause.CODE else ""
        trouble = groups.setdefault((cause, place), Trouble(cause, place, [], message))
        trouble.cells.append(name)
    return sorted(groups.values(), key=lambda trouble: -len(trouble.cells))
