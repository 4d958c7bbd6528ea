"""The folder of a study, and what several studies share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.errors import InputError
from harness.files import file_clock, read_json, write_json, write_text
from harness.runs.attempts import Scheduler
from harness.runs.columns import SCHEMA_VERSION
from harness.runs.layout import RUNS, TRACKS
from harness.runs.state import Run
from harness.spec.cell import Cell
from harness.spec.extension import Extension
from harness.spec.identity import ID_DIGITS

#: A half-written file counts as abandoned when it is older than this.
LEFTOVER_SECONDS = 600.0

#: Longest difference that is kept whole, in characters.
DIFF_CHARACTERS = 1_000_000


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without those whose names begin with a dot or "_"; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(entry.path) for entry in entries if entry.is_dir() and entry.name[0] not in "._"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found)


class Study:
    """The folder of a study: `results/<study>`."""

    def __init__(self, root: Path, name: str, schedulers: Mapping[str, Scheduler] | None = None) -> None:
        self.name = name
        self.root = root
        self.folder = root / name
        self.schedulers: Mapping[str, Scheduler] = {} if schedulers is None else schedulers
        #: The sweep file as it was last launched.
        self.sweep_file = self.folder / "sweep.toml"
        #: The version of the study's files.
        self.schema_file = self.folder / "schema.json"
        #: The ids of the study's cells, and their names, as it was last launched.
        self.cells_file = self.folder / "cells.json"
        #: One folder a cell, for all studies.
        self.runs_folder = root / RUNS
        #: Submitit's own files of Slurm arrays, which belong to no single run.
        self.submitit_folder = self.folder / "submitit"
        #: Pictures of samples, for the report.
        self.samples_folder = self.folder / "samples"
        #: Pictures of samples beside the training images nearest to them.
        self.nearest_folder = self.samples_folder / "nearest"
        #: What the autoencoders and the extractors trained here are worth, for the report.
        self.cards_folder = self.folder / "cards"

    def table(self, name: str) -> Path:
        """A table that `collect` writes, by its file name."""
        return self.folder / name

    def older_runs(self) -> dict[str, Path]:
        """The folders of runs where version 0.1.0 put them, `results/<study>/runs/<name>-<id>`, by the id of the cell.

        Of one id those of this study come first: all studies use them, so that no cell is trained twice.
        """
        studies = [entry for entry in folders_in(self.root) if entry.name not in (RUNS, self.name)]
        found: dict[str, Path] = {}
        for study in (self.folder, *studies):
            for folder in folders_in(study / RUNS):
                found.setdefault(folder.name[-ID_DIGITS:], folder)
        return found

    def run(self, cell: Cell, older: Mapping[str, Path] | None = None) -> Run:
        """The run of a cell, which all studies share; `older`, if known, is what `older_runs` found."""
        folder = self.runs_folder / cell.id
        if not folder.exists():
            folder = (self.older_runs() if older is None else older).get(cell.id, folder)
        return Run(folder, self.schedulers)

    def save_sweep(self, source: Path, names: Mapping[str, str], extensions: tuple[Extension, ...] = ()) -> None:
        """Keep a copy of the sweep file and of what it extends, so that the study can be named without them.

        Args:
            source: the sweep file.
            names: of its cells, by id.
            extensions: the user's own files that it names.
        """
        for extension in extensions:
            write_text(self.folder / extension.name, extension.text)
        text = source.read_text(encoding="utf-8")
        if not self.sweep_file.exists() or self.sweep_file.read_text(encoding="utf-8") != text:
            write_text(self.sweep_file, text)
        if read_json(self.cells_file) != names:
            write_json(self.cells_file, dict(names))
        if read_json(self.schema_file) != {"schema": SCHEMA_VERSION}:
            write_json(self.schema_file, {"schema": SCHEMA_VERSION})

    def remove_leftovers(self, runs: Iterable[Run]) -> None:
        """Remove the half-written files of killed launchers, in the study's folder and among the claims of its runs.

        Files younger than `LEFTOVER_SECONDS` stay: a launcher may be writing them.
        """
        claims = (run.on(track).attempts_folder for run in runs for track in TRACKS)
        for folder in (self.folder, self.folder / "diffs", self.samples_folder, *claims):
            for leftover in folder.glob(".*.tmp"):
                with contextlib.suppress(FileNotFoundError):
                    if file_clock(self.folder) - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                        leftover.unlink()

    def save_diff(self, name: str | None, text: str) -> None:
        """Write the difference of the code from its commit, once, under its hash; of a very long one the beginning."""
        path = self.folder / "diffs" / f"{name}.diff"
        if name and text and not path.exists():
            cut = f"\n... and {len(text) - DIFF_CHARACTERS} characters more\n" if len(text) > DIFF_CHARACTERS else "\n"
            write_text(path, text[:DIFF_CHARACTERS] + cut)

    def check_schema(self) -> None:
        """Refuse a study whose files a newer version of this harness has written.

        Raises:
            InputError: it is newer.
        """
        found = (read_json(self.schema_file) or {}).get("schema", 1)
        if not isinstance(found, int) or found > SCHEMA_VERSION:
            raise InputError(
                f"{self.schema_file}: schema {found!r}, written by a newer version of this harness; "
                f"allowed here: up to {SCHEMA_VERSION}; update the harness, or take another folder by --results"
            )


class Shared:
    """What several studies share: the folders of `results` whose names begin with "_" (see `harness.runs.layout`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        #: What was found in the user's image folders, one file a folder.
        self.images_folder = root / "_images"
        #: Compiled code, as torch keeps it, and for which shapes there is some.
        self.compiled_folder = root / "_compiled"

    def probe_file(self, key: str) -> Path:
        """What a probe found (see `harness.runs.probes`)."""
        return self.root / "_probes" / f"{key}.json"

    def vae_folder(self, name: str) -> Path:
        """An autoencoder, by `<data>-<id>` or by the name of a pretrained one."""
        return self.root / "_vae" / name

    def latents_folder(self, name: str) -> Path:
        """The latents of a data set, by `<data>-<id>`."""
        return self.root / "_latents" / name

    def reconstruction_file(self, name: str) -> Path:
        """How well the autoencoder of these latents reconstructs images (see `harness.evaluation.reconstruction`)."""
        return self.latents_folder(name) / "reconstruction.json"

    def reconstruction_picture(self, name: str) -> Path:
        """Held-out images, and below each what the autoencoder makes of it."""
        return self.latents_folder(name) / "reconstructions.png"

    def encoding_folder(self, name: str) -> Path:
        """What jobs leave that make these latents, such as their log, and which shards a launch has checked."""
        return self.root / "_latents" / ".encoding" / name

    def extractor_folder(self, name: str) -> Path:
        """A feature extractor trained here, by `<data>-<id>`."""
        return self.root / "_extractors" / name

    def extractor_weights(self, name: str) -> Path:
        """Its weights; they are there when it is trained."""
        return self.extractor_folder(name) / "extractor.safetensors"

    def extractor_card(self, name: str) -> Path:
        """What it is worth, for people."""
        return self.extractor_folder(name) / "card.json"

    def reference_folder(self, name: str) -> Path:
        """What generated images are compared with (see `harness.evaluation.references`)."""
        return self.root / "_references" / name
