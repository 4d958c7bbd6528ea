"""The run folder: every path, atomic writes, attempts and state. No other module joins paths inside a run.

    results/<study>/runs/<readable-name>-<cell id>/
      cell.json           the cell and its name
      attempts/001.json   the claim of attempt 1, a whole file hard-linked into place: it cannot be made twice
               001.submitted.json, 001.started.json, 001.ended.json    written once each, by launcher and job
      progress.json       where the running job is; its age is the job's heartbeat
      train.jsonl         losses
      checkpoints/        state-<step>.safetensors (to resume), weights-<step>.safetensors (to evaluate)
      samples/            generated images, by evaluation
      evaluations/        <evaluation id>@<step>.json
      log                 what the job printed

Imports no torch: `status`, `collect` and a launch that finds everything done start without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import psutil

from harness.cell import ID_DIGITS, Cell
from harness.errors import InputError

#: A job of another machine is taken for dead when its progress file has not changed for so long.
HEARTBEAT_SECONDS = 300.0

#: A process counts as the recorded one when the start times differ by less than this (clock ticks are coarse).
_START_TOLERANCE = 2.0


class State(StrEnum):
    """Where a cell is. A pure reading of its run folder."""

    MISSING = "missing"
    QUEUED = "queued"
    RUNNING = "running"
    PARTIAL = "partial"  # trained, evaluations owed
    INTERRUPTED = "interrupted"  # begun, stopped or lost, no job alive; the next launch resumes it
    DONE = "done"
    FAILED = "failed"


class SupersededError(RuntimeError):
    """A later attempt has taken this cell over; this job must not write any more."""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, fsync it and rename it into place: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        _fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """The JSON of a file; None when it is absent or torn (then it counts as not written)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def now() -> str:
    """UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=1)
def boot_id() -> str:
    """What tells one boot of a machine from another; pids mean nothing across boots."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{int(psutil.boot_time())}"


def process_identity(pid: int | None = None) -> dict[str, Any]:
    """What identifies a process for good: host, boot, pid and start time."""
    process = psutil.Process(pid)
    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": process.pid,
        "started": process.create_time(),
    }


def is_alive(identity: dict[str, Any] | None) -> bool | None:
    """Whether the process lives; None when it cannot be known from here (another host)."""
    if not identity:
        return False
    if identity.get("host") != socket.gethostname():
        return None
    if identity.get("boot") != boot_id():
        return False
    try:
        process = psutil.Process(int(identity["pid"]))
        same = abs(process.create_time() - float(identity["started"])) < _START_TOLERANCE
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError):
        return False


@dataclass(frozen=True)
class Attempt:
    """One attempt at a cell, as its files tell it."""

    number: int
    claim: dict[str, Any]
    submitted: dict[str, Any] | None
    started: dict[str, Any] | None
    ended: dict[str, Any] | None
    heartbeat_age: float  # seconds; decides only for a job of another host

    @property
    def live(self) -> bool:
        """Whether something still works, or is about to work, on this attempt.

        The job itself is asked once it is known, else what was submitted, else the launcher that claimed.
        """
        if self.ended is not None:
            return False
        alive = is_alive((self.started or self.submitted or self.claim).get("process"))
        return self.heartbeat_age < HEARTBEAT_SECONDS if alive is None else alive

    @property
    def outcome(self) -> str:
        """running, or how it ended: done, failed, stopped (by a signal), lost (ended without a word)."""
        if self.ended is not None:
            return str(self.ended.get("outcome", "lost"))
        return "running" if self.live else "lost"


@dataclass(frozen=True)
class RunState:
    """The state of a cell and what explains it."""

    state: State
    attempt: Attempt | None
    message: str
    progress: dict[str, Any] | None


