"""How the tests are spread over processes (`make test` runs two)."""

from __future__ import annotations

from pathlib import Path

import pytest

SLURM = Path(__file__).parent / "slurm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each file, and all that uses the one Slurm cluster, in one process; Slurm first, for it mostly waits."""
    items.sort(key=lambda item: SLURM not in item.path.parents)  # stable
    for item in items:
        group = "slurm" if SLURM in item.path.parents else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
