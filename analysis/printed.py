"""Fits, tests and comparisons as printed tables (for pages and notebooks) and as plain values (for fits.json)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import pandas as pd

from analysis.compare import BlockComparison, BlockSlope, multiplier_ends
from analysis.fit.floor import FloorFit
from analysis.fit.lines import LineFit
from analysis.fit.surface import InteractionFit
from analysis.heldout import HeldOut
from analysis.names import BASELINE, SHAPE, block_name, patch_name, shape_name
from analysis.numbers import interval, number, text
from analysis.page import Table
from analysis.study import SliceFits
from analysis.trainings import training_of

_MOST_PAIRS = 8  # pairs of equal compute shown, the most unequal first


def row_table(caption: str, rows: pd.DataFrame, titles: Mapping[str, str], always: Sequence[str] = ()) -> Table:
    """Rows as a printed table, without columns that are empty in all rows.

    Args:
        caption: of the table.
        rows: with the columns.
        titles: column to its heading, in order.
        always: columns that are shown even where they are empty.
    """
    shown = [column for column in titles if column in always or ((rows[column].notna()) & (rows[column] != "")).any()]
    rows = rows[shown].assign(block=rows["block"].map(block_name)) if "block" in shown else rows[shown]
    return Table(caption, tuple(titles[c] for c in shown), tuple(tuple(map(text, row)) for row in rows.values))


# --- fits ----------------------------------------------------------------------------------------------------------


def fit_table(found: SliceFits) -> Table:
    """Every fit of a slice: equation, parameter of interest, its intervals, flags; correlations in the caption."""
    metric, boots = found.piece.metric, found.bootstraps
    rows: list[tuple[Any, ...]] = []

    def boot(key: str) -> str:
        return interval(boots[key].interval) if key in boots else ""

    for fit in found.fits:
        if isinstance(fit, LineFit):
            what = f"exponent {number(fit.exponent)}" if fit.log_response else f"slope {number(fit.slope)}"
            pairs = (fit.slope_t, fit.slope_hc3, fit.slope_wild)
            printed = (flipped(pair) if fit.log_response else pair for pair in pairs)
            rows.append((fit.form, fit.equation(metric), what, *printed, boot(f"{fit.form}: exponent"), fit.flags))
        elif isinstance(fit, FloorFit):
            law = f"{metric} = {number(fit.coefficient)} G^-{fit.exponent:.4f} + {number(fit.floor)}"
            what, pairs = f"exponent {number(fit.exponent)}", (fit.exponent_t, fit.exponent_hc3, fit.exponent_wild)
            rows.append((fit.form, law, what, *pairs, boot(f"{fit.form}: exponent"), fit.flags))
            rows.append(("", "", *_floor_cells(fit), boot(f"{fit.form}: floor"), ""))
        elif isinstance(fit, InteractionFit):
            c0, c1, c2, c3 = (f"{value:+.4g}".replace("-", "−") for value in fit.coefficients)
            law = f"ln {metric} = {c0} {c1} ln N {c2} ln T {c3} ln N ln T"
            pairs = (fit.intervals[3], fit.intervals_hc3[3], fit.intervals_wild[3])
            rows.append((fit.form, law, f"ln N ln T {c3}", *pairs, boot(f"{fit.form}: ln N ln T"), fit.flags))
    caption = f"Fits. {found.brief}. G: Gflops of one forward pass, N: parameters, T: tokens."
    caption += " One seed per model: noise between seeds is not known." if found.repeats == 1 else ""
    if boots:
        caption += f" Bootstrap over {', '.join(next(iter(boots.values())).levels)}."
    if r := found.correlation:
        caption += (
            f" Correlations: r({metric}, ln G) = {r.semilog:.4f}, r(ln {metric}, ln G) = {r.loglog:.4f},"
            f" r({metric}, G) = {r.linear:.4f}, Spearman {r.spearman:.3f}."
        )
    if (floor := found.floor) is not None and floor.on_bound:
        smaller = (
            "a constant: its floor is the largest value measured" if floor.floor else "the power law: its floor is 0"
        )
        rows.append((floor.form, smaller, *_floor_cells(floor), boot(f"{floor.form}: floor"), floor.flags))
    columns = "Form | Fit | Of interest | 95 % (t) | 95 % (HC3) | 95 % (wild bootstrap) | 95 % (bootstrap) | Flags"
    return Table.of(caption, columns, rows)


def _floor_cells(fit: FloorFit) -> tuple[Any, ...]:
    """The floor and its intervals: by likelihood ratio, none by HC3, by the wild bootstrap."""
    return f"floor {number(fit.floor)}", f"{interval(fit.floor_interval)} (likelihood ratio)", "", fit.floor_wild


def slope_table(found: SliceFits) -> Table:
    """The power law's exponent within each patch size."""
    what = "The power law’s exponent within each patch size: few tokens cap what depth and width can buy."
    slopes = found.slopes.items()
    rows = [(patch, law.n, number(law.exponent, 3), flipped(law.slope_t), law.flags) for patch, law in slopes]
    return Table.of(f"{what} {found.piece.brief}.", "Patch size | Models | Exponent | 95 % (t) | Flags", rows)


