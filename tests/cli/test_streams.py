"""The command where its output is odd: closed, full, unread, of few letters; and titles that look like markup."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import streams
from tests.commands import ROOT
from tests.small_study import sweep_text

TITLE = "[ours] [/x] [red]:smile: é"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(sweep_text().replace('"small cells"', f'"{TITLE}"'))
    return tmp_path


def shell(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `$D` is the command; the exit code is that of the last failing part of a pipe."""
    given = {**os.environ, "PYTHONPATH": str(ROOT), "D": f"{sys.executable} -m harness.cli", **environment}
    line = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(line, cwd=folder, env=given, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("$D status small.toml | true", streams.BROKEN_PIPE),
        ("$D status small.toml --json | true", streams.BROKEN_PIPE),
        ("$D status small.toml >&-", 0),
        ("$D status small.toml <&- >&- 2>&-", 0),
        ("$D status none.toml >&- 2>&-", 2),
    ],
)
def test_unread_output_is_no_traceback(folder: Path, command: str, code: int) -> None:
    done = shell(folder, command)
    assert done.returncode == code, done.stderr
    assert done.stderr == ""


def test_titles_are_printed_as_they_are(folder: Path) -> None:
    done = shell(folder, "$D status small.toml && $D status small.toml --watch", COLUMNS="0", TERM="dumb")
    assert done.returncode == 0, done.stderr
    assert [line.rstrip() for line in done.stdout.splitlines()].count(TITLE) == 2
    done = shell(folder, "$D status small.toml", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].rstrip() == TITLE.replace("é", r"\xe9")
