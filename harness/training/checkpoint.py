"""Checkpoints: safetensors with one metadata key that holds JSON. Valid or absent, never torn."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file

from harness.errors import NonFiniteError, non_finite_in
from harness.files import write_atomic

_LOG = logging.getLogger(__name__)

#: How many tensors with values that are not finite are named.
_NAMED = 3

#: How the names of the optimiser's tensors in a state begin.
OPTIMIZER = "optimizer."

_KEY = "harness"  # one key: the order of several would vary from run to run


class CorruptCheckpointError(RuntimeError):
    """The checkpoint is damaged; use an older one."""


class Loaded(NamedTuple):
    """What a checkpoint holds: tensors on the CPU by name, and what was written with them."""

    tensors: dict[str, torch.Tensor]
    meta: dict[str, Any]


def _checksum(tensors: dict[str, torch.Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        flat = tensors[name].detach().contiguous().reshape(-1)
        checksum = zlib.crc32(flat.view(torch.uint8).numpy().data, zlib.crc32(name.encode(), checksum))
    return checksum


def save(path: Path, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and a JSON-able `meta` atomically, with a checksum over every byte.

    Raises:
        NonFiniteError: a value is not finite; an older file at `path` is untouched.
        OSError: the disk is full or not writable; an older file at `path` is untouched.
    """
    with non_finite_in(f"{path.name} is not written"):
        require_finite(tensors)
    host = {name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in tensors.items()}
    document = json.dumps({**meta, "crc32": _checksum(host)}, sort_keys=True, allow_nan=False)

    def write(temporary: Path) -> None:
        try:
            save_file(host, temporary, metadata={_KEY: document})
        except safetensors.SafetensorError as error:  # safetensors wraps the operating system's errors
            raise OSError(f"{path}: {error}") from error

    write_atomic(path, write)


def require_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Check the values of tensors, on any device; the optimiser's moments alone may overflow (see `overflown`).

    Raises:
        NonFiniteError: not all are finite; says how many, and in which tensors.
    """
    checked = {name: value for name, value in tensors.items() if not name.startswith(OPTIMIZER)}
    odd = {name: value for name, value in checked.items() if not _is_finite(value)}
    if odd:
        bad = sum(int((~torch.isfinite(value)).sum()) for value in odd.values())
        more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
        raise NonFiniteError(
            f"{bad} of {sum(value.numel() for value in checked.values())} values are not finite, in "
            f"{', '.join(list(odd)[:_NAMED])}{more}"
        )


def overflown(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the optimiser's moments with values that are not finite: AdamW moves the weights of those no more."""
    return [name for name, value in tensors.items() if name.startswith(OPTIMIZER) and not _is_finite(value)]


def _is_finite(value: torch.Tensor) -> bool:
    """Whether all values are finite. A sum needs no memory; it may overflow though they are, so then each is seen."""
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def load(path: Path) -> Loaded:
    """Read tensors (on the CPU) and meta.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptCheckpointError: truncated, or a byte differs from what was written.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, KeyError, ValueError, RecursionError, OSError) as error:
        raise CorruptCheckpointError(f"{path}: {error}") from error
    if not isinstance(meta, dict) or _checksum(tensors) != meta.pop("crc32", None):
        raise CorruptCheckpointError(f"{path}: checksum differs")
    return Loaded(tensors, meta)


def newest(paths: Sequence[Path], is_wanted: Callable[[Path, dict[str, Any]], bool]) -> Loaded | None:
    """The first whole checkpoint of `paths` (newest first) that is wanted, by its meta; corrupt ones are removed.

    One with values that are not finite is corrupt, too: nothing good comes of it.

    What is removed is logged.
    """
    for i, path in enumerate(paths):
        try:
            found = load(path)
            with non_finite_in(str(path)):
                require_finite(found.tensors)
        except FileNotFoundError:
            continue
        except (CorruptCheckpointError, NonFiniteError) as error:
            further = "going on from an older one" if paths[i + 1 :] else "beginning anew"
            _LOG.warning("removed a corrupt checkpoint, %s: %s", further, error)
            path.unlink(missing_ok=True)
            continue
        if is_wanted(path, found.meta):
            return found
    return None


def part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
