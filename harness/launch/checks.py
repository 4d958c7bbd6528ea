"""What must hold before a launch starts anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from harness.errors import InputError
from harness.launch.extractors import owed_extractors, require_extractors
from harness.runs import trackers
from harness.runs.cellruns import CellRun
from harness.runs.state import State
from harness.runs.study import Shared, Study
from harness.spec.cell import Cell
from harness.spec.data import DATA_SETS, Data
from harness.spec.evaluation import EXTRACTORS
from harness.spec.resources import EXECUTORS, Resources
from harness.spec.training import CPU_PRECISIONS
from sweeps.grid import Sweep


def checks(
    sweep: Sweep,
    study: Study,
    items: list[CellRun],
    gpus: list[str],
    *,
    content: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Callable[[], None]]:
    """The checks of these cells, the quick ones first; each raises an InputError when something does not hold.

    Without `content` none reads a whole data set; `say` takes a line where one reads much.
    """
    named = [(item.name, item.cell) for item in items]
    yield lambda: check_ranks(sweep, gpus, named)
    yield lambda: _check_precision(sweep, gpus, named)
    yield from _of_evaluations(sweep, items)
    yield lambda: require_extractors(sweep, study, owed_extractors(items))
    yield lambda: trackers.check_installed(sweep.recording.trackers, str(sweep.path))
    yield from _of_data(sweep, study, items, content=content, say=say)


def missing(sweep: Sweep, study: Study, items: list[CellRun]) -> list[str]:
    """Everything that a launch of these cells lacks, one line each that says how to get it; reads no whole data set."""
    lines, gpus = [], EXECUTORS.load(sweep.resources.executor).gpus()
    for check in checks(sweep, study, items, gpus, content=False):
        try:
            check()
        except InputError as error:
            lines.append(str(error).removeprefix(f"{sweep.path}: "))
    return list(dict.fromkeys(lines))


def _of_data(
    sweep: Sweep, study: Study, items: list[CellRun], *, content: bool, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Every data set and its latents are there; slow checks are made here, once for all jobs."""
    from harness.data import latents, sources  # numpy, which `status` can do without
    from harness.data.dataset import Source

    shared = Shared(study.root)
    source = Source.of(sweep.resources, shared.images_folder)
    for data in dict.fromkeys(item.cell.data for item in items):
        yield partial(sources.check_available, data, source)
        if data.vae is not None:
            yield partial(_check_autoencoder, data, shared, sweep)
            yield partial(latents.check_encoded, data, shared, str(sweep.path))
            yield partial(latents.check_ready, data, shared, str(sweep.path))
            if content and any(_may_train(item) for item in items if item.cell.data == data):
                yield partial(latents.verify, data, shared, say)
        elif content:
            yield partial(sources.data_set(data).check_content, data, source)
        if data.subset is not None:
            batch = max(item.cell.training.batch_size for item in items if item.cell.data == data)
            yield partial(_check_subset_size, data, batch)
        if content and data.subset is not None:
            yield partial(sources.check_subset, data, source, batch)


def _may_train(item: CellRun) -> bool:
    return item.steps is None and item.now.state is not State.DONE


def _check_subset_size(data: Data, batch: int) -> None:
    """Check a subset by the numbers that are known without the files."""
    facts = DATA_SETS.facts(data.name)
    if facts.images is None or data.subset is None:
        return
    count = round(data.subset * (facts.images - facts.heldout))
    for least, what in ((data.shape.classes, "classes"), (batch, "images of training.batch_size")):
        if count < least:
            raise InputError(f"data.subset: {data.subset} of {data.name} is {count} images, fewer than {least} {what}")


def _check_autoencoder(data: Data, shared: Shared, sweep: Sweep) -> None:
    from harness.data import autoencoders

    autoencoders.find(data, shared, str(sweep.path))


def check_evaluations(sweep: Sweep, items: list[CellRun]) -> None:
    """Check that the files for all measurements are there: extractors' weights and reference batches.

    Raises:
        InputError: a file is missing or damaged.
    """
    for check in _of_evaluations(sweep, items):
        check()


