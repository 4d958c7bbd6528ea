"""Find and load a data set by its name. Imports no torch."""

from __future__ import annotations

from harness.data.dataset import DataSet, LoadedData, Source
from harness.spec.data import DATA_SETS, Data

#: Where a data set usually is; nothing is downloaded.
ANYWHERE = Source()


def load(data: Data, source: Source = ANYWHERE) -> LoadedData:
    """Read a data set.

    Raises:
        InputError: the data is missing, a file is damaged, or it is another data set.
    """
    return data_set(data).load(data, source)


def check_available(data: Data, source: Source = ANYWHERE) -> None:
    """Check that `load` will find the data; reads only names and file headers.

    Raises:
        InputError: data is missing; one line that says how to get it.
    """
    data_set(data).check(data, source)


def data_set(data: Data) -> DataSet:
    """The data set that `data` names."""
    found: DataSet = DATA_SETS.load(data.name)
    return found
