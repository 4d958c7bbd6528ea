"""What all tests share: how they are spread over processes (`make test` runs four), and what is forgotten after one."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

from harness.spec.kinds import Kind

SLURM = "tests/slurm/"

#: What `make check` runs: the folders and files whose tests take seconds.
QUICK = (
    "tests/spec/",
    "tests/sweeps/test_grid.py",
    "tests/sweeps/test_protocols.py",
    "tests/runs/test_triage.py",
    "tests/runs/test_runs.py",
    "tests/model/test_blocks.py",
    "tests/model/test_embeddings.py",
    "tests/diffusion/",
    "tests/data/test_draws.py",
    "tests/evaluation/test_frechet.py",
    "tests/evaluation/test_statistics.py",
    "tests/launch/test_slurm.py",
    "tests/analysis/test_table.py",
    "tests/analysis/test_fit.py",
    "tests/test_docs.py",
)


def pytest_configure() -> None:
    """Let programs that tests start be stopped, though the tests run under `nohup` or behind a script's `&`.

    A program inherits the signals that are ignored, and not those that are handled.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(number, lambda *_: None)


def forget_users_files() -> None:
    """Forget what users' files define, as a process that begins does."""
    for kind in Kind.tables.values():
        kind._added.clear()
    Kind.additions += 1  # what is remembered of a name holds no longer


@pytest.fixture
def users_files() -> Iterator[None]:
    """For a test that loads users' files: what they define is forgotten before and after."""
    forget_users_files()
    yield
    forget_users_files()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin each test with the same global draws, whatever ran before it in its process."""
    random.seed(0)
    if "torch" in sys.modules:  # else the test that loads it begins with torch's own fixed seed
        sys.modules["torch"].manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slurm first, for it mostly waits; and the mark of what is quick."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLURM))  # stable
    for item in items:
        if item.nodeid.startswith(QUICK):
            item.add_marker(pytest.mark.quick)


@pytest.hookimpl(optionalhook=True)  # one of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Keep each file in one process, for what its tests share, and all that uses the one Slurm cluster in one, too."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> Any:
            return SLURM if nodeid.startswith(SLURM) else super()._split_scope(nodeid)

    return Scheduling(config, log)
