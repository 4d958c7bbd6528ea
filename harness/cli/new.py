"""The verb that proposes a sweep for a folder of images: new."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options as cli
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.cli.fitted import FittedTable
    from harness.data.survey import Survey
    from harness.launch.probe import ProbeJob
    from harness.launch.proposal import Prices
    from harness.runs.study import Study
    from sweeps.proposal import Design, Facts

#: With fewer images than this the models soon know them by heart, and a distance is a rough number.
_FEW = 1000

#: From so many images of the largest class for one of the smallest on, the imbalance is worth a word.
_UNEVEN = 3

#: Most classes whose names and counts are printed.
_NAMED = 8


def new(
    folder: Annotated[Path, typer.Argument(callback=cli.home, help="A folder of images, or with one folder a class.")],
    results: cli.ResultsOption = cli.RESULTS,
    hours: Annotated[float | None, typer.Option(help="Wall time on this machine. Default: 1.")] = None,
    gpu_hours: Annotated[float | None, typer.Option(help="In its place: time of one GPU, of all cells.")] = None,
    classes: Annotated[int | None, typer.Option(help="0: learn without the classes. Default: the subfolders.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", callback=cli.home, help="The sweep file. Default: sweeps/ or ./, FOLDER.toml."),
    ] = None,
    wide: cli.WideOption = False,
) -> None:
    r"""Propose a sweep for a folder of your own images, and write it as a sweep file with comments.

    The folder is read once: classes, sizes, equal files, and what is left out, and why. Resolution, models, steps,
    batch and evaluation follow from the time: some steps of each model are timed on this machine, as by
    `plan --measure`, and the richest study that fits is proposed. The file runs as it is.

    \b
    dit-harness new photos --hours 1
    dit-harness new photos --gpu-hours 100 -o sweeps/photos-large.toml
    dit-harness new photos --classes 0               without the classes

    The folder holds images, or one subfolder a class, or train/ and val/ with the same subfolders.
    """
    from harness.launch.proposal import Prices, proposal
    from harness.runs.study import Study
    from sweeps.grid import study_name

    option, asked = _budget(hours, gpu_hours)
    path = output or _path_for(folder)
    if path.suffix != ".toml":
        raise InputError(f"--output: {path}; allowed: a name that ends in .toml")
    study = Study(results, study_name(str(path)))
    for taken in (path, study.folder):
        if taken.exists():
            raise _taken(taken)
    found = _read(folder, study)
    facts = _facts(found, classes, study.name)
    cli.print_table(_table(folder, found), wide=wide)
    prices = Prices(path, study, gpu_time=option == "--gpu-hours")
    design = proposal(facts, asked * 3600, prices, _measure)
    _refuse_too_little(design, prices, option, asked)
    _write(design, prices, option, asked)
    _tell(found, design, prices, asked)


def _budget(hours: float | None, gpu_hours: float | None) -> tuple[str, float]:
    """The option that names the budget, and its value.

    Raises:
        InputError: both are given, or a value is no time.
    """
    if hours is not None and gpu_hours is not None:
        raise InputError("--hours and --gpu-hours: give one of them")
    option, value = "--hours", 1.0 if hours is None else hours
    if gpu_hours is not None:
        option, value = "--gpu-hours", gpu_hours
    if not 0 < value < math.inf:
        raise InputError(f"{option}: {value}; allowed: a finite number above 0")
    return option, value


def _path_for(folder: Path) -> Path:
    """Where the sweep file of a folder is written by default: where every verb finds a study by its name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("._-") or "images"
    return Path("sweeps" if Path("sweeps").is_dir() else ".") / f"{name}.toml"


def _read(folder: Path, study: Study) -> Survey:
    """Read the folder, behind a progress bar."""
    from harness.cli.bars import WorkBar
    from harness.data.survey import survey
    from harness.runs.study import Shared

    with WorkBar(cli.console(stderr=True)) as bar:
        cache = Shared(study.root).images_folder
        return survey(folder, cache, lambda done, total: bar.report({"stage": "read", "done": done, "total": total}))


def _facts(found: Survey, classes: int | None, name: str) -> Facts:
    """What the proposal must know.

    Raises:
        InputError: another number of classes is asked for than the folder has.
    """
    from sweeps.proposal import Facts

    count = len(found.tree.classes)
    if classes not in (None, 0, count):
        raise InputError(f"--classes: {classes}; allowed: 0, or the {count} of the folder")
    folder = str(found.tree.root.resolve())
    labelled = classes != 0 and count > 1
    extractor = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789") or "own"
    return Facts(folder, extractor, found.fingerprint, found.train, len(found.tree.heldout), found.side, labelled)


def _measure(jobs: Sequence[ProbeJob]) -> None:
    """Run probes behind a progress bar."""
    from harness.cli.bars import WorkBar
    from harness.launch.probe import run_probes
    from harness.launch.signals import interrupting

    try:
        with interrupting(), WorkBar(cli.console(stderr=True), images=False) as bar:
            for done, _ in enumerate(run_probes(jobs), 1):
                bar.report({"stage": "probes", "done": done, "total": len(jobs)})
    except KeyboardInterrupt:
        print("stopped; nothing is written; what was measured is kept for the same command", file=sys.stderr)
        raise typer.Exit(130) from None