class Run:
    """The folder of one cell."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # paths

    @property
    def cell_file(self) -> Path:
        """The cell and its name."""
        return self.folder / "cell.json"

    @property
    def attempts_folder(self) -> Path:
        """Claims and their fate."""
        return self.folder / "attempts"

    @property
    def progress_file(self) -> Path:
        """Where the running job is."""
        return self.folder / "progress.json"

    @property
    def train_log(self) -> Path:
        """Losses, as JSON lines."""
        return self.folder / "train.jsonl"

    @property
    def log(self) -> Path:
        """What the job printed."""
        return self.folder / "log"

    @property
    def submitit_folder(self) -> Path:
        """Submitit's own files."""
        return self.folder / "submitit"

    def state_file(self, step: int) -> Path:
        """The full training state after `step` steps."""
        return self.folder / "checkpoints" / f"state-{step:08d}.safetensors"

    def weights_file(self, step: int) -> Path:
        """Weights and averaged weights after `step` steps."""
        return self.folder / "checkpoints" / f"weights-{step:08d}.safetensors"

    def state_files(self) -> list[Path]:
        """All training states, the newest first."""
        return sorted((self.folder / "checkpoints").glob("state-*.safetensors"), reverse=True)

    def evaluation_file(self, key: str) -> Path:
        """The record of one evaluation at one step (`key` is `<evaluation id>@<step>`)."""
        return self.folder / "evaluations" / f"{key}.json"

    def evaluation_files(self) -> list[Path]:
        """All evaluation records."""
        return sorted((self.folder / "evaluations").glob("*@*.json"))

    def samples_folder(self, key: str) -> Path:
        """The generated images of one evaluation at one step, in parts."""
        return self.folder / "samples" / key

    def samples_part(self, key: str, first: int) -> Path:
        """The part of the generated images that begins with sample `first`."""
        return self.samples_folder(key) / f"part-{first:08d}.safetensors"

    def grid_file(self, key: str) -> Path:
        """A picture of the first samples of one evaluation at one step."""
        return self.folder / "samples" / f"{key}.png"

    # the cell

    def cell(self) -> tuple[str, Cell]:
        """Name and cell of this run."""
        document = read_json(self.cell_file)
        if document is None:
            raise InputError(f"{self.cell_file}: missing or not valid JSON")
        return str(document["name"]), Cell.model_validate_json(json.dumps(document["cell"]))

    def write_cell(self, name: str, cell: Cell) -> None:
        """Write the cell, once."""
        if not self.cell_file.exists():
            write_json(self.cell_file, {"name": name, "id": cell.id, "cell": cell.model_dump(mode="json")})

    # attempts

    def attempt_numbers(self) -> list[int]:
        """Numbers of all attempts, ascending."""
        return sorted(int(p.stem) for p in self.attempts_folder.glob("*.json") if p.stem.isdigit())

    def attempt(self, number: int) -> Attempt:
        """One attempt, read from its files."""
        part = self.attempts_folder / f"{number:03d}"
        return Attempt(
            number=number,
            claim=read_json(part.with_suffix(".json")) or {},
            submitted=read_json(part.with_suffix(".submitted.json")),
            started=read_json(part.with_suffix(".started.json")),
            ended=read_json(part.with_suffix(".ended.json")),
            heartbeat_age=self.heartbeat_age(),
        )

    def attempts(self) -> list[Attempt]:
        """All attempts, the oldest first."""
        return [self.attempt(number) for number in self.attempt_numbers()]

    def claim(self, number: int, claim: dict[str, Any]) -> bool:
        """Claim attempt `number`; False when somebody else has it. A hard link is whole and cannot be made twice."""
        target = self.attempts_folder / f"{number:03d}.json"
        self.attempts_folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".claim.", suffix=".tmp", dir=self.attempts_folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(claim, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            try:
                os.link(name, target)
            except FileExistsError:
                return False
            _fsync_folder(self.attempts_folder)
            return True
        finally:
            Path(name).unlink(missing_ok=True)

    def record(self, number: int, event: str, value: dict[str, Any]) -> None:
        """Write what became of attempt `number`: event is submitted, started or ended."""
        write_json(self.attempts_folder / f"{number:03d}.{event}.json", value)

    def assert_owner(self, number: int) -> None:
        """Raise SupersededError when a later attempt exists. Called before every write of a job."""
        if (self.attempts_folder / f"{number + 1:03d}.json").exists():
            raise SupersededError(f"attempt {number} of {self.folder.name} was taken over by a later one")

    # state

    def progress(self) -> dict[str, Any] | None:
        """Where the running job is."""
        return read_json(self.progress_file)

    def write_progress(self, value: dict[str, Any]) -> None:
        """Tell where the job is; also its heartbeat. Not synced: losing it costs nothing."""
        temporary = self.folder / f".progress.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(value), encoding="utf-8")
        temporary.replace(self.progress_file)

    def heartbeat_age(self) -> float:
        """Seconds since the job last told its progress, or the attempt was made."""
        times = [p.stat().st_mtime for p in (self.progress_file, *self.attempts_folder.glob("*.json")) if p.exists()]
        return time.time() - max(times) if times else float("inf")

    def missing_evaluations(self, owed: list[str]) -> list[str]:
        """Those of the evaluation keys that have no valid record."""
        return [key for key in owed if read_json(self.evaluation_file(key)) is None]

    def state(self, owed: list[str], training_steps: int) -> RunState:
        """The state, from the files alone.

        Args:
            owed: keys of the evaluations that the sweep asks for.
            training_steps: length of the training.
        """
        numbers = self.attempt_numbers()
        attempt = self.attempt(numbers[-1]) if numbers else None
        missing = self.missing_evaluations(owed)
        if attempt is not None and attempt.live:
            state = State.QUEUED if attempt.started is None else State.RUNNING
            return RunState(state, attempt, "", self.progress() if state is State.RUNNING else None)
        if not missing:
            return RunState(State.DONE, attempt, "", None)
        if attempt is not None and attempt.ended is not None and attempt.ended.get("outcome") == "failed":
            return RunState(State.FAILED, attempt, str(attempt.ended.get("message", "")), self.progress())
        if self.weights_file(training_steps).exists():
            message = f"{len(missing)} of {len(owed)} evaluations owed"
            return RunState(State.PARTIAL, attempt, message, None)
        if attempt is None or attempt.outcome == "done":  # a record or checkpoint was deleted since
            return RunState(State.MISSING, attempt, "", None)
        message = "stopped by a signal" if attempt.ended else f"attempt {attempt.number} ended without a word"
        return RunState(State.INTERRUPTED, attempt, message, self.progress())

    def remove_temporary_files(self) -> None:
        """Remove what a killed job left half-written. Only for the owner of the run."""
        for leftover in self.folder.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)


