"""What the JSON files of an attempt hold. Files of older versions lack some keys, so a reader asks with `.get`."""

from __future__ import annotations

from typing import Any, TypedDict


class Ticket(TypedDict, total=False):
    """What an executor needs to find the job of a claim again; an executor of a user's file has keys of its own."""

    token: str  # comment of the Slurm array
    index: int  # of the task in the array
    restarts: int  # how often Slurm had requeued the job when the claim was made
    pool: bool  # whether other cells share the job
    job: str | None  # the scheduler's number of the job
    study: str  # that submitted it, which gives the job its name


class Claim(TypedDict, total=False):
    """`attempts/NNN.json`. A ticket, where there is one, stands under the executor's name."""

    process: dict[str, Any] | None  # of the launcher, see `harness.processes.process_identity`
    time: str
    token: str  # tells this claim from another with its number; events hold it too, and version 0.1.0 wrote none
    study: str  # that launched it
    executor: str
    gpu: str | None
    allocation: str | None  # number of the Slurm job in whose allocation a local launcher runs
    slurm: Ticket


class Submitted(TypedDict, total=False):
    """`attempts/NNN.submitted.json`."""

    process: dict[str, Any] | None  # that waits for the job on this machine, or is the job
    time: str
    job_id: str
    output: str  # folder of submitit's files, where that is not the run's own


class Estimated(TypedDict):
    """How long a cell was estimated to take, in seconds; no interval where one value alone was known."""

    seconds: float
    least: float | None
    most: float | None
    source: str  # "measured by a probe", "measured on N finished cells of this machine", "assumed", ...


class Started(TypedDict, total=False):
    """`attempts/NNN.started.json`, which also holds what `harness.runs.provenance` tells."""

    process: dict[str, Any]
    time: str
    gpu: str | None
    conditions: dict[str, Any]  # of bit-for-bit agreement
    gemm_tflops: float  # of attempts that train: of a matrix product in that precision, all ranks together
    estimate: Estimated  # of the whole cell, made when the attempt began
    seeds: dict[str, Any]
    extend: dict[str, str]  # the user's own files: name and hash; a copy is in `extend/<hash>.py`
    host: str
    machine: dict[str, Any]
    commit: str | None
    diff: str | None
    slurm: dict[str, str]


class Ended(TypedDict, total=False):
    """`attempts/NNN.ended.json`."""

    outcome: str  # done, failed, stopped, lost
    message: str
    cause: str  # see `harness.runs.triage`
    where: str
    traceback: list[str]
    evaluations: list[str]  # keys of those that failed, where all else went well
    time: str


class Progress(TypedDict, total=False):
    """`progress.json`."""

    attempt: int  # that wrote it
    stage: str
    done: int
    total: int
    loss: float | None
    images_per_s: float | None
    tflops: float  # 1e12 floating-point operations per second, three forward passes an image
    mfu: float  # that over the rate of a matrix product
    seconds_left: float | None
    waits: str  # what it waits for
    time: str
