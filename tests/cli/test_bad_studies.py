"""Studies that cannot be worked on: each verb refuses in one line, and nothing is started or changed."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from harness.cli.main import main

SWEEP = """
title = {title}
[grid]
depth = [1]
[model]
width = 8
patch_size = 4
[[evaluation]]
samples = 30
[resources]
partition = {partition}
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "s.toml")


def write(path: Path, title: str = "a title", partition: str = "gpu") -> Path:
    path.write_text(SWEEP.format(title=json.dumps(title), partition=json.dumps(partition)))
    return path


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command ends in, with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["dit-harness", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert stopped.value.code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    "verb",
    [
        ("plan", "s.toml"),
        ("launch", "s.toml"),
        ("status", "s.toml"),
        ("status", "s.toml", "--watch"),
        ("logs", "s.toml", "d1"),
        ("cancel", "s.toml"),
        ("collect", "s.toml"),
        ("evaluate", "s.toml"),
        ("report", "s"),
        ("export", "s", "d1", "-o", "x.pt"),
    ],
)
def test_a_study_of_a_newer_schema(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]
) -> None:
    schema = Path("results/s/schema.json")
    schema.parent.mkdir(parents=True)
    schema.write_text('{"schema": 3}')
    assert "schema 3, written by a newer version of this harness; allowed here: up to 2" in refused(
        monkeypatch, capsys, *verb
    )
    assert [path.name for path in schema.parent.iterdir()] == [schema.name]


def test_a_results_folder_without_write_permission(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("results/s/runs").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    assert "results/s: results cannot be written: no permission" in refused(monkeypatch, capsys, "launch", "s.toml")
    assert list(Path("results/s/runs").iterdir()) == []


def test_tables_that_may_not_be_written(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "results/s/.results.csv.x.tmp")

    monkeypatch.setattr(tempfile, "mkstemp", forbidden)
    line = refused(monkeypatch, capsys, "collect", "s.toml")
    assert line == "error: results/s/.results.csv.x.tmp: Permission denied"


def test_a_newline_in_what_slurm_is_told(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for partition in ("gpu\n", "a\nb", "gpu #", ""):
        write(sweep, partition=partition)
        assert "resources.partition" in refused(monkeypatch, capsys, "status", "s.toml")
    write(sweep)
    assert "resources.qos" in refused(monkeypatch, capsys, "launch", "s.toml", "--qos", "a\nb")
    assert "is no study name" in refused(monkeypatch, capsys, "status", "a\nb.toml")
    assert "is no study name" in refused(monkeypatch, capsys, "status", "a\n")


def test_a_newline_in_the_title_is_harmless(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(sweep, title="one\ntwo")
    monkeypatch.setattr(sys, "argv", ["dit-harness", "status", "s.toml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "1 missing" in capsys.readouterr().out
