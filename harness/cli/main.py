"""The command `dit-harness`: parse, call, print. A verb imports heavy modules only when it runs."""

from __future__ import annotations

import errno
import gc
import logging
import sys
from importlib import metadata
from typing import Annotated

import typer

from harness.cli import streams
from harness.cli.clean import clean
from harness.cli.export import export, import_
from harness.cli.fit import fit
from harness.cli.forecast import forecast
from harness.cli.launch import evaluate, launch
from harness.cli.new import new
from harness.cli.options import Verbs
from harness.cli.pilot import pilot
from harness.cli.plan import plan
from harness.cli.prepare import encode, train_extractor, train_vae
from harness.cli.recommend import recommend
from harness.cli.report import collect, report
from harness.cli.sample import sample
from harness.cli.status import cancel, logs, status
from harness.cli.verify import verify
from harness.cli.words import reflowed
from harness.errors import InputError

app = typer.Typer(
    name="dit-harness",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=reflowed("""Scaling studies of Diffusion Transformers: from a grid of models to the GFLOPs-vs-FID plots.

    A study is a sweep file (TOML), such as sweeps/quickstart.toml. Every verb takes the file, or the study's name (the
    file's stem) once it was launched.

    \b
    dit-harness new FOLDER --hours 1             a sweep for images of your own
    dit-harness plan sweeps/quickstart.toml      what would run, and what it costs
    dit-harness launch sweeps/quickstart.toml    run every cell; again to resume
    dit-harness report quickstart                table, fits, figures, report.html

    Exit codes: 0 all well, 1 some cells failed, 2 bad input (nothing was started), 130 stopped by Ctrl-C, SIGTERM or
    the end of the terminal, 141 nobody reads the output."""),
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"dit-harness {metadata.version('dit-scaling-harness')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


#: The verbs in the order of the help. An underscore stands for a dash; one at the end avoids a keyword.
_VERBS = (
    *(new, plan, pilot, train_extractor, train_vae, encode, launch, evaluate, status, cancel, logs),
    *(collect, report, fit, recommend, forecast, sample, export, import_, verify, clean),
)
for verb in _VERBS:
    app.command(verb.__name__.strip("_").replace("_", "-"), help=reflowed(verb.__doc__ or ""))(verb)


def main() -> None:
    """Run the command. Bad input and missing permission give one line and exit code 2, a full disk one line and code 1.

    Messages of libraries through `logging` are lines on stderr, too. A command whose output nobody reads any more, as
    after `| head -1`, ends without a word; only what trains or measures goes on.
    """
    gc.set_threshold(100_000)  # to look for garbage 700 objects apart takes a tenth of the time to load torch
    streams.prepare()
    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING)
    try:
        try:
            _run()
        finally:
            streams.flush()
    except BrokenPipeError:
        streams.silence(sys.stdout, sys.stderr)
        sys.exit(streams.BROKEN_PIPE)


def _run() -> None:
    try:
        app()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        from harness.files import is_full

        if is_full(error):
            print(f"error: {error}; what runs goes on; make room, then the same command", file=sys.stderr)
            sys.exit(1)
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(2)
        raise