def _of_evaluations(sweep: Sweep, items: list[CellRun]) -> Iterator[Callable[[], None]]:
    due = {(e, item.cell.data) for item in items if item.now.state is not State.DONE for e in item.evaluations}
    named = {e.extractor for e, _ in due if isinstance(e.extractor, str)}
    outside = {name for name in named if EXTRACTORS.facts(name).external}
    sizes = {data.image_shape.size for e, data in due if e.reference == "adm"}
    for name in sorted(outside):
        yield partial(_named, sweep, _check_extractor, name, sweep.resources.weights_of(name))
    for size in sorted(sizes):
        yield partial(_named, sweep, _check_adm, sweep.resources.adm_reference, size)


def _named(sweep: Sweep, check: Callable[..., None], *arguments: Any) -> None:
    """Make a check, whose message then begins with the name of the sweep's file."""
    try:
        check(*arguments)
    except InputError as error:
        raise InputError(f"{sweep.path}: {error}") from None


def _check_extractor(name: str, weights: str | None) -> None:
    from harness.evaluation import extractors  # imports torch

    extractors.find(name).check(weights)


def _check_adm(configured: str | None, size: int) -> None:
    from harness.evaluation import adm

    adm.find(configured, size).check()


def check_ranks(sweep: Sweep, gpus: list[str], cells: Iterable[tuple[str, Cell]] | None = None) -> None:
    """The executor can give every cell its resources; ranks and micro-batches divide the global batch.

    Args:
        sweep: the sweep.
        gpus: of this machine.
        cells: names and cells; None: all of the sweep.

    Raises:
        InputError: one line that says what is allowed.
    """
    checked: set[Resources] = set()
    for name, cell in sweep.cells() if cells is None else cells:
        resources = sweep.resources_of(cell)
        if resources not in checked:
            EXECUTORS.load(resources.executor).check(replace(sweep, resources=resources), gpus)
            checked.add(resources)
        batch = cell.training.batch_size
        if batch % resources.world:
            allowed = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
            raise InputError(
                f"{sweep.path}: {name}: training.batch_size {batch} is not divisible among {resources.world} ranks "
                f"(resources.ranks {resources.ranks} on each of resources.nodes {resources.nodes}); "
                f"allowed in total: {allowed}"
            )
        share, micro = batch // resources.world, resources.micro_batch
        if micro is not None and micro < share and share % micro:
            allowed = ", ".join(str(n) for n in range(1, share + 1) if share % n == 0)
            raise InputError(
                f"{sweep.path}: {name}: resources.micro_batch {micro} does not divide the {share} images of a rank "
                f"(training.batch_size {batch}, ranks in total: {resources.world}); allowed: {allowed}, and whatever "
                "is more, which means all"
            )


def _check_precision(sweep: Sweep, gpus: list[str], cells: Iterable[tuple[str, Cell]]) -> None:
    """No cell that is known to compute on a CPU asks for a precision that a CPU has not; a job checks its GPU itself.

    Raises:
        InputError: one does.
    """
    for name, cell in cells:
        resources, precision = sweep.resources_of(cell), cell.training.precision
        if precision in CPU_PRECISIONS:
            continue
        if EXECUTORS.load(resources.executor).runs_on_cpu(resources, gpus):
            raise InputError(
                f'{sweep.path}: {name}: training.precision "{precision}" needs a GPU, and the cell would run on a CPU '
                f"(resources.device); allowed there: {', '.join(CPU_PRECISIONS)}"
            )


def check_writable(study: Study) -> None:
    """The folders of the study and of the runs can be made and written.

    Raises:
        InputError: one cannot.
    """
    for folder in (study.folder, study.runs_folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: results cannot be written: {error.strerror}") from None
        if not os.access(folder, os.W_OK):
            raise InputError(f"{folder}: results cannot be written: no permission, or a read-only file system")
