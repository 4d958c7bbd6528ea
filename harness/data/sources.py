"""Find and load a data set by its name; everything about one is in its own file. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from harness.data.dataset import DataSet, Dataset, Progress, Source
from harness.spec.data import DATA_SETS, Data


def load(
    data: Data,
    folder: Path | None = None,
    download: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read a data set; for `folder`, `download`, `cache` and `progress` see `harness.data.dataset.Source`.

    Raises:
        InputError: the data is missing, a file is damaged, or the content is not that of the named data set.
    """
    return data_set(data).load(data, Source(folder, download, cache, progress))


def check_available(data: Data, folder: Path | None = None, download: bool = False) -> None:
    """Check that `load` will find the data, from names and file headers alone.

    Raises:
        InputError: with one line that says how to get the data.
    """
    data_set(data).check(data, Source(folder, download))


def data_set(data: Data) -> DataSet:
    """The data set that `data` names."""
    found: DataSet = DATA_SETS.load(data.name)
    return found
