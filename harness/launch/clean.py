"""Run folders that no study lists any more, and latents that only they read: what they are, and their removal.

A study lists the cells of its last launch (cells.json); one of version 0.1.0 those of its sweep.toml. What a job works
on is left alone, and so is whatever cannot be told: the folder of runs of a study that says nothing.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.errors import InputError
from harness.files import read_json
from harness.launch.executor import Schedulers
from harness.processes import HeldError, exclusive
from harness.runs.claims import PATIENCE_SECONDS
from harness.runs.layout import RUNS, TRACKS
from harness.runs.state import Run
from harness.runs.study import Shared, Study, folders_in
from harness.spec.data import Data, TrainedVae
from sweeps.grid import load_sweep

#: A run that is being removed lies beside the others under this name and its id.
_REMOVED = ".removed-"


@dataclass(frozen=True)
class Unlisted:
    """A run that no study lists.

    Attributes:
        run: its folder.
        label: its name and id.
        size: bytes on disk.
        busy: why it is left alone; empty when it can go.
    """

    run: Run
    label: str
    size: int
    busy: str


@dataclass(frozen=True)
class Leftovers:
    """What `remove` removes.

    Attributes:
        runs: of cells that no study lists.
        shared: folders of latents and of autoencoders trained here, which only these runs read.
        torn: runs whose removal was interrupted.
    """

    runs: tuple[Unlisted, ...]
    shared: tuple[Path, ...] = ()
    torn: tuple[Path, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that are free afterwards."""
        runs = sum(found.size for found in self.runs if not found.busy)
        return runs + sum(map(size_of_folder, (*self.shared, *self.torn)))


@dataclass(frozen=True)
class Removed:
    """What `remove` did."""

    cells: int  #: removed
    left: tuple[str, ...]  #: what was needed meanwhile, one line each


def leftovers(root: Path, study: str | None = None, also: Iterable[str] = ()) -> Leftovers:
    """What no study lists.

    Args:
        root: the folder of all studies.
        study: only runs that this one claimed, or that lie in its folder; None: of all studies.
        also: ids of cells that count as listed.

    Raises:
        InputError: the cells of some study cannot be told.
    """
    kept = listed(root) | set(also)
    found = [
        _unlisted(run)
        for run in _runs(root)
        if run.cell_id not in kept and (study is None or study in _studies_of(run, root))
    ]
    removable = [entry for entry in found if not entry.busy]
    return Leftovers(tuple(found), tuple(_unread(root, removable)), tuple(sorted((root / RUNS).glob(f"{_REMOVED}*"))))


def listed(root: Path) -> set[str]:
    """The ids of all cells that some study lists.

    Raises:
        InputError: a study has runs or a sweep, and what it lists cannot be read.
    """
    found: set[str] = set()
    for folder in _studies(root):
        study = Study(root, folder.name)
        cells = read_json(study.cells_file)
        if cells is not None:
            found |= cells.keys()
        elif study.sweep_file.exists():
            found |= {cell.id for _, cell in load_sweep(study.sweep_file, study.name).cells()}
        elif study.cells_file.exists():
            raise InputError(f"{study.cells_file}: not valid JSON, so nothing can be removed; launch the study again")
        else:  # runs without a sweep: nothing says that they are not needed
            found |= {Run(run).cell_id for run in folders_in(folder / RUNS)}
    return found


def remove(found: Leftovers, root: Path) -> Removed:
    """Remove the runs that are not busy, and what only they read; what is needed meanwhile is left."""
    cells, left, shared = 0, [], Shared(root)
    for entry in (entry for entry in found.runs if not entry.busy):
        try:
            _set_aside(entry.run, root)
            cells += 1
        except HeldError as error:
            left.append(f"{entry.label}: {error} has it now")
    for path in (*found.torn, *(_aside(entry.run) for entry in found.runs)):
        shutil.rmtree(path, ignore_errors=True)
    for folder in found.shared:
        try:
            with exclusive(folder, "dit-harness clean"):
                shutil.rmtree(folder)
                if folder.parent == shared.encoding_folder(folder.name).parent.parent:
                    shutil.rmtree(shared.encoding_folder(folder.name), ignore_errors=True)
        except HeldError as error:
            left.append(str(error))
    return Removed(cells, tuple(left))


