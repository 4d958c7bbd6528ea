"""JSON of our own that cannot be read counts as not written, and never ends in a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from harness.data import autoencoders
from harness.errors import InputError
from harness.files import at_home, read_json, write_json
from harness.runs.log import TrainLog
from harness.runs.state import Run
from harness.runs.study import Shared
from harness.spec.data import Data
from harness.training import checkpoint

#: JSON that Python's reader refuses, or that is no object.
UNREADABLE = {
    "deep list": "[" * 100_000 + "]" * 100_000,
    "deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "long number": '{"a": ' + "9" * 5000 + "}",
    "list": "[1]",
    "number": "7",
    "null": "null",
    "torn": '{"a": ',
    "empty": "",
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_json_that_cannot_be_read_is_not_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert read_json(path) is None
    path.write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))
    assert read_json(path) is None


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": "\ufeff"})
    (tmp_path / "x.json").write_text((tmp_path / "x.json").read_text(), encoding="utf-8-sig")
    assert read_json(tmp_path / "x.json") == {"a": "\ufeff"}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_a_torn_line_of_the_log_is_not_written(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path)
    run.train_log.write_text(f'{{"step": 1, "loss": 2.0}}\n{text}\n{{"step": 2, "loss": 1.0}}\n')
    assert [row["step"] for row in TrainLog(run).rows()] == [1, 2]


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_a_checkpoint_whose_metadata_cannot_be_read_is_corrupt(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={"harness": text})
    with pytest.raises(checkpoint.CorruptCheckpointError, match=r"x\.safetensors: "):
        checkpoint.load(path)


@pytest.mark.parametrize("text", [*UNREADABLE.values(), json.dumps({"latent_channels": 4, "block_out_channels": 5})])
def test_the_configuration_of_an_autoencoder_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    vae = {"kind": "pretrained", "name": "x", "factor": 2}
    with pytest.raises(InputError, match=r"config\.json: no configuration of a diffusers AutoencoderKL"):
        autoencoders.check_fits(tmp_path, Data.model_validate({"vae": vae}))


def test_home_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    given = ("~", "~/x", "~nobody-of-this-name/x", "./~/x", "a~", "")
    assert [at_home(path) for path in given] == ["/somewhere", "/somewhere/x", *given[2:]]


def test_an_autoencoder_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vae").mkdir()
    data = Data.model_validate({"vae": {"kind": "pretrained", "name": "~/vae", "factor": 2}})
    with pytest.raises(InputError, match=rf"data\.vae\.name ~/vae: {tmp_path}/vae holds no config\.json"):
        autoencoders.find(data, Shared(tmp_path / "results"), "s.toml")
