"""Find and load a data set by its name. Imports no torch."""

from __future__ import annotations

from harness.data import subset
from harness.data.dataset import DataSet, LoadedData, Source
from harness.errors import InputError
from harness.spec.data import DATA_SETS, Data

#: Where a data set usually is; nothing is downloaded.
ANYWHERE = Source()


def load(data: Data, source: Source = ANYWHERE) -> LoadedData:
    """Read a data set.

    Raises:
        InputError: the data is missing, a file is damaged, it is another data set, or the subset leaves out a class.
    """
    dataset = data_set(data).load(data, source)
    return dataset if data.subset is None else subset.take(dataset, data.subset)


def check_subset(data: Data, source: Source, batch_size: int) -> None:
    """Check that the subset has an image of every class, and at least as many images as a batch.

    Raises:
        InputError: it has not.
    """
    if (count := len(load(data, source).train.labels)) < batch_size:
        raise InputError(
            f"data.subset: {data.subset} of {data.name} is {count} images, fewer than training.batch_size {batch_size}"
        )


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
