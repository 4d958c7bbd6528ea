"""Probes: what a short measurement of a cell's shape says of its speed and memory, kept for all studies. No torch."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from harness.files import read_json, write_json
from harness.runs.study import Shared
from harness.spec.cell import Cell
from harness.spec.identity import canonical_json
from harness.spec.resources import Resources

#: Fields of `Resources` that decide how long a step takes and what memory it needs.
_DECISIVE = ("threads", "micro_batch", "recompute", "compile", "sampling_batch", "cells_per_gpu")


class Spread(NamedTuple):
    """Median, least and most of several measurements."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Probe:
    """What a probe found.

    Attributes:
        step: seconds of a training step of one rank; None where the probe failed.
        image: seconds of a forward pass without gradients, divided by its images.
        memory_bytes: most memory that the training held: of the process on a CPU, of torch's allocator on a GPU.
        compiled: whether the network was compiled, as the training of such a cell would be.
        error: why nothing was measured; empty where all was.
    """

    step: Spread | None = None
    image: Spread | None = None
    memory_bytes: int | None = None
    compiled: bool = False
    error: str = ""


def shape_of(cell: Cell, resources: Resources, device: str, hardware: str) -> dict[str, Any]:
    """What cells share that train at one speed and with one memory; `hardware` is a name of the CPU or GPU."""
    return {
        "model": canonical_json(cell.model),
        "diffusion": canonical_json(cell.diffusion),
        "input": list(cell.data.shape),
        "batch": cell.training.batch_size // resources.world,
        "precision": cell.training.precision,
        **{name: getattr(resources, name) for name in _DECISIVE},
        "device": device,
        "hardware": hardware,
        "torch": metadata.version("torch"),
    }


def probe_key(shape: dict[str, Any]) -> str:
    """The name of its file: first 12 hex digits of sha256 over the shape."""
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]


def read_probe(shared: Shared, shape: dict[str, Any]) -> Probe | None:
    """The probe of a shape; None where there is none."""
    found = read_json(shared.probe_file(probe_key(shape)), ("probe",))
    if found is None or found.get("shape") != shape:
        return None
    probe = found["probe"]
    try:
        return probe_from(probe)
    except (KeyError, TypeError, ValueError):
        return None


def probe_from(fields: Mapping[str, Any]) -> Probe:
    """A probe from its fields, as JSON has them."""
    step, image = (None if fields[name] is None else Spread(*fields[name]) for name in ("step", "image"))
    return Probe(**{**fields, "step": step, "image": image})


def write_probe(shared: Shared, shape: dict[str, Any], probe: Probe, time: str) -> Path:
    """Keep a probe; an older one of its shape is replaced."""
    path = shared.probe_file(probe_key(shape))
    write_json(path, {"shape": shape, "probe": asdict(probe), "host": socket.gethostname(), "time": time})
    return path
