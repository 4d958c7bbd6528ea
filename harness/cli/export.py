"""The verbs that read and write files of other programs: export, import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options as cli
from harness.errors import InputError

RawOption = Annotated[bool, typer.Option("--raw", help="The plain weights instead of the averaged ones (EMA).")]


def export(
    study: cli.StudyArgument,
    cell: cli.CellArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=cli.home, help="The file or folder to make; must not exist.")
    ],
    format: Annotated[str, typer.Option(help="official (.pt file), diffusers (folder) or npz (samples).")] = "official",
    raw: RawOption = False,
    step: Annotated[int | None, typer.Option(min=1, help="A kept step. Default: the last.")] = None,
    vae: Annotated[
        Path | None, typer.Option(callback=cli.home, help="diffusers: another folder of its AutoencoderKL.")
    ] = None,
    evaluation: Annotated[str | None, typer.Option(help="npz: beginning of its id, if there are several.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="npz: the first so many. Default: all.")] = None,
    results: cli.ResultsOption = cli.RESULTS,
) -> None:
    """Write a trained cell's weights as an official DiT (flow: SiT) checkpoint or a diffusers folder, or its samples.

    npz: the generated images as evaluators of the ADM suite take them, arr_0 uint8 (N, H, W, C), and arr_1, labels.

    Weights: only of adaln-zero with labels, the others exist in neither format. Of objective flow only as official:
    it is a SiT checkpoint, with the names and times of SiT's code. Two things to know about the diffusers folder. Its
    transformer spaces the timestep frequencies differently and so gives slightly other outputs, until
    harness.model.diffusers.match_timesteps is called on it. And DiTPipeline drops the learned variance and fixes the
    null class at 1000: a model of other than 1000 classes must be called with guidance_scale <= 1.
    """
    from harness.evaluation.export import SAMPLES_FORMAT, export_samples
    from harness.evaluation.export import export as write
    from harness.runs.study import Shared

    sweep, folder = cli.resolve(study, results)
    item = cli.find_cell(cli.items_of(sweep, folder), cell, folder)
    if format == SAMPLES_FORMAT:
        if raw or vae is not None:
            raise InputError(f"{'--raw' if raw else '--vae'}: is about weights; leave it out with --format npz")
        made = export_samples(item, output, step=step, evaluation=evaluation, count=samples)
        print(f"{item.name}: {made}, in {output}")
        return
    if evaluation is not None or samples is not None:
        raise InputError(f"{'--samples' if samples is not None else '--evaluation'}: allowed with --format npz")
    shared = Shared(results)
    note = write(item, output, format, ema=not raw, step=step, vae=vae, shared=shared, sweep=str(sweep.path))
    print(f"{item.name}: {'plain' if raw else 'averaged'} weights in {output}")
    if note:
        print(f"note: {note}", file=sys.stderr)


def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", callback=cli.home, help="A .pt file, or a folder of DiTTransformer2DModel or DiTPipeline."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", callback=cli.home, help="The .safetensors file to make; must not exist.")
    ],
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, where an official file needs it.")] = None,
    raw: RawOption = False,
    objective: Annotated[
        str | None, typer.Option(help="What it was trained for: ddpm-hybrid (DiT, default) or flow (SiT).")
    ] = None,
) -> None:
    """Read an official DiT or SiT checkpoint or a diffusers DiT into a weights file of this harness.

    DiT's and SiT's files look alike: --objective flow says that it is SiT's.

    Nothing in the file is executed: a pickle that carries code is refused. Weights that do not fit are refused too,
    with every missing, unknown and misshapen tensor named, and so are values that are not finite. The result holds the
    weights (under model. and ema., as the weights files of runs do) and, as metadata, the model's shape. It belongs to
    no study: which data, batch and steps made it is not known here.
    """
    from harness.evaluation.export import import_weights

    found = import_weights(source, output, heads=heads, ema=not raw, objective=objective)
    model, shape = found.model, found.shape
    print(
        f"{output}: depth {model.depth}, width {model.width}, heads {model.heads}, patch_size {model.patch_size}, "
        f"input {shape.size}x{shape.size}x{shape.channels}, {shape.classes} classes"
    )
