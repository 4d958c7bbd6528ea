"""The verb sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as cli
from harness.errors import InputError

_IMPORTED = ".safetensors"


def sample(
    study: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            callback=cli.home,
            help="A sweep file, a study's name, or a .safetensors file of import.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=cli.home, help="The .png to make; must not exist.")
    ],
    cell: Annotated[str | None, typer.Argument(help="Name of the cell, or the beginning of its id.")] = None,
    label: Annotated[
        int | None, typer.Option("--class", min=0, help="Class of all images. Default: the classes in turn.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Images.")] = 16,
    guidance: Annotated[float, typer.Option(min=0, help="Scale of classifier-free guidance; 1: none.")] = 1.0,
    sampler: Annotated[
        str | None, typer.Option(help="Default: that of the cell's first evaluation, or the objective's first.")
    ] = None,
    sampling_steps: Annotated[
        int | None, typer.Option(min=1, help="Default: those of the cell's first evaluation, or 250.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Decides noise; the same images again.")] = 0,
    step: Annotated[int | None, typer.Option(min=1, help="A kept step. Default: the last.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The plain weights instead of the averaged ones (EMA).")] = False,
    vae: Annotated[
        str | None, typer.Option(callback=cli.home, help="Imported latents: folder or hub name of the autoencoder.")
    ] = None,
    results: cli.ResultsOption = cli.RESULTS,
) -> None:
    """Draw images from a trained cell, or from imported weights, and write them as one picture.

    Needs no data set, only the autoencoder of latents. The weights are those of the last step, averaged. The same seed
    gives the same images; another class or guidance changes the images and not their noise.
    """
    from harness.cli.bars import WorkBar
    from harness.evaluation.sample import Sampler, write_samples
    from harness.runs.study import Shared
    from harness.spec.evaluation import Evaluation

    shared, asked = Shared(results), None
    if study.endswith(_IMPORTED):
        if cell is not None or step is not None or raw:
            odd = "CELL" if cell is not None else "--raw" if raw else "--step"
            raise InputError(f"{odd}: is about the cell of a study; leave it out with {study}")
        found = Sampler.of_checkpoint(Path(study), shared, vae=vae)
    else:
        if vae is not None:
            raise InputError(f"--vae: a cell names its own autoencoder; allowed with a {_IMPORTED} file of import")
        sweep, folder = cli.resolve(study, results)
        items = cli.items_of(sweep, folder)
        if cell is None:
            raise InputError(f"CELL: is missing; allowed: {', '.join(item.name for item in items)}")
        item = cli.find_cell(items, cell, folder)
        found = Sampler.of_cell(item, shared, step=step, ema=not raw)
        asked = next(iter(item.evaluations), None)
    given = {"sampler": sampler, "sampling_steps": sampling_steps}
    fields = {"samples": count, "guidance": guidance, "seed": seed, **{k: v for k, v in given.items() if v is not None}}
    asked = (asked or Evaluation(sampler=found.diffusion.samplers[0])).model_copy(update=fields)
    with WorkBar(cli.console()) as bar:

        def report(done: int, total: int) -> None:
            bar.report({"stage": "sample", "done": done, "total": total})

        write_samples(found, asked, label, output, report)
    what = "classes in turn" if label is None else f"class {label}"
    how = f"{asked.sampler.upper()} {asked.sampling_steps} steps, guidance {asked.guidance:g}, seed {asked.seed}"
    print(f"{count} images, {what if found.network.shape.classes else 'no classes'}, {how}: {output}")