def held_table(found: SliceFits) -> Table:
    """Errors on models left out: a row per test, a column per form."""
    forms = list(dict.fromkeys(test.form for test in found.held))
    rows = []
    for scheme in dict.fromkeys(test.scheme for test in found.held):
        tests = {test.form: test for test in found.held if test.scheme == scheme}
        any_test = next(iter(tests.values()))
        flags = "; ".join(f"{form}: {flag}" for form, h in tests.items() for flag in h.flags) or "none"
        errors = [_error(tests[form]) if form in tests else "" for form in forms]
        rows.append((scheme, len(any_test.names), number(any_test.extrapolation, 3), *errors, flags))
    caption = f"Errors on models not fitted to: mean (and largest), signed for a single model. {found.brief}."
    return Table.of(caption, " | ".join(("Test", "Models", "Extrapolation", *forms, "Flags")), rows)


def _error(test: HeldOut) -> str:
    if len(test.names) == 1:
        return f"{test.errors[0]:+.1f} %"
    return f"{test.mape:.1f} % ({test.worst:.1f})"


def ranking_table(found: SliceFits) -> Table:
    """The forms from best to worst by held-out error."""
    caption = (
        "Model selection: the forms by held-out error, the geometric mean of their mean errors over the tests that "
        f"every form passed. {found.brief}."
    )
    rows = [
        (place, entry.form, f"{entry.score:.1f} %", entry.best_in, entry.absent)
        for place, entry in enumerate(found.ranking, start=1)
    ]
    return Table.of(caption, "Rank | Form | Error | Best in | Not counted", rows)


def forecast_table(found: SliceFits) -> Table:
    """What the forms predict for larger models, with 95 % prediction intervals."""
    metric = found.piece.metric
    caption = (
        f"Forecast of the {metric} of models larger than any measured, by Gflops of one forward pass, at "
        "the same training steps and batch. The prediction interval holds only if the form does; where the forms "
        f"differ by more than it, no forecast is supported. {found.brief}."
    )
    rows = [
        (f"{f.extrapolation:g} ×", f.gmacs, f.form, f.mean, (f.low, f.high), f.flags)
        for f in sorted(found.forecasts, key=lambda f: f.gmacs)
    ]
    return Table.of(caption, f"Beyond the largest | Gflops | Form | {metric} | 95 % (prediction) | Flags", rows)


def residual_table(found: SliceFits) -> Table:
    """Mean residuals of every form by size and by patch size."""
    if not found.residuals:
        return Table("Residuals.", ("Form",), ())
    first = found.residuals[0]
    columns = ("Form", *first.by_size, *map(patch_name, first.by_patch))
    rows = tuple(
        (r.form, *(f"{value:+.1f} %" for value in (*r.by_size.values(), *r.by_patch.values()))) for r in found.residuals
    )
    caption = f"Mean of measured over fitted by size and by patch size; above 0: worse than the fit. {found.brief}."
    return Table(caption, columns, rows)


def pair_table(found: SliceFits) -> Table:
    """Models of about equal compute, the most unequal first."""
    metric, many = found.piece.metric, len(found.pairs)
    more = f" The {_MOST_PAIRS} most unequal of {many} pairs." if many > _MOST_PAIRS else ""
    caption = f"Does equal compute buy equal {metric}? Models whose Gflops differ by less than 25 %.{more}"
    caption += " Shown from: the ratio that so many seeds show with probability 0.8; none: trained once."
    rows = [
        (
            f"{p.better} and {p.worse}",
            *(" and ".join(map(number, two)) for two in (p.gmacs, p.metrics)),
            f"{p.ratio:.2f}",
            p.interval or "none",
            "none" if p.smallest is None else f"{p.smallest:.2f}",
        )
        for p in found.pairs[:_MOST_PAIRS]
    ]
    return Table.of(caption, f"Models | Gflops | {metric} | Ratio | 95 % | Shown from", rows)


def seed_table(found: SliceFits) -> Table:
    """Mean and standard deviation over training seeds and over sampling seeds, model by model."""
    piece, rows = found.piece, []
    for (size, patch), cells in piece.table.groupby(SHAPE, sort=False, dropna=False):
        runs = cells.groupby(training_of(cells))[piece.column]
        means, within = runs.mean(), runs.var().mean() ** 0.5
        rows.append((shape_name(str(size), patch), len(means), runs.size().max(), means.mean(), means.std(), within))
    columns = "Model | Training seeds | Sampling seeds | Mean | SD, training seeds | SD, sampling seeds"
    caption = (
        f"{piece.metric} over seeds: arithmetic mean, standard deviation between training seeds (each the mean of its "
        f"sampling seeds) and between the sampling seeds of one run. {piece.brief}."
    )
    return Table.of(caption, columns, rows)


# --- blocks --------------------------------------------------------------------------------------------------------


