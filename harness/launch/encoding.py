"""The encoding of one data set's images: in the foreground, or as a job on ranks where an executor put it.

The ranks (see `harness.training.ranks`) make shards in turn. Only the first one holds the folder of the latents, writes
its manifest, and says beside it how far the work is and how it ended.
"""

from __future__ import annotations

import os
import time
import traceback
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

from harness.data import autoencoders, latents
from harness.errors import CellFailedError, InputError, first_line
from harness.files import read_json, write_json
from harness.launch.console import PROGRESS_SECONDS, log_to
from harness.launch.job import enter_ranks
from harness.launch.machine import own_device
from harness.launch.prepare import Bench, Latent, apply, bench_of, conditions_in, quality
from harness.launch.signals import StopFlag
from harness.launch.view import Say
from harness.processes import exclusive, now, process_identity
from harness.runs.records import Ticket
from harness.spec.resources import EXECUTORS
from harness.training.hooks import Hooks, Report, StoppedError

if TYPE_CHECKING:
    from harness.data.shards import Encoder, Entry, Shards
    from harness.data.vae import Autoencoder
    from harness.training.ranks import Ranks

STOPPED = "stopped; the same command goes on after the last whole shard"


class Submitted(TypedDict):
    """A job that goes on without its launcher: how its executor finds it; without `job` the number is not known."""

    executor: str
    token: str
    job: NotRequired[str]
    time: str


class Ended(TypedDict):
    """How the job with this token ended: "done", "failed" or "stopped", and what there is to say."""

    token: str
    outcome: str
    message: str
    time: str


