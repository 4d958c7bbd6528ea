"""Where a job's process imports from: as its launcher does, and never from the working directory.

A file of the user's there, such as `queue.py`, would take the place of a module of Python's.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Python's option that leaves the working directory out; `-m` alone would put it first.
SAFE_PATH = "-P"


def python() -> str:
    """The command of this Python, for a shell."""
    return f"{shlex.quote(sys.executable)} {SAFE_PATH}"


def environment() -> dict[str, str]:
    """What a process of a job has in its environment besides the launcher's own."""
    found = {"PYTHONSAFEPATH": "1"}
    source = str(Path(__file__).resolve().parents[2])
    # `python -m harness.cli` in a checkout that is not installed: only the working directory leads to the harness
    if sys.path[:1] == [source] and not sys.flags.safe_path and source not in sys.path[1:]:
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), source)))
    return found


@contextmanager
def for_jobs() -> Iterator[None]:
    """In here, processes that are started, and jobs that are submitted, inherit `environment`."""
    added = environment()
    before = {key: os.environ.get(key) for key in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
