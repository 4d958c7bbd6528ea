"""Laws, optima and frontiers as printed tables and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.frontier import Frontier
from analysis.laws.approaches import Approach
from analysis.laws.summary import LawSummary
from analysis.names import shape_name
from analysis.numbers import Unrounded, interval, number
from analysis.page import Table
from analysis.printed import plain


def law_table(found: Sequence[LawSummary]) -> Table:
    """The constants of every law, with their intervals."""
    words = found[0].words
    fitted = [summary for summary in found if summary.fit is not None]
    names = dict.fromkeys(name for summary in fitted for name in (summary.fit.constants if summary.fit else ()))
    rows = []
    for summary in fitted:
        if (fit := summary.fit) is None:
            continue
        cells = [_with_interval(fit.constants.get(name), fit.intervals.get(name)) for name in names]
        about = (f"{fit.runs} of {fit.models}", *cells, f"{number(fit.sigma * 100, 2)} %", f"{fit.delta:.2g}")
        rows.append((summary.label, *about, fit.flags))
    size, data, tokens = words.size, words.data, "gamma" in names
    of_size = f"({size}^alpha T^gamma)" if tokens else f"{size}^alpha"
    caption = (
        f"The law {words.loss} = E + A / {of_size} + B / {data}^beta, by log-sum-exp and a summed Huber loss; "
        f"{words.meaning}{', T: tokens of an image' if tokens else ''}. In brackets 95 % by a bootstrap over models. "
        "Residual: standard deviation; delta: residual of ln loss from which a run counts linearly."
    )
    columns = " | ".join(("Runs", "Runs of models", *names, "Residual", "Delta", "Flags"))
    return Table.of(caption, columns, rows)


def _with_interval(value: float | None, pair: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{number(value)} ({interval(pair)})" if pair else number(value)


def approach_table(found: Sequence[LawSummary]) -> Table:
    """How the best size and the best amount of data grow with compute, in the three ways."""
    words = found[0].words
    rows: list[tuple[Any, ...]] = []
    for summary in found:
        for approach in summary.approaches:
            exponents = (approach.size_exponent, approach.size_interval, approach.data_exponent, approach.data_interval)
            printed = [interval(value) if isinstance(value, tuple) else number(value, 3) for value in exponents]
            count = "" if approach.name == "parametric" else f"{approach.enclosed} of {len(approach.optima)}"
            rows.append((summary.label, approach.name, *printed, count, approach.why or "none"))
    size, data = words.size, words.data
    caption = (
        f"How the best {size} and the best {data} of a budget C = 6 {size} {data} grow with it, by the three "
        "approaches of Hoffmann et al. (2022). Intervals: bootstrap over models. Enclosed: budgets at which a smaller "
        "and a larger model were measured and are worse; only these count. Envelope and parabolas are biased by a wide "
        "or lopsided choice of sizes."
    )
    columns = f"Runs | Approach | {size}*: C^ | 95 % | {data}*: C^ | 95 % | Budgets enclosed | Flags"
    return Table.of(caption, columns, rows)


def optimum_table(found: Sequence[LawSummary]) -> Table:
    """The bottom of the parabola at every budget."""
    words, rows = found[0].words, []
    for summary in found:
        approach = summary.approach("parabolas")
        for o in approach.optima if approach else ():
            ends = interval(o.size_interval) if o.size_interval else "none: three models" if o.enclosed else ""
            enclosed = "yes" if o.enclosed else "no: it lies beyond the models measured"
            where = (number(o.size, 3), ends, number(o.data, 3), o.loss, enclosed)
            rows.append((summary.label, number(o.compute, 3), o.models, *where))
    size = words.size
    caption = f"At every training budget C, in operations, the bottom of a parabola of ln {words.loss} over ln {size}."
    if any(summary.budgets is not None and summary.budgets.interpolated for summary in found):
        caption += " Losses are interpolated between the checkpoints of a model."
    columns = f"Runs | C | Models | {size}* | 95 % | {words.data}* | {words.loss} | Enclosed"
    return Table.of(caption, columns, rows)


def tokens_table(summary: LawSummary) -> Table | None:
    """What the term for tokens predicts of patch sizes left out; None where it was not tested."""
    test = summary.tokens
    if test is None:
        return None
    rows = [
        (int(tokens), f"{number(plain_error, 3)} %", f"{number(error, 3)} %")
        for tokens, plain_error, error in zip(test.tokens, test.plain, test.with_tokens, strict=True)
    ]
    verdict = "it predicts better and is kept" if test.earned else "it does not predict better and is left out"
    caption = f"Errors of the law on the patch size left out, without and with a term for tokens: {verdict}."
    return Table.of(caption, "Tokens left out | Without | With T^gamma", rows)


def frontier_table(found: Frontier, metric: str, label: str, what: str = "training") -> Table:
    """The checkpoints on the lower envelope."""
    caption = (
        f"Checkpoints that no other beats with as little {what} compute: {len(found.points)} of {found.checkpoints} "
        f"checkpoints of {found.models} models. {label}."
    )
    if found.law is not None:
        caption += f" {metric} = {number(found.law.coefficient)} C^-{found.law.exponent:.3f} along it."
    caption += f" Flags: {'; '.join(found.flags)}."
    rows = [
        (shape_name(p.size, p.patch_size), p.step, number(p.compute, 3), p.gmacs, p.params / 1e6, p.metric)
        for p in found.points
    ]
    return Table.of(caption, f"Model | Steps | {what.capitalize()} operations, C | Gflops | Params, M | {metric}", rows)


def law_values(summary: LawSummary) -> dict[str, Any]:
    """Everything about a law for fits.json; its constants unrounded."""
    fit = summary.fit
    law = None
    if fit is not None:
        law = {
            "constants": {name: Unrounded(value) for name, value in fit.constants.items()},
            "intervals": fit.intervals,
            **{name: getattr(fit, name) for name in ("runs", "models", "delta", "delta_from", "objective", "sigma")},
            "size_range": fit.size_range, "data_range": fit.data_range, "flags": fit.flags,
        }  # fmt: skip
    return {
        "runs": summary.label,
        "law": law,
        "tokens": plain(summary.tokens),
        "approaches": {approach.name: _approach_values(approach) for approach in summary.approaches},
        "omitted": [{"what": what, "why": why} for what, why in summary.omitted],
    }


def _approach_values(approach: Approach) -> dict[str, Any]:
    values: dict[str, Any] = plain(approach)
    return values | {"data_exponent": approach.data_exponent, "data_interval": approach.data_interval}
