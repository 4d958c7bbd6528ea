"""The run folder: every path, and the file of the cell. No other module joins paths inside a run.

    results/<study>/sweep.toml     the sweep as it was last launched
                    cells.json     the ids of its cells, and their names in this study
                    schema.json    the version of all this; absent in studies of version 1 from before it was written
                    forecasts.json what was predicted of cells before they were launched
                    diffs/<hash>.diff   what the code differed from its commit, when cells were launched

A cell is one run for all studies that list it:

    results/runs/<cell id>/
      cell.json           the cell, and the name that the first study gave it
      attempts/001.json   the claim of attempt 1, a whole file hard-linked into place: it cannot be made twice
               001.submitted.json, 001.started.json, 001.ended.json    written once each, by launcher and job
               001.cancelled.json  somebody asked for the end of attempt 1
      extend/<hash>.py    the user's own files that the cell uses, as they were when it ran
      progress.json       where the running job is; its age is the job's heartbeat
      train.jsonl         losses
      checkpoints/        state-<step>.safetensors (to resume), weights-<step>.safetensors (to evaluate)
      samples/            generated images, by evaluation
      evaluations/        <evaluation id>@<step>.json; losses@<step>.json where only losses were asked for
      log                 what the job printed
      evaluating/         attempts, progress.json and log of `dit-harness evaluate`, which may run beside the training
    results/runs/.locks/  what claims and writing jobs hold, see `harness.runs.claims`

Version 0.1.0 had `results/<study>/runs/<readable-name>-<cell id>/`. Such a run stays where it is, for all studies.

What several studies share lies beside them, in folders that no study can be named like (see `Shared`):

    results/_vae/<data>-<id>/       an autoencoder as diffusers writes it, and card.json
            _latents/<data>-<id>/   encoded images, and manifest.json
            _latents/.encoding/<data>-<id>/  how far `dit-harness encode` is, how its job ended, its log; which
                                    shards a launch has checked
            _extractors/<data>-<id>/  a feature extractor trained here: its weights with a card, and card.json
            _images/                what is known of the user's image folders
            _references/<...>-<key>/  statistics of real images
            _compiled/              compiled code, as torch keeps it
            _verify/<checkpoint>-<key>/  samples and record of a released checkpoint; what was shown is in verified.csv
            _probes/<key>.json      time and memory of a shape, as `dit-harness plan --measure` found them

Imports no torch: `status`, `collect` and a launch that finds everything done start without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.files import read_json, write_json
from harness.spec.cell import Cell
from harness.spec.extension import Extension
from harness.spec.identity import ID_DIGITS

#: The folder of all runs in a folder of results, and, in version 0.1.0, in that of a study; no study has its name.
RUNS = "runs"

#: The two tracks of a run: `launch` and `evaluate` each claim on their own, so that neither takes the other over.
TRAINING, EVALUATING = TRACKS = "attempts", "evaluating"


#: Stands for the id of an evaluation in the record of a cell that only trains: it says that its losses are on record.
LOSSES = "losses"

#: The longest head of a safetensors file, in bytes; the format's own limit.
_LONGEST_HEAD = 100_000_000


class RunFolder:
    """The folder of one cell, with the attempts, progress and log of one track."""

    def __init__(self, folder: Path, track: str = TRAINING) -> None:
        self.folder = folder
        self.track = track

    @property
    def cell_file(self) -> Path:
        """The cell and its name."""
        return self.folder / "cell.json"

    @property
    def attempts_folder(self) -> Path:
        """Claims, and what became of them."""
        return self.folder / self.track

    @property
    def _of_track(self) -> Path:
        return self.folder if self.track == TRAINING else self.attempts_folder

    @property
    def progress_file(self) -> Path:
        """Where the running job is."""
        return self._of_track / "progress.json"

    @property
    def train_log(self) -> Path:
        """Losses, as JSON lines."""
        return self.folder / "train.jsonl"

    @property
    def log(self) -> Path:
        """What the job printed."""
        return self._of_track / "log"

    @property
    def submitit_folder(self) -> Path:
        """Submitit's own files."""
        return self.folder / "submitit"

    @property
    def lock_file(self) -> Path:
        """Who holds it may claim or write; it lies outside the folder, which somebody may remove."""
        return self.folder.parent / ".locks" / f"{self.cell_id}.{self.track}"

    @property
    def cell_id(self) -> str:
        """The id of the cell, with which the name of the folder ends."""
        return self.folder.name[-ID_DIGITS:]

    @property
    def label(self) -> str:
        """What people call the run: `<name>-<cell id>`, or the id alone before the cell is written."""
        name = (read_json(self.cell_file) or {}).get("name")
        return f"{name}-{self.cell_id}" if name else self.cell_id

    def attempt_file(self, number: int, event: str = "") -> Path:
        """The claim of attempt `number`, or what an event (submitted, started, ended, cancelled) added to it."""
        return self.attempts_folder / f"{number:03d}{'.' if event else ''}{event}.json"

    def tracker_folder(self, name: str) -> Path:
        """What a tracker keeps of this run (see `harness.runs.trackers`)."""
        return self.folder / name

    def state_file(self, step: int) -> Path:
        """The full training state after `step` steps."""
        return self.folder / "checkpoints" / f"state-{step:08d}.safetensors"

    def weights_file(self, step: int) -> Path:
        """Weights and averaged weights after `step` steps."""
        return self.folder / "checkpoints" / f"weights-{step:08d}.safetensors"

    def weights_steps(self) -> list[int]:
        """The steps of which this cell's weights are kept, ascending."""
        files = (self.folder / "checkpoints").glob("weights-*.safetensors")
        return [step for step in sorted(map(step_of, files)) if self.has_weights(step)]

    def has_weights(self, step: int) -> bool:
        """Whether there are weights of `step`, and they say that they are this cell's, or cannot be read."""
        path = self.weights_file(step)
        return path.exists() and belongs(meta_of(path), self.cell_id, step)

    def weights_checksum(self, step: int) -> int | None:
        """The checksum over the weights of `step`; None when they are not there."""
        return meta_of(self.weights_file(step)).get("crc32")

    def state_files(self) -> list[Path]:
        """All training states, the newest first."""
        return sorted((self.folder / "checkpoints").glob("state-*.safetensors"), reverse=True)

    def weights_files(self) -> list[Path]:
        """All kept weights, the newest first."""
        return sorted((self.folder / "checkpoints").glob("weights-*.safetensors"), reverse=True)

    def evaluation_file(self, key: str) -> Path:
        """The record of one evaluation at one step (`key` is `<evaluation id>@<step>`)."""
        return self.folder / "evaluations" / f"{key}.json"

    def evaluation_files(self) -> list[Path]:
        """All evaluation records, without that of the losses alone."""
        files = sorted((self.folder / "evaluations").glob("*@*.json"))
        return [path for path in files if not path.name.startswith(f"{LOSSES}@")]

    def samples_folder(self, key: str) -> Path:
        """The generated images of one evaluation at one step, in parts."""
        return self.folder / "samples" / key

    def samples_part(self, key: str, first: int) -> Path:
        """The part of the generated images that begins with sample `first`."""
        return self.samples_folder(key) / f"part-{first:08d}.safetensors"

    def samples_parts(self, key: str) -> dict[int, Path]:
        """The parts that are there, by their first sample."""
        files = sorted(self.samples_folder(key).glob("part-*.safetensors"))
        return {step_of(path): path for path in files}

    def samples_keys(self) -> list[str]:
        """The evaluations, at a step each, of which there are generated images."""
        return sorted(folder.name for folder in (self.folder / "samples").glob("*@*") if folder.is_dir())

    def features_part(self, key: str, first: int) -> Path:
        """Features of the part of the generated images that begins with sample `first`, until the record is written."""
        return self.samples_folder(key) / f"features-{first:08d}.safetensors"

    def remove_features(self, key: str) -> None:
        """Remove the features of an evaluation that is on record."""
        for path in self.samples_folder(key).glob("features-*.safetensors"):
            path.unlink(missing_ok=True)

    def grid_file(self, key: str) -> Path:
        """A picture of the first samples of one evaluation at one step."""
        return self.folder / "samples" / f"{key}.png"

    def nearest_file(self, key: str) -> Path:
        """A picture of samples of one evaluation at one step, and of the training images nearest to them."""
        return self.folder / "samples" / f"{key}-nearest.png"

    def extension_file(self, content_hash: str) -> Path:
        """The copy of a file of the user's own."""
        return self.folder / "extend" / f"{content_hash}.py"

    def cell(self) -> tuple[str, Cell]:
        """Name and cell of this run; loads the copies of the user's own files first, for they say what a name means.

        Raises:
            InputError: the file is missing, torn or of another cell, or a copy does not run.
        """
        document = read_json(self.cell_file)
        if document is None or not {"name", "cell"} <= document.keys():
            raise InputError(f"{self.cell_file}: missing or not valid JSON")
        self.load_extensions()
        cell = Cell.model_validate_json(json.dumps(document["cell"]))
        if cell.id != self.cell_id:
            raise InputError(f"{self.cell_file}: cell {cell.id}; allowed in this folder: {self.cell_id}")
        return str(document["name"]), cell

    def load_extensions(self) -> None:
        """Load the copies of the user's own files.

        Raises:
            InputError: one does not run.
        """
        for path in sorted((self.folder / "extend").glob("*.py")):
            Extension(path.name, path.read_text(encoding="utf-8")).load()

    def write_cell(self, name: str, cell: Cell, *, durable: bool = True) -> None:
        """Write the cell, unless it is there."""
        if (read_json(self.cell_file) or {}).get("id") != cell.id:
            document = {"name": name, "id": cell.id, "cell": cell.model_dump(mode="json")}
            write_json(self.cell_file, document, durable=durable)


def step_of(path: Path) -> int:
    """The number at the end of a file's name."""
    return int(path.stem.rpartition("-")[2])


def meta_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, read from the head of the file without torch; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), _LONGEST_HEAD)))
            found = json.loads(head["__metadata__"]["harness"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def belongs(meta: Mapping[str, Any], cell_id: str, step: int) -> bool:
    """Whether a checkpoint's own words do not deny that it is this cell's, at this step; old ones say less."""
    return bool(meta.get("cell", cell_id) == cell_id and meta.get("step", step) == step)