class Records:
    """What jobs leave that make latents (see `Shared.encoding_folder`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: How far the process is that is at work, see `harness.data.latents.being_encoded`.
        self.progress_file = folder / latents.PROGRESS
        #: What the first rank printed.
        self.log = folder / "log"
        #: Submitit's own files.
        self.submitit_folder = folder / "submitit"
        #: What a launcher holds while it looks for a job and submits one.
        self.lock_file = folder / "lock"
        self._submitted_file, self._ended_file = folder / "submitted.json", folder / "ended.json"

    def submitted(self) -> Submitted | None:
        """The job that was submitted last, until it is known how it ended."""
        return cast("Submitted | None", read_json(self._submitted_file, ("executor", "token")))

    def submit(self, job: Submitted) -> None:
        """Record a job."""
        write_json(self._submitted_file, dict(job))

    def progress(self) -> Report | None:
        """How far the work is."""
        return cast("Report | None", read_json(self.progress_file, ("stage", "done", "total")))

    def ended(self, token: str) -> Ended | None:
        """How the job with this token ended."""
        found = cast("Ended | None", read_json(self._ended_file, ("token", "outcome", "message")))
        return found if found is not None and found["token"] == token else None

    def begin(self) -> None:
        """Forget how an earlier start of the job ended."""
        self._ended_file.unlink(missing_ok=True)

    def end(self, token: str, outcome: str, message: str) -> None:
        """Record the end of a job."""
        write_json(self._ended_file, dict(Ended(token=token, outcome=outcome, message=message, time=now())))

    def forget(self) -> None:
        """Forget a job whose end is known."""
        for path in (self._submitted_file, self._ended_file):
            path.unlink(missing_ok=True)


class _Heartbeat:
    """Passes reports on, and writes now and then into a file how far this process is; removes that at the end."""

    def __init__(self, path: Path, hooks: Hooks) -> None:
        self._path, self._report = path, hooks.report
        self._process = process_identity()
        self._stage, self._written = "", 0.0
        self({"stage": "start", "done": 0, "total": 0})

    def __call__(self, value: Report) -> None:
        if value["total"]:
            self._report(value)
        moment = time.monotonic()
        if value["stage"] == self._stage and moment - self._written < PROGRESS_SECONDS:
            return
        self._stage, self._written = value["stage"], moment
        write_json(self._path, {**value, "process": self._process, "time": now()}, durable=False)

    def __enter__(self) -> _Heartbeat:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Encoding(Latent):
    """A data set to encode; called by submitit, on each rank.

    Attributes:
        vae: the folder of the autoencoder.
        token: of the job.
        gpu: what CUDA_VISIBLE_DEVICES becomes, one a rank; None: no GPU.
    """

    vae: str
    token: str
    gpu: str | None = None

    @property
    def folder(self) -> Path:
        """The folder of the latents."""
        return self.shared.latents_folder(self.name)

    @property
    def records(self) -> Records:
        """What its jobs leave."""
        return Records(self.shared.encoding_folder(self.name))

    @property
    def study(self) -> str:
        """What an executor takes for the name of the study in the job's name."""
        return f"encode-{self.name}"

    def ticket(self, job: Submitted) -> Ticket:
        """What the executor finds a job of this data set by."""
        return {"token": job["token"], "index": 0, "job": job.get("job"), "study": self.study, "restarts": 0}

    def finished(self) -> str | None:
        """How good the latents are, in words, when all is encoded and measured; else None. Reads every shard."""
        labels = {extraction.label for extraction in self.extractions("cpu")}
        known = read_json(self.shared.reconstruction_file(self.name), latents.MEASURED)
        if known is None or not labels <= known["distances"].keys():
            return None
        if not latents.is_complete(self.data, self.shared, autoencoders.weights_hash(Path(self.vae))):
            return None
        latents.check_ready(self.data, self.shared, self.sweep)
        return f"encoded already; {quality(known)}"

    def in_process(self, hooks: Hooks, say: Say) -> str:
        """Encode in this process alone; returns what there is to say.

        Raises:
            InputError: the data or the device is missing or does not fit; another process encodes it just now.
        """
        from harness.training.ranks import Ranks

        return encode(self, own_device(self.resources, self.sweep), Ranks(), hooks, say)

    def __call__(self) -> str:
        """Encode as a job; returns the outcome, which the first rank records, too."""
        stop = StopFlag()
        os.environ["OMP_NUM_THREADS"] = str(self.resources.threads)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on GPUs
        is_first = self.resources.world == 1 or enter_ranks(self.resources) == 0
        if not is_first:
            return self._attempt(stop)[0]
        self.records.folder.mkdir(parents=True, exist_ok=True)
        with log_to(self.records.log):
            self.records.begin()
            outcome, message = self._attempt(stop)
            _print(f"{self.name}: {outcome}: {message}")
            self.records.end(self.token, outcome, message)
            if outcome == "stopped":
                EXECUTORS.load(self.resources.executor).requeue(stop)
        return outcome

    def checkpoint(self) -> Any:
        """What submitit saves, to be run after the requeue: this job, since all state lies in the latents' folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _attempt(self, stop: StopFlag) -> tuple[str, str]:
        """Encode on this rank; returns the outcome and what there is to say."""
        try:
            for extension in self.extensions:
                extension.load()
            EXECUTORS.load(self.resources.executor).set_gpus(self)
            from harness.launch.work import device_of  # imports torch, which reads the environment
            from harness.training.ranks import LostRankError, Ranks, error_line, meet
        except Exception as error:
            traceback.print_exc()
            return "failed", f"{type(error).__name__}: {first_line(error)}"
        try:
            hooks = Hooks(should_stop=stop.is_set, at_once=stop.at_once)
            with meet() if self.resources.world > 1 else nullcontext(Ranks()) as ranks:
                return "done", encode(self, device_of(self, ranks), ranks, hooks, _print)
        except StoppedError:
            return "stopped", STOPPED
        except (CellFailedError, InputError, OSError) as error:
            return "failed", error_line(error)
        except LostRankError as error:
            return "failed", str(error)
        except Exception as error:
            traceback.print_exc()
            return "failed", error_line(error)


def _print(text: str) -> None:
    """Say something in the job's log."""
    print(f"[{now()}] {text}", flush=True)


