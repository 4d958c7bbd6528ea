"""How the tests are spread over processes (`make test` runs two)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadFileScheduling

SLURM = "tests/slurm/"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slurm first, for it mostly waits."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLURM))  # stable


@pytest.hookimpl(optionalhook=True)  # one of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    """Keep each file in one process, for what its tests share, and all that uses the one Slurm cluster in one, too."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> Any:
            return SLURM if nodeid.startswith(SLURM) else super()._split_scope(nodeid)

    return Scheduling(config, log)
