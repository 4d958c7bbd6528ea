"""What must hold before a launch starts anything."""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import InputError
from harness.runs.cellruns import CellRun
from harness.runs.state import State
from harness.runs.study import Shared, Study
from harness.spec.evaluation import INCEPTION
from sweeps.grid import Sweep


def check_data(sweep: Sweep, study: Study) -> None:
    """Every data set is there, or its latents are. What takes long to check is checked here, once for all jobs.

    Raises:
        InputError: it is not; one line that says what to do.
    """
    from harness.data import sources  # numpy, which `status` can do without
    from harness.data.dataset import Source
    from harness.data.latents import check_ready

    resources, shared = sweep.resources, Shared(study.root)
    folder = Path(resources.data_folder) if resources.data_folder else None
    for data in {cell.data for _, cell in sweep.cells()}:
        sources.check_available(data, folder, resources.data_download)
        if data.vae is not None:
            check_ready(data, shared, str(sweep.path))
        else:
            sources.data_set(data).check_content(data, Source(folder, cache=shared.images_folder))


def check_inception(sweep: Sweep, items: list[CellRun]) -> None:
    """Days of training should not end in an evaluation that cannot be done: its weights must be there and readable."""
    if any(e.extractor == INCEPTION for i in items if i.now.state is not State.DONE for e in i.evaluations):
        from harness.evaluation import inception  # imports torch

        try:
            inception.check_weights(inception.find_weights(sweep.resources.inception_weights))
        except InputError as error:
            raise InputError(f"{sweep.path}: {error}") from None


def check_adm_reference(sweep: Sweep, items: list[CellRun]) -> None:
    """As `check_inception`, of the reference batch."""
    from harness.evaluation import adm

    due = [i for i in items if i.now.state is not State.DONE and any(e.reference == "adm" for e in i.evaluations)]
    for size in {item.cell.data.image_shape.size for item in due}:
        try:
            adm.find(sweep.resources.adm_reference, size)
        except InputError as error:
            raise InputError(f"{sweep.path}: {error}") from None


def check_ranks(sweep: Sweep, gpus: list[str]) -> None:
    """Each rank takes an equal share of the global batch; here it needs a GPU of its own where GPUs are used at all."""
    resources = sweep.resources
    if resources.executor == "local" and resources.nodes > 1:
        raise InputError(f'{sweep.path}: resources.nodes: {resources.nodes} need executor = "slurm"; allowed here: 1')
    if gpus and resources.ranks > len(gpus):
        raise InputError(
            f"{sweep.path}: resources.ranks: {resources.ranks}, but of GPUs, one a rank, "
            f'{len(gpus)} {"is" if len(gpus) == 1 else "are"} visible here; allowed: at most as many, or device = "cpu"'
        )
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
    """The study's folder can be made and written.

    Raises:
        InputError: it cannot.
    """
    try:
        study.runs_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{study.folder}: results cannot be written: {error.strerror}") from None
    for folder in (study.folder, study.runs_folder):
        if not os.access(folder, os.W_OK):
            raise InputError(f"{folder}: results cannot be written: no permission, or a read-only file system")
