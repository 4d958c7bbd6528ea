"""The verb verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as cli
from harness.cli import streams

if TYPE_CHECKING:
    from harness.cli.fitted import FittedTable
    from harness.evaluation.verify import Subject, Verified


@cli.takes_fields(resources=("threads", "device", "sampling_batch", "inception_weights", "adm_reference"))
def verify(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", callback=cli.home, help="An official .pt file of DiT or SiT.")
    ],
    objective: Annotated[
        str | None, typer.Option(help="What it was trained for: ddpm-hybrid (DiT, default) or flow (SiT).")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="One of the published scales. Default: the first in the table.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, help="A try of the way through, with fewer images. Default: as published.")
    ] = None,
    sampling_steps: Annotated[
        int | None, typer.Option(min=1, help="A try with fewer steps. Default: as published.")
    ] = None,
    results: cli.ResultsOption = cli.RESULTS,
    **given: Any,
) -> None:
    """Sample and score a released checkpoint, and hold what comes out against what was published of it.

    Needs no data set: ADM's reference batch (--adm-reference), the weights of Inception (--inception-weights) and the
    autoencoder, as results/_vae/NAME or from the hub. Prints published value, ours, difference, tolerance and verdict,
    and adds what compares to results/verified.csv. With other samples or steps than published, or other weights of
    Inception, nothing compares, and nothing is added.

    Ctrl-C stops it; the same command goes on after the last whole batch (--sampling-batch) of samples. Exit code 1:
    a value is outside its tolerance.
    """
    from harness.cli.bars import WorkBar
    from harness.cli.words import wrapped
    from harness.errors import CellFailedError
    from harness.evaluation.verify import OUTSIDE, PATH_ONLY, TABLE, Asked, prepare
    from harness.evaluation.verify import verify as work
    from harness.launch.signals import interrupting
    from harness.runs.study import Shared
    from harness.spec.identity import validated
    from harness.spec.resources import Resources
    from harness.training.hooks import Hooks

    named = {key: value for key, value in given.items() if value is not None}
    resources, shared = validated(Resources, named, "command line, resources"), Shared(results)
    subject = prepare(checkpoint, Asked(objective, guidance, samples, sampling_steps), shared, resources)
    print(wrapped(_cost(subject)))
    try:
        with interrupting(), streams.lasting(), WorkBar(cli.console(), images=False) as bar:
            rows = work(subject, shared, resources, Hooks(report=bar.report))
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last whole batch of samples", file=sys.stderr)
        raise typer.Exit(130) from None
    except CellFailedError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise typer.Exit(1) from None
    cli.print_table(_table(subject, rows), wide=False)
    if stray := subject.strays(rows[0].extractor):
        print(wrapped(f"{PATH_ONLY}: {'; '.join(stray)}. Nothing is added to {results / TABLE}"))
        return
    print(f"{len(rows)} rows are in {results / TABLE}")
    if any(row.verdict == OUTSIDE for row in rows):
        raise typer.Exit(1)


def _cost(subject: Subject) -> str:
    """What will be done, and what it costs."""
    from harness.cli.words import number, sampling_text, size_of
    from harness.launch.estimate import sampling_passes
    from harness.model.cost import count_cell

    cell, evaluation = subject.cell, subject.evaluation
    shape = cell.data.image_shape
    gmacs = count_cell(cell).macs / 1e9 * sampling_passes(evaluation, cell.diffusion)
    disk = evaluation.samples * shape.size**2 * shape.channels
    return (
        f"{subject.published.label}: {sampling_text(evaluation)}; decoder {subject.published.decoder}, reference "
        f"{subject.published.reference}; {number(gmacs)} GMACs of sampling, {size_of(disk)} of samples"
    )


def _table(subject: Subject, rows: list[Verified]) -> FittedTable:
    from harness.cli.fitted import Column, FittedTable
    from harness.cli.words import number

    row = subject.published
    columns = [
        Column("metric", lambda row: row["of"].metric, rank=6),
        Column("published", lambda row: number(row["of"].published), "right", 5),
        Column("ours", lambda row: number(row["of"].ours), "right", 4),
        Column("difference", lambda row: number(row["of"].difference), "right", 3),
        Column("tolerance", lambda row: number(row["of"].tolerance), "right", 1),
        Column("verdict", lambda row: row["of"].verdict, "left", 2, 12),
    ]
    caption = f"published: {row.source}; reference {rows[0].reference}, features {rows[0].extractor}"
    title = f"{row.label}, guidance {row.guidance:g}: published and ours"
    return FittedTable(title, columns, [{"of": found} for found in rows], caption)
