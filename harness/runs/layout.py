"""The run folder: every path, atomic writes, attempts and state. No other module joins paths inside a run.

    results/<study>/schema.json    the version of all this; absent in studies of version 1 from before it was written
                    diffs/<hash>.diff   what the code differed from its commit, when cells were launched
    results/<study>/runs/<readable-name>-<cell id>/
      cell.json           the cell and its name
      attempts/001.json   the claim of attempt 1, a whole file hard-linked into place: it cannot be made twice
               001.submitted.json, 001.started.json, 001.ended.json    written once each, by launcher and job
               001.cancelled.json  somebody asked for the end of attempt 1
      progress.json       where the running job is; its age is the job's heartbeat
      train.jsonl         losses
      checkpoints/        state-<step>.safetensors (to resume), weights-<step>.safetensors (to evaluate)
      samples/            generated images, by evaluation
      evaluations/        <evaluation id>@<step>.json
      log                 what the job printed
      evaluating/         attempts, progress.json and log of `dit-harness evaluate`, which may run beside the training

What several studies share lies beside them, in folders that no study can be named like (see `Shared`):

    results/_vae/<data>-<id>/       an autoencoder as diffusers writes it, and card.json
            _latents/<data>-<id>/   encoded images, and manifest.json
            _images/                what is known of the user's image folders
            _references/<...>-<key>/  statistics of real images

Imports no torch: `status`, `collect` and a launch that finds everything done start without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import file_clock, fsync, full_disk_named, read_json, write_json
from harness.processes import now, process_identity
from harness.runs.attempts import EVALUATING, TRAINING, Attempt, Scheduler, Seen, SupersededError, known_elsewhere
from harness.runs.state import RunState, State
from harness.spec.cell import Cell


class Run:
    """The folder of one cell, with the attempts, progress and log of one track."""

    def __init__(self, folder: Path, scheduler: Scheduler | None = None, track: str = TRAINING) -> None:
        self.folder = folder
        self._scheduler = scheduler
        self.track = track

    def on(self, track: str) -> Run:
        """The same run, on this track."""
        return Run(self.folder, self._scheduler, track)

    # paths

    @property
    def cell_file(self) -> Path:
        """The cell and its name."""
        return self.folder / "cell.json"

    @property
    def attempts_folder(self) -> Path:
        """Claims and their fate."""
        return self.folder / self.track

    @property
    def _track_folder(self) -> Path:
        return self.folder if self.track == TRAINING else self.attempts_folder

    @property
    def progress_file(self) -> Path:
        """Where the running job is."""
        return self._track_folder / "progress.json"

    @property
    def train_log(self) -> Path:
        """Losses, as JSON lines."""
        return self.folder / "train.jsonl"

    @property
    def log(self) -> Path:
        """What the job printed."""
        return self._track_folder / "log"

    @property
    def submitit_folder(self) -> Path:
        """Submitit's own files."""
        return self.folder / "submitit"

    def tracker_folder(self, name: str) -> Path:
        """What a tracker keeps of this run (see `harness.runs.trackers`)."""
        return self.folder / name

    def state_file(self, step: int) -> Path:
        """The full training state after `step` steps."""
        return self.folder / "checkpoints" / f"state-{step:08d}.safetensors"

    def weights_file(self, step: int) -> Path:
        """Weights and averaged weights after `step` steps."""
        return self.folder / "checkpoints" / f"weights-{step:08d}.safetensors"

    def weights_steps(self) -> list[int]:
        """The steps whose weights are kept, ascending."""
        files = (self.folder / "checkpoints").glob("weights-*.safetensors")
        return sorted(int(path.stem.rpartition("-")[2]) for path in files)

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

    def samples_parts(self, key: str) -> dict[int, Path]:
        """The parts that are there, by their first sample."""
        files = sorted(self.samples_folder(key).glob("part-*.safetensors"))
        return {int(path.stem.rpartition("-")[2]): path for path in files}

    def samples_keys(self) -> list[str]:
        """The evaluations, at a step each, of which there are generated images."""
        return sorted(folder.name for folder in (self.folder / "samples").glob("*@*") if folder.is_dir())

    def features_part(self, key: str, first: int) -> Path:
        """Features of the part of the generated images that begins with sample `first`, until the record is written."""
        return self.samples_folder(key) / f"features-{first:08d}.safetensors"

    def remove_features(self, key: str) -> None:
        """Remove the features of an evaluation that is on record."""
        for path in self.samples_folder(key).glob("features-*.safetensors"):
            path.unlink(missing_ok=True)

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

    def write_cell(self, name: str, cell: Cell, *, durable: bool = True) -> None:
        """Write the cell, once."""
        if read_json(self.cell_file) is None:
            document = {"name": name, "id": cell.id, "cell": cell.model_dump(mode="json")}
            write_json(self.cell_file, document, durable=durable)

    # attempts

    def attempt_numbers(self) -> list[int]:
        """Numbers of all attempts, ascending."""
        return sorted(int(p.stem) for p in self.attempts_folder.glob("*.json") if p.stem.isdigit())

    def attempt(self, number: int) -> Attempt:
        """One attempt, read from its files."""
        part = self.attempts_folder / f"{number:03d}"
        claim = read_json(part.with_suffix(".json")) or {}
        submitted = read_json(part.with_suffix(".submitted.json"))
        started = read_json(part.with_suffix(".started.json"))
        ended = read_json(part.with_suffix(".ended.json"))
        seen = None
        over = ended is not None and ended.get("outcome") != "stopped"
        superseded = (self.attempts_folder / f"{number + 1:03d}.json").exists()
        if "slurm" in claim and not over and not superseded:
            ticket = {"job": (submitted or {}).get("job_id"), **claim["slurm"]}  # a requeued one's claim has it
            seen = self._scheduler.look(ticket) if self._scheduler else Seen(None)
        age = 0.0
        if known_elsewhere(started, submitted, claim):  # the heartbeat is the newest attempt's
            age = float("inf") if superseded else self.heartbeat_age()
        return Attempt(
            number=number,
            claim=claim,
            submitted=submitted,
            started=started,
            ended=ended,
            heartbeat_age=age,
            cancelled=read_json(part.with_suffix(".cancelled.json")),
            seen=seen,
        )

    def attempts(self) -> list[Attempt]:
        """All attempts, the oldest first."""
        return [self.attempt(number) for number in self.attempt_numbers()]

    def claim(self, number: int, claim: dict[str, Any], *, durable: bool = True) -> bool:
        """Claim attempt `number`; False when somebody else has it. A hard link is whole and cannot be made twice.

        A claim that is not `durable` needs a `sync_claim` before anything is started on its word: many claims are
        quicker made first and synced then.
        """
        target = self.attempts_folder / f"{number:03d}.json"
        self.attempts_folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".claim.", suffix=".tmp", dir=self.attempts_folder)
        try:
            with full_disk_named(target), os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(claim, file, indent=1)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            Path(name).chmod(0o644)
            try:
                os.link(name, target)
            except FileExistsError:
                return False
            if durable:
                fsync(self.attempts_folder)
            return True
        finally:
            Path(name).unlink(missing_ok=True)

    def sync_claim(self, number: int) -> None:
        """Make the claim of attempt `number`, and the cell, outlast a power cut."""
        for path in (self.cell_file, self.attempts_folder / f"{number:03d}.json", self.attempts_folder, self.folder):
            fsync(path)

    def record(self, number: int, event: str, value: dict[str, Any], *, durable: bool = True) -> None:
        """Write what became of attempt `number`: event is submitted, started, ended or cancelled."""
        write_json(self.attempts_folder / f"{number:03d}.{event}.json", value, durable=durable)

    def is_cancelled(self, number: int) -> bool:
        """Whether somebody has asked for the end of attempt `number`; quick enough to be asked all the time."""
        return (self.attempts_folder / f"{number:03d}.cancelled.json").exists()

    def release(self, number: int) -> None:
        """Take back a claim of which nothing was submitted; a run that has nothing else goes too."""
        (self.attempts_folder / f"{number:03d}.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.attempts_folder.rmdir()
            if [path.name for path in self.folder.iterdir()] == [self.cell_file.name]:
                self.cell_file.unlink()
                self.folder.rmdir()

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
        temporary = self._track_folder / f".progress.{os.getpid()}.tmp"
        with full_disk_named(self.progress_file):
            temporary.write_text(json.dumps(value), encoding="utf-8")
            temporary.replace(self.progress_file)

    def heartbeat_age(self) -> float:
        """Seconds since the job last told its progress, or the attempt was made, by the file system's clock: those of
        two machines may differ by any amount, and a live job must not look dead for it.
        """
        times = [p.stat().st_mtime for p in (self.progress_file, *self.attempts_folder.glob("*.json")) if p.exists()]
        return file_clock(self.folder.parent) - max(times) if times else float("inf")

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
            seen = attempt.seen or Seen(None)
            waits = attempt.started is None or attempt.ended is not None or seen.word == "PENDING"
            state = State.QUEUED if waits else State.RUNNING
            reason = "waits for a slot" if attempt.pooled and seen.word == "RUNNING" else seen.reason
            return RunState(state, attempt, reason if waits else "", None if waits else self.progress())
        if not missing:
            return RunState(State.DONE, attempt, "", None)
        if attempt is not None and attempt.ended is not None and attempt.ended.get("outcome") == "failed":
            return RunState(State.FAILED, attempt, str(attempt.ended.get("message", "")), self.progress())
        if attempt is not None and attempt.outcome == "cancelled":
            again = "--retry runs it again" if self.track == TRAINING else "evaluate goes on with it"
            return RunState(State.CANCELLED, attempt, again, self.progress())
        if self.weights_file(training_steps).exists():
            message = f"{len(missing)} of {len(owed)} evaluations owed"
            return RunState(State.PARTIAL, attempt, message, None)
        if attempt is None or attempt.outcome == "done":  # a record or checkpoint was deleted since
            return RunState(State.MISSING, attempt, "", None)
        message = attempt.silence
        if attempt.ended is not None:
            message = str(attempt.ended.get("message", "")) if attempt.outcome == "lost" else "stopped by a signal"
        if attempt.seen is not None and attempt.seen.word:
            message += f"; Slurm: {attempt.seen.word}"
        return RunState(State.INTERRUPTED, attempt, message, self.progress())

    def live(self) -> Attempt | None:
        """The newest attempt of this track while somebody works on it."""
        numbers = self.attempt_numbers()
        attempt = self.attempt(numbers[-1]) if numbers else None
        return attempt if attempt is not None and attempt.live else None

    def remove_temporary_files(self) -> None:
        """Remove what a killed job left half-written. Only for the owner of the run; while a job of the other track
        works, only where that one does not write. Claims and their fate are written by launchers too: see `Study`.
        """
        folders = [self.folder]
        if self.on(EVALUATING if self.track == TRAINING else TRAINING).live() is not None:
            folders = [self.folder / "checkpoints"] if self.track == TRAINING else []
        for folder in folders:
            for leftover in folder.rglob(".*.tmp"):
                if leftover.parent.name not in (TRAINING, EVALUATING):
                    leftover.unlink(missing_ok=True)


def claim_next(run: Run, attempt: Attempt, restarts: int) -> bool:
    """Claim the attempt after this one for the same Slurm job, requeued so often; False when somebody else has it."""
    ticket = {"job": attempt.job_id, **attempt.claim["slurm"], "restarts": restarts}
    return run.claim(attempt.number + 1, {"process": process_identity(), "time": now(), "slurm": ticket})
