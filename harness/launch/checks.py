"""What must hold before a launch starts anything."""

from __future__ import annotations

import os

from harness.errors import InputError
from harness.runs.cellruns import CellRun
from harness.runs.state import State
from harness.runs.study import Shared, Study
from harness.spec.evaluation import EXTRACTORS
from harness.spec.resources import EXECUTORS
from sweeps.grid import Sweep


def check_data(sweep: Sweep, study: Study) -> None:
    """Check that every data set and its latents are there; slow checks are made here, once for all jobs.

    Raises:
        InputError: it is not; one line that says what to do.
    """
    from harness.data import sources  # numpy, which `status` can do without
    from harness.data.dataset import Source
    from harness.data.latents import check_ready

    shared = Shared(study.root)
    source = Source.of(sweep.resources, shared.images_folder)
    for data in {cell.data for _, cell in sweep.cells()}:
        sources.check_available(data, source)
        if data.vae is not None:
            check_ready(data, shared, str(sweep.path))
        else:
            sources.data_set(data).check_content(data, source)


def check_evaluations(sweep: Sweep, items: list[CellRun]) -> None:
    """Check that the files for all measurements are there: extractors' weights and reference batches.

    Raises:
        InputError: a file is missing or damaged.
    """
    due = {(e, item.cell.data) for item in items if item.now.state is not State.DONE for e in item.evaluations}
    outside = {e.extractor for e, _ in due if e.extractor and EXTRACTORS.facts(e.extractor).external}
    sizes = {data.image_shape.size for e, data in due if e.reference == "adm"}
    resources = sweep.resources
    try:
        for name in sorted(outside):
            from harness.evaluation import extractors  # imports torch

            extractors.find(name).check(resources.inception_weights)
        for size in sorted(sizes):
            from harness.evaluation import adm

            adm.find(resources.adm_reference, size).check()
    except InputError as error:
        raise InputError(f"{sweep.path}: {error}") from None


def check_ranks(sweep: Sweep, gpus: list[str]) -> None:
    """The executor can give the resources, and each rank takes an equal share of the global batch."""
    resources = sweep.resources
    EXECUTORS.load(resources.executor).check(sweep, gpus)
    for name, cell in sweep.cells():
        batch = cell.training.batch_size
        if batch % resources.world:
            allowed = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
            raise InputError(
                f"{sweep.path}: {name}: training.batch_size {batch} is not divisible among {resources.world} ranks "
                f"(resources.ranks {resources.ranks} on each of resources.nodes {resources.nodes}); "
                f"allowed in total: {allowed}"
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