def block_table(found: Sequence[BlockComparison], metric: str, measured: str) -> Table:
    """Designs against the baseline, at every shape and step."""
    base = block_name(found[0].baseline if found else BASELINE)
    rows = []
    for c in found:
        multiplier = f"{c.multiplier:.2f} ×" if c.multiplier is not None else f"none: {c.multiplier_note}"
        if c.multiplier_interval is not None:
            multiplier += f" ({multiplier_ends(c.multiplier_interval)})"
        rows.append(
            (block_name(c.block), c.verdict, c.shape, c.step, c.metric, c.baseline_metric, number(c.ratio, 4),
             c.interval or "none", c.gmacs, c.baseline_gmacs, f"{c.seeds} and {c.baseline_seeds}",
             "none" if c.matched is None else f"{c.matched:.3f}", multiplier)
        )  # fmt: skip
    columns = (
        f"Design | Verdict | Shape | Step | {metric} | {base} | Ratio | 95 % | Gflops | Gflops of {base} | "
        "Seeds | Ratio at equal Gflops | Compute multiplier (95 %)"
    )
    caption = (
        f"Designs against {base}. {_sentence(measured)}Ratio at equal Gflops: {metric} over that of {base} "
        f"interpolated at the design’s own Gflops. Compute multiplier: a design’s own Gflops over the Gflops at which "
        f"{base} of the same patch size reaches its {metric}. None: {base} was not measured on both sides of it."
    )
    caption += f" Verdicts: {'; '.join(_reasons(found))}."
    return Table.of(caption, columns, rows)


def _reasons(comparisons: Sequence[BlockComparison]) -> list[str]:
    """Why the verdicts are what they are, each reason once, with the verdicts it stands for."""
    reasons: dict[str, list[str]] = {}
    for c in comparisons:
        if c.verdict not in reasons.setdefault(c.reason, []):
            reasons[c.reason].append(c.verdict)
    return [f"{' or '.join(verdicts)}, {why}" for why, verdicts in reasons.items()]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}. " if text else ""


def block_slope_table(slopes: Sequence[BlockSlope], measured: str) -> Table:
    """The power law's exponent of every design, and its difference from the baseline's."""
    rows = []
    for s in slopes:
        against = ("", "") if s.verdict == "baseline" else (f"{s.difference:+.3f}", s.difference_t)
        exponent = (number(s.exponent, 3), s.exponent_t)
        rows.append((block_name(s.block), s.patch_size, s.step, s.models, *exponent, *against, s.verdict, s.flags))
    columns = "Design | Patch size | Step | Models | Exponent | 95 % (t) | Difference | 95 % (t) | Verdict | Flags"
    caption = (
        f"Does a design gain more from compute? The power law’s exponent per design. {_sentence(measured)}".rstrip()
    )
    return Table.of(caption, columns, rows)


# --- plain values --------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A dataclass as plain values, without its private fields; other values as they are."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if not f.name.startswith("_")}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def slice_values(found: SliceFits) -> dict[str, Any]:
    """Everything about a slice for fits.json."""
    piece = found.piece
    return {
        "label": found.label,
        "conditions": dict(piece.group.conditions),
        "block": piece.block,
        "step": piece.step,
        "metric": piece.metric,
        "models": len(found.rows),
        "seeds": "one seed per model: noise between seeds is not known" if found.repeats == 1
        else f"up to {found.repeats} per model",
        "correlation": plain(found.correlation),
        **{form: _line_values(line) for form, line in found.lines.items()},
        "power law with floor": plain(found.floor),
        "params and tokens": plain(found.surface),
        "power law per patch size": {str(patch): _line_values(line) for patch, line in found.slopes.items()},
        "bootstrap": plain(found.bootstraps),
        "residuals percent": {
            r.form: {"by model": r.by_model, "by size": r.by_size, "by patch size": r.by_patch} for r in found.residuals
        },
        "held out": [
            {
                "form": h.form, "scheme": h.scheme, "n": len(h.names), "mape_percent": h.mape,
                "worst_percent": h.worst, "extrapolation": h.extrapolation, "flags": h.flags,
                "predictions": h.by_model,
            }
            for h in found.held
        ],
        "ranking": plain(found.ranking),
        "forecasts": plain(found.forecasts),
        "equal compute": [{**asdict(pair), "ratio": pair.ratio} for pair in found.pairs],
    }  # fmt: skip


def _line_values(line: LineFit | None) -> dict[str, Any] | None:
    out: dict[str, Any] | None = plain(line)
    if line is not None and out is not None and line.log_response:
        out |= {"coefficient": line.coefficient, "exponent": line.exponent}
        pairs = (("t", line.slope_t), ("hc3", line.slope_hc3), ("wild", line.slope_wild))
        out |= {f"exponent_{name}": flipped(pair) for name, pair in pairs}
    return out


def flipped(pair: tuple[float, float]) -> tuple[float, float]:
    """The interval of an exponent from that of a slope, which has the other sign."""
    return -pair[1], -pair[0]
