"""The command in this process, which has imported already what takes a process of its own seconds each time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

from harness.cli.main import main
from harness.runs import provenance
from tests.conftest import forget_users_files

ROOT = Path(__file__).parents[1]


def run_here(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `dit-harness` with these arguments in a folder; what a process would find anew is forgotten before.

    For commands that come to their end: what a signal or the death of a launcher does is not to be seen here.
    """
    forget_users_files()
    provenance.origin.cache_clear()
    code = 0
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        chdir(folder),
        mock.patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}),
        mock.patch.object(sys, "argv", ["dit-harness", *arguments]),
        mock.patch.object(logging.getLogger(), "handlers", []),
    ):
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        for stream in (out, err):
            stream.seek(0)
        said = out.read(), err.read()
    forget_users_files()
    return subprocess.CompletedProcess(arguments, code, *said)
