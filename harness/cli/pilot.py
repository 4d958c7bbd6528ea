"""The verb that finds a learning rate for every width: pilot."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options as cli
from harness.cli import streams
from harness.cli.launch import RESOURCES, run
from harness.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.fit.rates import BestRate
    from harness.cli.fitted import FittedTable
    from harness.runs.cellruns import CellRun
    from harness.runs.study import Study

#: Fewest rates that a parabola takes.
_FEWEST = 3


@cli.takes_fields(resources=(*RESOURCES, "micro_batch", "compile"))
def pilot(
    study: cli.StudyArgument,
    results: cli.ResultsOption = cli.RESULTS,
    hours: Annotated[
        float | None,
        typer.Option(help="Wall time it may take; decides its largest width. Default: the sweep's largest."),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(help="Rates to try, with commas between. Default: five around the sweep's own, a factor 3 apart."),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run failed and cancelled cells again, too.")] = False,
    wait: cli.WaitOption = False,
    wide: cli.WideOption = False,
    **given: Any,
) -> None:
    r"""Find the best learning rate at three widths, and the law of the width through them.

    One rate for all widths bends the slope of a scaling law: what suits the smallest model may be far from the best of
    the largest. A pilot trains the cheapest cell of the smallest width, of a middle one, and of the largest that fits
    --hours when it begins, at five rates and two seeds each, for a quarter of the sweep's steps; warm-up and averaging
    are a quarter as long, too. It prints the rate with the lowest held-out loss at each width, and the line for the
    sweep file.

    \b
    dit-harness pilot sweeps/quickstart.toml --hours 0.2
    dit-harness pilot sweeps/quickstart.toml --rates 1e-3,3e-3,1e-2,3e-2     other rates; those done count

    The pilot is a study, SWEEP-pilot: status, logs, cancel, launch and report take its name. Ctrl-C stops it, and the
    same command goes on. A best rate at the end of those tried gives no law, and the rates to try next.
    """
    from harness.cli.words import duration, wrapped
    from harness.launch.pilot import design, save
    from harness.runs.study import Study

    if hours is not None and not 0 < hours < math.inf:
        raise InputError(f"--hours: {hours}; allowed: a finite number above 0")
    asked = _rates(rates)
    as_written, _ = cli.resolve(study, results)
    sweep, _ = cli.resolve(study, results, given)
    own = Study(results, f"{sweep.study}-pilot")
    made = design(sweep, own, asked, hours)
    count = sum(1 for _ in made.sweep.cells())
    names = ", ".join(map(str, made.widths))
    took = f"{count} trainings, about {duration(made.seconds)} in all ({made.source})"
    print(wrapped(f"pilot {own.name}: widths {names}, {took}"))
    save(replace(made.sweep, resources=as_written.resources), own)
    sweep, folder = cli.resolve(own.name, results, given)
    everything = cli.items_of(sweep, folder)
    with streams.lasting():
        ended = run(sweep, folder, everything, everything, retry=retry, wait=wait)
        _print_rates(folder, ended, f"pilot {study}, with the same options", wide=wide)


def _rates(text: str | None) -> tuple[float, ...] | None:
    """The rates of the option, rising.

    Raises:
        InputError: they are no rates, or too few.
    """
    if text is None:
        return None
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if len(found) < _FEWEST or not all(0 < rate < math.inf for rate in found):
        raise InputError(f"--rates: {text!r}; allowed: {_FEWEST} numbers above 0 or more, with commas between")
    return tuple(found)


def _print_rates(study: Study, ended: list[CellRun], again: str, *, wide: bool) -> None:
    """Print the best rates and the law; or what is not done, and how to go on.

    Raises:
        Exit: with code 1 if a training is not done for another reason than its rate.
    """
    from analysis.fit.common import CannotFitError
    from analysis.fit.rates import best_rates, rate_law
    from harness.cli.words import wrapped
    from harness.runs.collect import collect
    from harness.runs.state import State

    rows = collect(study, ended)
    diverged = [item for item in ended if _diverged(item)]
    unfinished = [item for item in ended if item.now.state is not State.DONE and item not in diverged]
    for item in unfinished:
        print(f"{item.name}: {item.now.state}: {item.now.message} (log: {item.run.log})", file=sys.stderr)
    if unfinished:
        print(f"{len(unfinished)} of {len(ended)} trainings are not done; again: dit-harness {again}", file=sys.stderr)
        raise typer.Exit(1)
    try:
        found = best_rates(_trials(rows, diverged))
    except CannotFitError as error:
        print(wrapped(f"no best rate: {error}"))
        return
    cli.print_table(_table(found), wide=wide)
    try:
        law = rate_law(found)
    except CannotFitError as error:
        print(wrapped(f"no law: {error}"))
        if any(best.edge for best in found):
            print(wrapped(f"again with: --rates {','.join(f'{rate:g}' for rate in _further(found))}"))
        return
    low, high = law.interval
    print(wrapped(f"the best rate goes as width^-{law.exponent:.2f} (95 %: {low:.2f} to {high:.2f})"))
    if low <= 0 <= high:
        print(wrapped("this does not show that the best rate depends on the width: one rate for all may do as well"))
    print(f"for the sweep file, under [training]:\n{law.text}")


def _diverged(item: CellRun) -> bool:
    """Whether a training ended because its loss or weights were not finite."""
    from harness.runs.state import State
    from harness.runs.triage import Cause, cause_of

    attempt = item.now.attempt
    return item.now.state is State.FAILED and attempt is not None and cause_of(attempt) == Cause.NON_FINITE


def _trials(rows: Sequence[dict[str, Any]], diverged: Sequence[CellRun]) -> pd.DataFrame:
    """Width, rate, seed and held-out loss of every training, after its last step."""
    import pandas as pd

    last = {row["cell"]: row for row in sorted(rows, key=lambda row: row["step"])}
    trials = [(row["width"], row["learning_rate"], row["seed"], row["loss_heldout"]) for row in last.values()]
    for cell in (item.cell for item in diverged):
        trials.append((getattr(cell.model, "width", None), cell.training.learning_rate, cell.seed, math.inf))
    return pd.DataFrame(trials, columns=["width", "learning_rate", "seed", "loss"])


def _table(found: Sequence[BestRate]) -> FittedTable:
    """The losses by width and rate, and the best rate of each width."""
    from harness.cli.fitted import Column, FittedTable
    from harness.cli.words import number

    rates = sorted({rate for best in found for rate in best.losses})

    def loss(best: Any, rate: float) -> str:
        value = best.losses.get(rate)
        return "" if value is None else "diverged" if math.isinf(value) else number(value)

    columns = [
        Column("width", lambda row: str(row["best"].width), "right", 10),
        *(Column(f"{rate:g}", lambda row, rate=rate: loss(row["best"], rate), "right", 5) for rate in rates),  # type: ignore[misc]
        Column("best rate", lambda row: f"{row['best'].rate:.2g}", "right", 9),
        Column("95 %", lambda row: _interval(row["best"]), "left", 8),
        Column("note", lambda row: _note(row["best"]), "left", 7, 16),
    ]
    caption = (
        "held-out loss (noise MSE of the averaged weights) by learning rate, geometric mean over seeds; best rate: "
        "bottom of a parabola through the best one tried and its neighbours; its interval: by the spread over seeds"
    )
    return FittedTable("Best learning rate by width", columns, [{"best": best} for best in found], caption)


def _interval(best: BestRate) -> str:
    return "" if best.interval is None else f"{best.interval[0]:.2g} to {best.interval[1]:.2g}"


def _note(best: BestRate) -> str:
    """What is to be known of a best rate."""
    if best.edge:
        return f"the {best.edge} tried: the best may lie beyond"
    higher = min(rate for rate in best.losses if rate > best.tried)
    return "the next higher rate diverges: no parabola" if math.isinf(best.losses[higher]) else ""


def _further(found: Sequence[BestRate]) -> list[float]:
    """The rates tried, and two more beyond each end that is the best."""
    rates = sorted({rate for best in found for rate in best.losses})
    edges = {best.edge for best in found}
    more = [rates[0] / 9, rates[0] / 3] if "lowest" in edges else []
    more += [rates[-1] * 3, rates[-1] * 9] if "highest" in edges else []
    return sorted([*rates, *(float(f"{rate:.2g}") for rate in more)])