def _refuse_too_little(design: Design, prices: Prices, option: str, asked: float) -> None:
    """Check that the budget is enough for the smallest study.

    Raises:
        InputError: it is not.
    """
    from dataclasses import replace

    from sweeps.proposal import COUNTED

    if design.steps < design.fewest_steps:
        needed = prices(replace(design, steps=design.fewest_steps)) / COUNTED / 3600
        raise InputError(
            f"{option} {asked:g}: the smallest study takes about {1.05 * needed:.2g}; allowed: that or more"
        )


def _write(design: Design, prices: Prices, option: str, asked: float) -> None:
    """Write the sweep file; one that is there stays."""
    from harness.cli.words import duration
    from harness.files import put_new, write_atomic
    from sweeps.commented import text_of

    path, name = prices.path, prices.study.name
    cells = sum(1 for _ in design.sweep(path, name).cells())
    head = [
        f"{design.document['title']}? {cells} trainings, about {duration(prices(design))} {prices.where(design)},",
        f"without starts, losses and scoring. Proposed by `dit-harness new` for {option} {asked:g}.",
        f"Run: dit-harness launch {path} && dit-harness report {name}",
    ]
    text = text_of(design, head)
    try:
        write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), put=put_new)
    except FileExistsError:
        raise _taken(path) from None


def _taken(path: Path) -> InputError:
    return InputError(f"{path}: is there already; allowed: another file, by --output NAME.toml")


def _table(folder: Path, found: Survey) -> FittedTable:
    """What the folder holds, and what is left out."""
    from harness.cli.fitted import Column, FittedTable
    from harness.data.trees import shown

    counts, tree = found.counts, found.tree
    learned, held_out = len(tree.train), len(tree.heldout)
    split = "a tenth of each class, chosen by the hash of its path" if tree.own_split else "val/"
    rows = [("images", f"{learned + held_out:,}: {learned:,} to learn from, {held_out:,} held out ({split})")]
    if tree.is_flat:
        rows.append(("classes", "none"))
    else:
        names = [f"{shown(name)} {count:,}" for name, count in counts.items()]
        some = names if len(names) <= _NAMED else [*names[: _NAMED - 1], "...", names[-1]]
        rows.append(("classes", f"{len(counts):,}: {', '.join(some)}"))
        rows.append(("imbalance", f"{found.imbalance:.3g} to 1"))
    sides = found.sides
    rows.append(("short sides", f"{sides[0]} to {sides[-1]} pixels, half of them {found.side} or less"))
    leaked = f", of which {found.leaked:,} held-out ones equal one to learn from" if found.leaked else ""
    rows.append(("equal files", f"{found.equal:,} equal another one byte for byte{leaked}" if found.equal else "none"))
    rows += [
        ("left out", f"{len(paths):,} {reason} ({', '.join(map(shown, paths[:2]))}{', ...' * (len(paths) > 2)})")
        for reason, paths in found.reasons.items()
    ]
    columns = [Column("what", lambda row: row["what"]), Column("found", lambda row: row["found"], least=30)]
    return FittedTable(
        f"What is in {shown(folder)}", columns, [{"what": what, "found": text} for what, text in rows], ""
    )


def _tell(found: Survey, design: Design, prices: Prices, asked: float) -> None:
    """Print what is proposed, what is to be known of it, and the commands that follow."""
    from harness.cli.words import duration, number, wrapped

    path, facts, rows = prices.path, design.facts, prices.rows(design)
    gmacs = sorted({row["gmacs"] for row in rows})
    what = f"latents of {design.resolution} x {design.resolution} pixels" if design.on_latents else "pixels"
    models = len({(row["depth"], row["width"], row["patch_size"]) for row in rows})
    seconds = prices(design)
    lines = [
        f"proposed: {design.resolution} x {design.resolution} {what}, {models} models of {number(gmacs[0])} to "
        f"{number(gmacs[-1])} GMACs, {design.seeds} seed{'s' * (design.seeds > 1)} of each, {design.steps:,} steps of "
        f"{design.batch_size} images ({design.steps * design.batch_size / facts.images:.3g} passes over them)",
        f"time: about {duration(seconds)} {prices.where(design)}, and up to "
        f"{duration(asked * 3600)} with starts, losses and scoring",
    ]
    for line in [*lines, *_notes(found, design, seconds, asked * 3600)]:
        print(wrapped(line))
    extra = ("train-vae", "encode") if design.on_latents else ()
    verbs = [
        ("plan", f"{path}{'' if prices.here else ' --gpus 1'}"),
        *((verb, path) for verb in extra),
        ("launch", path),
        ("report", prices.study.name),
    ]
    print(f"written: {path}; next:")
    for verb, argument in verbs:
        print(f"  dit-harness {verb} {argument}")


def _notes(found: Survey, design: Design, seconds: float, budget: float) -> list[str]:
    """What is to be known of a study of such a folder."""
    from sweeps.proposal import MOST_EPOCHS

    notes, images = [], design.facts.images
    if images < _FEW:
        notes.append(
            f"{images:,} images are few: the models may learn them by heart (column copies, and loss_heldout that "
            "rises), and distances are rough"
        )
    if found.leaked:
        notes.append("held-out images that equal one to learn from make held-out losses and distances look better")
    if design.facts.labelled and found.imbalance >= _UNEVEN:
        notes.append("samples have classes as frequent as in the folder, so the large classes decide the distance")
    if design.resolution > found.side:
        notes.append(f"half of the images or more are enlarged to {design.resolution} pixels")
    if seconds < budget / 2:
        notes.append(
            f"this is less than the time asked for: more steps would show every image more than {MOST_EPOCHS} times"
        )
    return [f"note: {note}" for note in notes]