class Study:
    """The folder of a study: `results/<study>`."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.folder = root / name

    @property
    def sweep_file(self) -> Path:
        """The sweep file as it was last launched."""
        return self.folder / "sweep.toml"

    @property
    def runs_folder(self) -> Path:
        """One folder a cell."""
        return self.folder / "runs"

    @property
    def samples_folder(self) -> Path:
        """Pictures of samples, for the report."""
        return self.folder / "samples"

    def table(self, name: str) -> Path:
        """A table that `collect` writes, by its file name."""
        return self.folder / name

    def run_folders(self) -> dict[str, Run]:
        """Every run there is, by cell id. One listing, so a study of many cells stays quick."""
        if not self.runs_folder.is_dir():
            return {}
        return {entry.name[-ID_DIGITS:]: Run(Path(entry.path)) for entry in _folders(self.runs_folder)}

    def run(self, name: str, cell: Cell, known: dict[str, Run] | None = None) -> Run:
        """The run of a cell: the folder that ends in its id, whatever name it was given, or a new one."""
        known = self.run_folders() if known is None else known
        return known.get(cell.id) or Run(self.runs_folder / f"{name}-{cell.id}")

    def save_sweep(self, source: Path) -> None:
        """Keep a copy of the sweep file, so that the study can be named without it."""
        text = source.read_text(encoding="utf-8")
        if not self.sweep_file.exists() or self.sweep_file.read_text(encoding="utf-8") != text:
            write_text(self.sweep_file, text)


def _folders(parent: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(parent) as entries:
        yield from (entry for entry in entries if entry.is_dir())


class TrainLog:
    """`train.jsonl`: losses as JSON lines, in the order of steps."""

    def __init__(self, run: Run) -> None:
        self._path = run.train_log

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines; a torn last line counts as not written."""
        rows = []
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def rewind(self, step: int) -> Self:
        """Forget what was logged after `step`, to go on from there."""
        rows = [row for row in self.rows() if row["step"] <= step]
        if rows:
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        else:
            self._path.unlink(missing_ok=True)
        return self

    def append(self, row: dict[str, Any]) -> None:
        """Add a row; NaN is refused."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


def free_bytes(folder: Path) -> int:
    """Free space where `folder` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