def size_of_folder(folder: Path) -> int:
    """Bytes of all files below a folder; those that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.lstat().st_size if not path.is_dir() else 0
    return total


def _set_aside(run: Run, root: Path) -> None:
    """Take a run out of all studies' sight, under the locks of both tracks: no claim and no write falls in between.

    Raises:
        HeldError: a job claimed it or writes in it, or a study lists it now.
    """
    run.lock_file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for track in TRACKS:
            stack.enter_context(run.on(track).locked(PATIENCE_SECONDS))
        if busy := _busy(run):
            raise HeldError(busy)
        if run.cell_id in listed(root):
            raise HeldError("a study")
        run.folder.rename(_aside(run))


def _aside(run: Run) -> Path:
    return run.folder.with_name(f"{_REMOVED}{run.cell_id}")


def _studies(root: Path) -> Iterator[Path]:
    """The folders of studies: those with a list of cells, a sweep or runs of their own."""
    for folder in folders_in(root):
        study = Study(root, folder.name)
        if folder.name != RUNS and any(p.exists() for p in (study.cells_file, study.sweep_file, folder / RUNS)):
            yield folder


def _runs(root: Path) -> Iterator[Run]:
    for folder in (root, *_studies(root)):
        schedulers = Schedulers(folder.name)
        for run in folders_in(folder / RUNS):
            yield Run(run, schedulers)


def _studies_of(run: Run, root: Path) -> set[str]:
    """The studies that claimed a run, and the one in whose folder it lies."""
    claims = (attempt.claim.get("study") for track in TRACKS for attempt in run.on(track).attempts())
    home = run.folder.parent.parent
    return {study for study in claims if study} | ({home.name} if home != root else set())


def _unlisted(run: Run) -> Unlisted:
    return Unlisted(run, run.label, size_of_folder(run.folder), _busy(run))


def _busy(run: Run) -> str:
    """Which living attempt has a run; empty if none has."""
    live = (run.on(track).live() for track in TRACKS)
    return next((f"attempt {attempt.number}, which lives," for attempt in live if attempt is not None), "")


def _unread(root: Path, removable: list[Unlisted]) -> Iterator[Path]:
    """Folders of latents and trained autoencoders of these runs that no listed cell reads."""
    ours = {data.encoding_name: data for entry in removable if (data := _latent_data(entry.run)) is not None}
    if not ours:
        return
    for folder in _studies(root):
        try:
            sweep = load_sweep(Study(root, folder.name).sweep_file, folder.name)
        except InputError:  # nobody can tell what it reads
            return
        for _, cell in sweep.cells():
            if cell.data.vae is not None:
                ours.pop(cell.data.encoding_name, None)
    gone = {entry.run.folder for entry in removable}
    for run in _runs(root):
        data = None if run.folder in gone else _latent_data(run)
        if data is not None:
            ours.pop(data.encoding_name, None)
    shared = Shared(root)
    for name, data in ours.items():
        folders = [shared.latents_folder(name), *([shared.vae_folder(name)] * isinstance(data.vae, TrainedVae))]
        yield from (folder for folder in folders if folder.is_dir())


def _latent_data(run: Run) -> Data | None:
    """The data of a run that learns latents; None if it learns pixels, or where that cannot be read."""
    cell = (read_json(run.cell_file) or {}).get("cell")
    try:
        data = Data.model_validate(cell["data"] if isinstance(cell, dict) else {})
    except (ValidationError, KeyError):
        return None
    return data if data.vae is not None else None
