"""A checkpoint is valid or absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.training import checkpoint
from harness.training.checkpoint import CorruptCheckpointError

TENSORS = {"a": torch.arange(1000, dtype=torch.float32).reshape(10, 100), "b": torch.tensor(3), "c": torch.ones(2, 3).T}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, TENSORS, {"step": 7, "window": [0.1, 0.2]})
    tensors, meta = checkpoint.load(path)
    assert meta == {"step": 7, "window": [0.1, 0.2]}
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    checkpoint.save(paths[0], TENSORS, {"b": 1, "a": 2})
    checkpoint.save(paths[1], dict(reversed(TENSORS.items())), {"a": 2, "b": 1})
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_truncated_flipped_or_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, TENSORS, {"step": 7})
    data = path.read_bytes()
    for position in (len(data) - 1, len(data) // 2, 3):
        path.write_bytes(data[:position])
        with pytest.raises(CorruptCheckpointError):
            checkpoint.load(path)
    for position in (len(data) - 1, len(data) // 2):
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(CorruptCheckpointError):
            checkpoint.load(path)
    path.write_bytes(b"")
    with pytest.raises(CorruptCheckpointError):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, TENSORS, {"step": 7})
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk is full"):
        checkpoint.save(path, TENSORS, {"step": 8})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