def encode(work: Encoding, device: str, ranks: Ranks, hooks: Hooks, say: Say) -> str:
    """Encode the images and measure the autoencoder, on every rank; the first one says what there is to say.

    Raises:
        InputError: the data is missing or other data; the folder is of another autoencoder, or another process has it.
        StoppedError: asked to stop.
        NonFiniteError: a latent is not finite.
        RankFailedError: another rank failed.
    """
    from harness.data.shards import Shards
    from harness.data.vae import Autoencoder

    vae, shared = Path(work.vae), work.shared
    with ExitStack() as stack:
        with ranks.together():
            if ranks.is_first:
                stack.enter_context(exclusive(work.folder, "dit-harness encode"))
                hooks = replace(hooks, report=stack.enter_context(_Heartbeat(work.records.progress_file, hooks)))
        if line := ranks.on_first(work.finished):
            return line
        with ranks.one_by_one():
            bench = bench_of(work, hooks)
        conditions = ranks.on_first(partial(conditions_in, work.folder, work, device, say))
        apply(conditions)
        weights = ranks.on_first(partial(autoencoders.weights_hash, vae))
        autoencoder = Autoencoder.load(vae, device)
        shards = Shards(
            work.data, bench.dataset, shared, weights=weights, conditions=dict(conditions), sweep=work.sweep
        )
        manifest = encode_shards(shards, autoencoder.moments, ranks, hooks)
        measured = ranks.on_first(partial(_measured, work, bench, autoencoder, device))
    scaling = latents.scaling(work.data, manifest)
    return f"{shards.total} images, each both ways; scaling {scaling:.6g}; {quality(measured)}"


def _measured(work: Encoding, bench: Bench, autoencoder: Autoencoder, device: str) -> dict[str, Any]:
    """How well the autoencoder reconstructs images, as its card says, or measured.

    Writes it beside the manifest, with a picture.
    """
    from harness.evaluation.reconstruction import save_reconstructions

    save_reconstructions(work.shared.reconstruction_picture(work.name), autoencoder, bench.dataset, device)
    labels = {extraction.label for extraction in work.extractions("cpu")}
    found: dict[str, Any] = (autoencoders.card_of(work.data, work.shared) or {}).get("reconstruction", {})
    if not labels <= found.get("distances", {}).keys():
        with bench.hooks.at_once():
            found = bench.measure(device, autoencoder)
    write_json(work.shared.reconstruction_file(work.name), found)
    return found


def encode_shards(shards: Shards, encoder: Encoder, ranks: Ranks, hooks: Hooks) -> dict[str, Any]:
    """Make the shards that are missing, each rank one in turn; returns the manifest.

    The bytes of all files are the same for any number of ranks.

    Raises:
        InputError: the folder holds latents of other data or of another autoencoder.
        StoppedError: asked to stop; whole shards stay.
        NonFiniteError: the autoencoder gives a value that is not finite, or latents without variance.
        OSError: the disk is full; whole shards stay.
        RankFailedError: another rank failed.
    """
    missing = ranks.on_first(shards.begin)
    done = shards.total - sum(shard.count for shard in missing)
    for first in range(0, len(missing), ranks.world):
        turn = missing[first : first + ranks.world]
        report = partial(_report, hooks, done, sum(shard.count for shard in turn), len(turn), shards.total)
        report(0)
        entry: Entry | None = None
        with ranks.together():
            if ranks.rank < len(turn):
                entry = shards.make(turn[ranks.rank], encoder, report, hooks.should_stop)
        entries = [found for found in ranks.gather(entry) if found is not None]
        ranks.on_first(partial(shards.record, entries))
        if ranks.any_rank(entry is None and ranks.rank < len(turn)):
            raise StoppedError(STOPPED)
        done += sum(shard.count for shard in turn)
    return ranks.on_first(shards.finish)


def _report(hooks: Hooks, before: int, count: int, ranks: int, total: int, images: int) -> None:
    """Report the images done; the other ranks are about as far in their shards as this one is in its own."""
    hooks.report({"stage": "encode", "done": before + min(images * ranks, count), "total": total})
