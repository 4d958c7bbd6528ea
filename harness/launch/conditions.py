"""The conditions of an attempt: what decides the last bits of its results. Later attempts keep those of the first."""

from __future__ import annotations

import logging
from typing import Any

from harness.launch.compiling import choose, require_compiler
from harness.launch.payload import Payload
from harness.processes import now
from harness.runs.layout import TRAINING
from harness.training.conditions import numeric_conditions
from harness.training.memory import largest_micro_batch
from harness.training.precision import require
from harness.training.ranks import Ranks

_LOG = logging.getLogger(__name__)


def for_training(job: Payload, conditions: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """The conditions, with a micro-batch that fits where none is named on a GPU. All ranks call this.

    Raises:
        CellFailedError: the device cannot compute in the cell's precision, or not even one image fits.
    """
    device = conditions["device"]
    require(job.cell.training.precision, device)
    if device == "cpu" or conditions["micro_batch"] is not None:
        return conditions
    compiled, recompute = conditions["compile"], conditions["recompute"]
    return {
        **conditions,
        "micro_batch": largest_micro_batch(
            job.cell, device, ranks, compiled=compiled, recompute=recompute, cells_per_gpu=job.resources.cells_per_gpu
        ),
    }


def conditions_of(job: Payload, device: str) -> dict[str, Any]:
    """What decides whether results agree bit for bit: as in the first attempt, as far as this machine allows.

    Raises:
        CellFailedError: the first attempt was compiled, and this machine cannot.
    """
    run = job.run
    mine = {
        **numeric_conditions(job.resources.threads, job.resources.sampling_batch, device),
        "ranks": job.resources.world,
        "micro_batch": job.resources.micro_batch,
        "recompute": job.resources.recompute,
    }
    attempts = [*run.on(TRAINING).attempts(), *(run.attempts() if run.track != TRAINING else [])]
    first = next((a.started["conditions"] for a in attempts if a.started and "conditions" in a.started), None)
    if first is None:
        choice = choose(job, device)
        _LOG.info("[%s] compiled: %s, %s", now(), "yes" if choice.compiled else "no", choice.why)
        return {**mine, "compile": choice.how}
    first = {"ranks": 1, "micro_batch": None, "recompute": False, "compile": "off", **first}  # older records lack them
    if all(first[key] == mine[key] for key in ("device", "hardware", "ranks")):
        mine["micro_batch"] = mine["micro_batch"] or first["micro_batch"]
    mine["recompute"] = mine["recompute"] or first["recompute"]  # that may have been needed
    if first["compile"] != "off":
        require_compiler(device, "the first attempt was compiled, which decides the last bits")
    if (asked := job.resources.compile) not in ("auto", "off" if first["compile"] == "off" else "on"):
        _LOG.info("note: compile is %s, as in the first attempt, though %s was asked for", first["compile"], asked)
    keys = ["torch", "device", "hardware", "ranks", *(["micro_batch"] if job.steps is None else [])]
    if first["compile"] == "whole":
        keys.append("recompute")  # part by part; otherwise it changes no bit
    for key in keys:
        if first[key] != mine[key]:
            was, given = ("all" if value is None else value for value in (first[key], mine[key]))
            rounding = "results agree within rounding, not bit for bit"
            _LOG.info("note: %s was %s in the first attempt and is %s now; %s", key, was, given, rounding)
    return {**mine, **{key: first[key] for key in ("threads", "sampling_batch", "compile")}}
