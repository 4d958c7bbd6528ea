"""Claims: how an attempt at a cell is taken, and how its job writes without touching what a later owner has written.

A claim is a file that cannot be made twice, with a token of its own. Every write of a job happens in `Hold.writing`:
under a lock that belongs to the cell, after a look at whether the claim is still there, has this token, and is the
newest one. Whoever claims takes the same lock. So a job that stalls before a write finds itself superseded, and one
that stalls in a write keeps others from claiming until it goes on or dies. The lock lies beside the run folder: it
stays when somebody removes that.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import fsync, put_new, read_json, write_atomic, write_json
from harness.processes import file_lock
from harness.runs.attempts import Attempts
from harness.runs.layout import EVALUATING, TRAINING
from harness.runs.records import Claim

#: How long a claim waits for a job that is just writing, in seconds.
PATIENCE_SECONDS = 2.0


class SupersededError(RuntimeError):
    """The claim of this job is gone, or a later attempt has the cell; the job must not write any more."""


class Claims(Attempts):
    """The attempts at one cell on one track, and how to claim the next one."""

    def claim(self, number: int, claim: Claim, *, durable: bool = True) -> Hold | None:
        """Claim attempt `number`; None when somebody else has it.

        Many claims are made quicker with `durable` False; each needs a `sync_claim` before its job is submitted.

        Raises:
            HeldError: a job stalls in the middle of a write.
        """
        hold, path = Hold(self, number, uuid.uuid4().hex[:12]), self.attempt_file(number)
        text = json.dumps({**claim, "token": hold.token}, indent=1)
        self.lock_file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.locked(PATIENCE_SECONDS):
                write_atomic(path, lambda file: file.write_text(text), durable=durable, put=put_new)
        except FileExistsError:
            return None
        return hold

    def locked(self, patience: float = math.inf) -> contextlib.AbstractContextManager[None]:
        """The lock under which claims are made and jobs write; see `harness.processes.file_lock`."""
        return file_lock(self.lock_file, "a job or a launch", patience)

    def sync_claim(self, number: int) -> None:
        """Make the claim of attempt `number` and the file of the cell durable, once the folder of all runs is."""
        for path in (self.cell_file, self.attempt_file(number), self.attempts_folder, self.folder):
            fsync(path)

    def record(self, number: int, event: str, value: Mapping[str, Any], *, durable: bool = True) -> None:
        """Write an event of attempt `number`: submitted, started, ended or cancelled. Jobs use `Hold.record`."""
        write_json(self.attempt_file(number, event), value, durable=durable)

    def release(self, number: int) -> None:
        """Remove a claim whose job was not submitted, and the run when it holds nothing else."""
        with self.locked():
            self.attempt_file(number).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.attempts_folder.rmdir()
                if [path.name for path in self.folder.iterdir()] == [self.cell_file.name]:
                    self.cell_file.unlink()
                    self.folder.rmdir()

    def remove_temporary_files(self) -> None:
        """Remove the half-written files of a killed job. Only the owner of the run may call this.

        While a job of the other track works, the folders that it writes are left alone. Launchers too write claims and
        events: `Study.remove_leftovers` cleans those.
        """
        folders = [self.folder]
        if self.on(EVALUATING if self.track == TRAINING else TRAINING).live() is not None:
            folders = [self.folder / "checkpoints"] if self.track == TRAINING else []
        for folder in folders:
            for leftover in folder.rglob(".*.tmp"):
                if leftover.parent.name not in (TRAINING, EVALUATING):
                    leftover.unlink(missing_ok=True)


#: Locks that this process holds for its threads: of each, how many are in it, and what lets go of it.
_TOGETHER: dict[Path, tuple[int, contextlib.ExitStack]] = {}
_TURN = threading.Lock()


@contextlib.contextmanager
def _held_together(path: Path, lock: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """Hold a lock that the threads of this process share: the first one takes it, the last one lets go of it."""
    with _TURN:
        count, stack = _TOGETHER.get(path, (0, contextlib.ExitStack()))
        if not count:
            stack.enter_context(lock())
        _TOGETHER[path] = count + 1, stack
    try:
        yield
    finally:
        with _TURN:
            count, stack = _TOGETHER.pop(path)
            if count > 1:
                _TOGETHER[path] = count - 1, stack
            else:
                stack.close()


@dataclass(frozen=True)
class Hold:
    """A claim, for the job that has it."""

    run: Claims
    number: int
    token: str

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Write in here: while the claim is this job's, and with the cell's lock, which no other process may hold.

        Several threads of a job may be in here at once, each writing files of its own.

        Raises:
            SupersededError: the claim is gone, or a later attempt has the cell.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_held_together(self.run.lock_file, self.run.locked))
            except FileNotFoundError:  # the folder of all runs was removed
                raise SupersededError(self._gone) from None
            self._check()
            yield

    def record(self, event: str, value: Mapping[str, Any]) -> None:
        """Write an event of this attempt, as its job.

        Raises:
            SupersededError: see `writing`.
        """
        with self.writing():
            self.run.record(self.number, event, {**value, "token": self.token})

    def require_claim(self) -> None:
        """Check that the claim is there, whether or not a later attempt has the cell.

        Raises:
            SupersededError: it is not.
        """
        claim = read_json(self.run.attempt_file(self.number))
        if claim is None or claim.get("token") != self.token:
            raise SupersededError(self._gone)

    def _check(self) -> None:
        self.require_claim()
        if self.run.attempt_file(self.number + 1).exists():
            raise SupersededError(f"attempt {self.number} of {self.run.cell_id} was taken over by a later one")

    @property
    def _gone(self) -> str:
        return f"the claim of attempt {self.number} of {self.run.cell_id} is gone: somebody has removed its folder"
