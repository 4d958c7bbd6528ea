"""The sections of a report: each takes tables, asks for fits and figures, and adds to the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analysis import figures
from analysis.compare import BASELINE, BlockComparison, compare_blocks, describe, equal_compute_pairs
from analysis.fit import (
    CannotFitError,
    Correlation,
    FloorFit,
    InteractionFit,
    LineFit,
    bootstrap_exponent,
    correlate,
    fit_floor,
    fit_interaction,
    fit_line,
)
from analysis.heldout import FORMS, HeldOut, forecast, leave_one_group_out, leave_one_out
from analysis.page import Page, Section, Table, interval, number
from analysis.table import (
    METRIC,
    Group,
    Slice,
    block_name,
    comparable_groups,
    metric_name,
    missing_rows,
    per_shape,
    scaling_slices,
    size_order,
)

T = TypeVar("T")

_MOST_PAIRS = 8  # pairs of equal compute shown, the most unequal first


# --- scaling -------------------------------------------------------------------------------------------------------


def scaling(page: Page, table: pd.DataFrame) -> None:
    """Fits and figures of the metric against compute, for every slice that can carry them, the largest always."""
    section = page.section("scaling", "What compute buys")
    page.fits["slices"] = []
    pieces = scaling_slices(table)
    if not pieces:
        page.omit("The metric against compute", "no row has a metric")
    for index, piece in enumerate(pieces):
        rows = per_shape(piece.table)
        if index and len(rows) < 4:
            page.omit(f"Fit of {piece.label}", _too_few(len(rows)))
            continue
        _note_absent(page, piece)
        suffix = f"-{index + 1}" if index else ""
        _scaling_slice(page, section, piece, rows, suffix)


def _too_few(count: int) -> str:
    return f"{count} shape{'s' * (count != 1)}; a fit of the metric against compute needs at least 4"


def _note_absent(page: Page, piece: Slice) -> None:
    """Name the cells of the slice's block that have no value at its step."""
    cells = piece.group.table[piece.group.table["block"] == piece.block]
    for cell in cells[~cells["cell"].isin(piece.table["cell"])].drop_duplicates("cell").itertuples():
        page.omit(f"{cell.name} in the scaling fit", f"it has no {piece.group.metric} at step {piece.step:,}")


def _scaling_slice(page: Page, section: Section, piece: Slice, rows: pd.DataFrame, suffix: str) -> None:
    metric = piece.group.metric
    x, y = rows["gmacs"].to_numpy(float), rows[METRIC].to_numpy(float)
    label = f"{piece.label}; {len(rows)} model{'s' * (len(rows) != 1)}"
    repeats = int(rows["repeats"].max())
    if repeats > 1:
        label += f", geometric means of up to {repeats} seeds"

    def attempt(what: str, fit: Callable[[], T]) -> T | None:
        try:
            return fit()
        except CannotFitError as error:
            page.omit(f"{what} of {piece.label}", str(error))
            return None

    correlation = attempt("Correlation", lambda: correlate(x, y))
    lines = {form: attempt(form.capitalize(), lambda f=form: fit_line(x, y, f)) for form in ("semi-log", "power law")}  # type: ignore[misc]
    floor = attempt("Power law with floor", lambda: fit_floor(x, y))
    surface = attempt(
        "Params-and-tokens form",
        lambda: fit_interaction(_floats(rows["params"]), _floats(rows["tokens"]), y),
    )
    held = _held_out(page, piece, rows)
    pairs = equal_compute_pairs(rows)
    seeds = "one seed per model: noise between seeds is not known" if repeats == 1 else ""

    _scaling_figures(page, section, rows, metric, label, suffix, lines, correlation)
    checkpoints = piece.group.table[piece.group.table["block"] == piece.block]
    page.draw(
        section, f"training-compute{suffix}", f"{metric} against training compute, one point per checkpoint.",
        "As the paper’s Figure 9.",
        lambda: figures.training_compute(checkpoints, metric, f"{block_name(piece.block)}; {piece.group.label}"),
    )  # fmt: skip
    fits = [fit for fit in (*lines.values(), floor, surface) if fit is not None]
    if fits:
        section.tables.append(_fit_table(label, metric, fits, correlation, seeds))
    if slopes := _slopes(rows):
        section.tables.append(_slope_table(slopes, piece))
    if held:
        section.tables.append(_held_table(label, held))
    if pairs:
        section.tables.append(_pair_table(pairs, metric))
    page.fits["slices"].append(
        {
            "label": label,
            "conditions": dict(piece.group.conditions),
            "block": piece.block,
            "step": piece.step,
            "metric": metric,
            "models": len(rows),
            "seeds": seeds or f"up to {repeats} per model",
            "correlation": asdict(correlation) if correlation else None,
            **{form: _line_dict(line, piece) for form, line in lines.items()},
            "power law with floor": asdict(floor) if floor else None,
            "params and tokens": asdict(surface) if surface else None,
            "power law per patch size": {str(patch): _line_dict(line, None) for patch, line in slopes.items()},
            "held out": [
                {
                    "form": h.form, "scheme": h.scheme, "n": len(h.names), "mape_percent": h.mape,
                    "worst_percent": h.worst, "extrapolation": h.extrapolation, "flags": h.flags,
                    "predictions": {
                        n: {"measured": m, "predicted": p}
                        for n, m, p in zip(h.names, h.measured, h.predicted, strict=True)
                    },
                }
                for h in held
            ],
            "equal compute": [{**asdict(pair), "ratio": pair.ratio} for pair in pairs],
        }
    )  # fmt: skip
    _scaling_summary(page, metric, label, lines["power law"], correlation, held)


def _scaling_figures(
    page: Page, section: Section, rows: pd.DataFrame, metric: str, label: str, suffix: str,
    lines: dict[str, LineFit | None], correlation: Correlation | None,
) -> None:  # fmt: skip
    r = f" Correlation with the logarithm of compute: {correlation.semilog:.2f}." if correlation else ""
    alt = f"Scatter plot of {metric} against Gflops on a log axis for {len(rows)} models.{r}"
    page.draw(
        section, f"metric-vs-gflops{suffix}", alt, "As the paper’s Figure 8: linear metric, semi-log line.",
        lambda: figures.metric_against_gflops(rows, metric, label, lines["semi-log"], correlation),
    )  # fmt: skip
    law = lines["power law"]
    if law is not None:
        page.draw(
            section, f"metric-vs-gflops-log{suffix}",
            f"The same on two log axes, with the power law {law.equation(metric)}.",
            "The same on two log axes, with the power law.",
            lambda: figures.metric_against_gflops(rows, metric, label, law, correlation),
        )  # fmt: skip
    page.draw(
        section, f"bubbles{suffix}",
        f"Bubble chart of {metric} of {len(rows)} models by patch size and size; bubble area shows Gflops.",
        "As the paper’s Figure 2, left.",
        lambda: figures.bubbles(rows, metric, label),
    )  # fmt: skip


def _held_out(page: Page, piece: Slice, rows: pd.DataFrame) -> list[HeldOut]:
    if len(rows) < 4:
        return []
    tests: list[tuple[str, Callable[[Any], HeldOut]]] = [
        ("Leave one out", lambda form: leave_one_out(form, rows)),
        ("Leave one size out", lambda form: leave_one_group_out(form, rows, "size")),
        ("Leave one patch size out", lambda form: leave_one_group_out(form, rows, "patch_size")),
    ]
    largest = (rows["gmacs"] == rows["gmacs"].max()).to_numpy()
    last = size_order(rows)[-1]
    big = rows.loc[largest].iloc[0]
    name = f"{big['size']}/{big['patch_size']} from the rest"
    tests.append(("Forecast of the largest model", lambda form: forecast(form, rows, largest, name)))
    family = (rows["size"] == last).to_numpy()
    tests.append(
        (f"Forecast of size {last}", lambda form: forecast(form, rows, family, f"size {last} from smaller ones"))
    )
    found = []
    for what, test in tests:
        for form in FORMS:
            try:
                found.append(test(form))
            except CannotFitError as error:
                page.omit(f"{what}, {form.name}, {piece.label}", str(error))
    return found


def _slopes(rows: pd.DataFrame) -> dict[int, LineFit]:
    """The power law within each patch size that has four models or more."""
    slopes = {}
    for patch, cells in rows.groupby("patch_size"):
        try:
            slopes[int(patch)] = fit_line(_floats(cells["gmacs"]), _floats(cells[METRIC]), "power law")  # type: ignore[arg-type]
        except CannotFitError:
            continue
    return slopes if len(slopes) > 1 else {}


def _fit_table(label: str, metric: str, fits: list[Any], correlation: Correlation | None, seeds: str) -> Table:
    rows: list[tuple[str, ...]] = []
    for fit in fits:
        flags = "; ".join(fit.flags) or "none"
        if isinstance(fit, LineFit):
            what = f"exponent {number(fit.exponent)}" if fit.log_response else f"slope {number(fit.slope)}"
            pairs = [_flipped(p) if fit.log_response else p for p in (fit.slope_t, fit.slope_hc3)]
            rows.append((fit.form, fit.equation(metric), what, interval(pairs[0]), interval(pairs[1]), flags))
        elif isinstance(fit, FloorFit):
            law = f"{metric} = {number(fit.coefficient)} G^-{fit.exponent:.4f} + {number(fit.floor)}"
            span = f"{interval(fit.floor_interval)} (likelihood ratio)"
            rows.append(("power law with floor", law, f"floor {number(fit.floor)}", span, "", flags))
        elif isinstance(fit, InteractionFit):
            c0, c1, c2, c3 = (f"{value:+.4g}".replace("-", "−") for value in fit.coefficients)
            law = f"ln {metric} = {c0} {c1} ln N {c2} ln T {c3} ln N ln T"
            rows.append(("params and tokens", law, f"ln N ln T {c3}", interval(fit.intervals[3]), "", flags))
    caption = f"Fits. {label}. G: Gflops of one forward pass, N: parameters, T: tokens."
    caption += f" {seeds[:1].upper()}{seeds[1:]}." if seeds else ""
    if correlation:
        caption += (
            f" Correlations: r({metric}, ln G) = {correlation.semilog:.4f},"
            f" r(ln {metric}, ln G) = {correlation.loglog:.4f},"
            f" r({metric}, G) = {correlation.linear:.4f}, Spearman {correlation.spearman:.3f}."
        )
    return Table(caption, ("Form", "Fit", "Of interest", "95 % (t)", "95 % (HC3)", "Flags"), tuple(rows))


def _slope_table(slopes: dict[int, LineFit], piece: Slice) -> Table:
    rows = tuple(
        (
            str(patch),
            str(line.n),
            number(line.exponent, 3),
            interval(_flipped(line.slope_t)),
            "; ".join(line.flags) or "none",
        )
        for patch, line in slopes.items()
    )
    caption = (
        f"The power law’s exponent within each patch size: few tokens cap what depth and width can buy. {piece.label}."
    )
    return Table(caption, ("Patch size", "Models", "Exponent", "95 % (t)", "Flags"), rows)


def _held_table(label: str, held: list[HeldOut]) -> Table:
    forms = list(dict.fromkeys(h.form for h in held))
    rows = []
    for scheme in dict.fromkeys(h.scheme for h in held):
        tests = {h.form: h for h in held if h.scheme == scheme}
        any_test = next(iter(tests.values()))
        flags = "; ".join(f"{form}: {flag}" for form, h in tests.items() for flag in h.flags) or "none"
        errors = [_error(tests[form]) if form in tests else "" for form in forms]
        rows.append((scheme, str(len(any_test.names)), number(any_test.extrapolation, 3), *errors, flags))
    caption = f"Errors on models a form was not fitted to: mean (and largest), signed for a single model. {label}."
    return Table(caption, ("Test", "Models", "Extrapolation", *forms, "Flags"), tuple(rows))


def _error(test: HeldOut) -> str:
    if len(test.names) == 1:
        return f"{test.errors[0]:+.1f} %"
    return f"{test.mape:.1f} % ({test.worst:.1f})"


def _pair_table(pairs: list[Any], metric: str) -> Table:
    rows = tuple(
        (f"{p.better} and {p.worse}", f"{number(p.gmacs[0])} and {number(p.gmacs[1])}",
         f"{number(p.metrics[0])} and {number(p.metrics[1])}", f"{p.ratio:.2f}")
        for p in pairs[:_MOST_PAIRS]
    )  # fmt: skip
    more = f" The {_MOST_PAIRS} most unequal of {len(pairs)} pairs." if len(pairs) > _MOST_PAIRS else ""
    caption = f"Does equal compute buy equal {metric}? Models whose Gflops differ by less than 25 %.{more}"
    return Table(caption, ("Models", "Gflops", metric, "Ratio"), rows)


def _line_dict(line: LineFit | None, piece: Slice | None) -> dict[str, Any] | None:
    """A line as plain values; with a slice, the bootstrap of its exponent too."""
    if line is None:
        return None
    out = {k: v for k, v in asdict(replace(line, _model=None)).items() if k != "_model"}
    if line.log_response:
        out |= {"coefficient": line.coefficient, "exponent": line.exponent}
        out |= {"exponent_t": _flipped(line.slope_t), "exponent_hc3": _flipped(line.slope_hc3)}
        if piece is not None:
            out["exponent_bootstrap"] = asdict(bootstrap_exponent(piece.table))
    return out


def _scaling_summary(
    page: Page, metric: str, label: str, law: LineFit | None, correlation: Correlation | None, held: list[HeldOut]
) -> None:
    if law is None or correlation is None:
        page.summary.append(f"{label}: no fit, see what could not be drawn")
        return
    page.summary.append(
        f"{law.equation(metric)} over {law.n} models (exponent {interval(_flipped(law.slope_t))}, 95 %); "
        f"r({metric}, ln G) = {correlation.semilog:.2f}. {label}"
    )
    out = [f"{h.form} {h.mape:.1f} %" for h in held if h.scheme == "leave one out"]
    if out:
        page.summary.append(f"Error on a model left out, on average: {', '.join(out)}")


# --- blocks --------------------------------------------------------------------------------------------------------


def blocks(page: Page, table: pd.DataFrame) -> None:
    """The block designs side by side, at every shape and step where the baseline was measured too."""
    section = page.section("blocks", "Block designs")
    page.fits["blocks"] = []
    if table["block"].nunique() < 2:
        page.omit(
            "The block comparison", f"the table holds one block design only ({block_name(table['block'].iloc[0])})"
        )
        return
    count = 0
    for group in comparable_groups(table):
        found = compare_blocks(group.table)
        if not found:
            continue
        section.tables.append(_block_table(found, group))
        page.fits["blocks"] += [
            {**asdict(c), "difference": c.difference, "metric_name": group.metric, "conditions": dict(group.conditions)}
            for c in found
        ]
        final = {(c.shape): max(d.step for d in found if d.shape == c.shape) for c in found}
        page.summary += [describe(c, group.metric) for c in found if c.step == final[c.shape]]
        for shape, step in final.items():
            count += 1
            _block_figures(page, section, group, shape, step, found, f"-{count}" if count > 1 else "")
    if not count:
        page.omit(
            "The block comparison", f"no design was measured at the same shape and step as {block_name(BASELINE)}"
        )


def _block_figures(
    page: Page, section: Section, group: Group, shape: str, step: int, found: list[BlockComparison], suffix: str
) -> None:
    size, patch = shape.rsplit("/", 1)
    same = group.table[(group.table["size"] == size) & (group.table["patch_size"] == int(patch))]
    rows = same[same["step"] == step]
    here = [c for c in found if c.shape == shape and c.step == step]
    values = ", ".join(f"{block_name(c.block)} {c.metric:.4g}" for c in here)
    page.draw(
        section, f"blocks{suffix}",
        f"Bars of {group.metric} at {shape}: {block_name(BASELINE)} {here[0].baseline_metric:.4g}, {values}.",
        f"{shape} at step {step:,}.",
        lambda: figures.block_bars(rows, group.metric, f"{shape}, {step:,} steps; {group.label}", here),
    )  # fmt: skip
    page.draw(
        section, f"blocks-over-steps{suffix}", f"{group.metric} of the block designs over training steps at {shape}.",
        "As the paper’s Figure 5.",
        lambda: _blocks_over_steps(same, group, shape),
    )  # fmt: skip


def _blocks_over_steps(rows: pd.DataFrame, group: Group, shape: str) -> Any:
    many = rows.groupby("cell")["step"].transform("nunique") > 1
    if rows.loc[many & rows[METRIC].notna(), "block"].nunique() < 2:
        raise figures.CannotDrawError("fewer than two block designs were measured at more than one training step")
    heading, caption = f"{group.metric} of the block designs over training", f"{shape}; {group.label}"
    return figures.over_steps(rows, {METRIC: group.metric}, f"{group.metric} (lower is better)", heading, caption)


def _block_table(found: list[BlockComparison], group: Group) -> Table:
    rows = []
    for c in found:
        multiplier = f"{c.multiplier:.2f} ×" if c.multiplier is not None else f"none: {c.multiplier_note}"
        rows.append(
            (c.shape, f"{c.step:,}", block_name(c.block), number(c.gmacs), number(c.metric), number(c.baseline_metric),
             f"{c.difference:+.4g}", interval(c.interval) or "none", multiplier, c.verdict, c.reason)
        )  # fmt: skip
    columns = (
        "Shape", "Step", "Block", "Gflops", group.metric, f"{block_name(BASELINE)}", "Difference", "95 %",
        "Compute multiplier", "Verdict", "Why",
    )  # fmt: skip
    caption = (
        f"Block designs against {block_name(BASELINE)}. {group.label}. Compute multiplier: a design’s own Gflops over "
        f"the Gflops at which {block_name(BASELINE)} of the same patch size reaches its {group.metric}."
    )
    return Table(caption, columns, tuple(rows))


# --- training ------------------------------------------------------------------------------------------------------


def training(page: Page, table: pd.DataFrame, curves: pd.DataFrame | None) -> None:
    """The metric and the losses over training steps. `curves` is None where there can be none (published numbers)."""
    section = page.section("training", "Over training")
    groups = comparable_groups(table)
    for index, group in enumerate(groups):
        shapes = group.table.drop_duplicates(["depth", "width", "patch_size"])
        if len(shapes) == 1 and group.table["block"].nunique() > 1:
            continue  # the block section shows it
        heading = f"{group.metric} over training"
        try:
            figure = figures.over_steps(
                group.table, {METRIC: group.metric}, f"{group.metric} (lower is better)", heading, group.label
            )
        except figures.CannotDrawError as error:
            page.omit(f"{group.metric} over training steps; {group.label}", str(error))
            continue
        name = f"metric-over-steps{f'-{index + 1}' if index else ''}"
        page.draw(section, name, f"{heading}, one line per cell.", "As the paper’s Figure 6.", lambda f=figure: f)  # type: ignore[misc]
    if curves is None:
        return
    if curves.empty:
        page.omit("The losses over training steps (Figure 13)", "there is no curves.csv, or it has no rows")
        return
    about = ["size", "depth", "width", "block", "patch_size", "seed"]
    cells = table.drop_duplicates("cell").set_index("cell")[about]
    known = curves.join(cells, on="cell", how="inner")
    for name in sorted(set(curves["name"][~curves["cell"].isin(cells.index)])):
        page.omit(f"The losses of {name}", "the cell is not in results.csv, so its shape is not known")
    page.draw(
        section, "loss-over-steps", "Training loss over training steps, one line per cell.",
        "As the paper’s Figure 13.",
        lambda: figures.over_steps(
            known, {"loss": "training loss"}, "Training loss (MSE + variational term)", "Training loss",
            "Mean since the row before; raw weights, on the batches trained on", log_axes=True,
        ),
    )  # fmt: skip
    page.draw(
        section, "loss-train-vs-heldout",
        "Denoising loss on the train split and on held-out images over training steps.",
        "A widening gap is memorisation of the train split.",
        lambda: figures.over_steps(
            known, {"loss_train": "train", "loss_heldout": "held-out"}, "Denoising loss (noise MSE)",
            "Denoising loss, train against held-out", "EMA weights; mean over timesteps", log_axes=True,
        ),
    )  # fmt: skip


def sampling(page: Page, table: pd.DataFrame) -> None:
    """The metric against sampling compute, where cells were sampled with several numbers of steps."""
    section = page.section("sampling", "Sampling compute")
    count = 0
    for group in comparable_groups(table, vary=["sampling_steps"]):
        for step, rows in group.table.groupby("step"):
            if rows["sampling_steps"].nunique() < 2:
                continue
            count += 1
            caption = f"{step:,} training steps; {group.label}"
            page.draw(
                section, f"sampling-compute{f'-{count}' if count > 1 else ''}",
                f"{group.metric} against the compute of sampling one image.", "As the paper’s Figure 10.",
                lambda r=rows, g=group, c=caption: figures.sampling_compute(r, g.metric, c),  # type: ignore[misc]
            )  # fmt: skip
    if not count:
        page.omit(
            "The metric against sampling compute (Figure 10)", "all values were sampled with the same number of steps"
        )


# --- tables --------------------------------------------------------------------------------------------------------

_RESULT_COLUMNS = (
    ("name", "Model"), ("source", "Source"), ("size", "Size"), ("patch_size", "Patch"), ("block", "Block"),
    ("tokens", "Tokens"), ("params_m", "Params, M"), ("gmacs", "Gflops"), ("seed", "Seed"), ("step", "Steps"),
    ("train_gmacs", "Training Gflops"), (METRIC, ""), ("kid", ""), ("precision", "Precision"), ("recall", "Recall"),
    ("inception_score", ""), ("sfid", "sFID"), ("loss_train", "Loss, train"), ("loss_heldout", "Loss, held-out"),
)  # fmt: skip


def results(page: Page, table: pd.DataFrame) -> None:
    """Every row of the table, group by group, and which rows have no metric."""
    section = page.section("results", "Results")
    section.paragraphs.append(
        "Values within one table were measured alike and compare; values of different tables do not. "
        "Empty: not measured."
    )
    for group in comparable_groups(table):
        section.tables.append(_result_table(group.table, group.label, str(group.conditions["extractor"])))
    unmeasured = table[table["extractor"] == ""]
    if not unmeasured.empty:
        section.tables.append(_result_table(unmeasured, "Trained, not evaluated yet", ""))
    absent = missing_rows(table)
    for row in absent.itertuples():
        page.omit(f"{row.name}, step {row.step:,}", "it has no Fréchet distance")
    if not absent.empty:
        page.summary.append(
            f"{len(absent)} of {len(table)} rows have no Fréchet distance; they are named in the report"
        )


def _result_table(rows: pd.DataFrame, label: str, extractor: str) -> Table:
    is_fid = metric_name(extractor) == "FID"
    own = extractor.split("@")[0]
    names = {
        METRIC: metric_name(extractor),
        "kid": "KID" if is_fid else f"KD-{own}",
        "inception_score": "IS" if is_fid else f"IS-{own}",
    }
    shown = [
        (column, names.get(column, title)) for column, title in _RESULT_COLUMNS if column in rows and _any(rows[column])
    ]
    printed = tuple(tuple(_print(column, row[column]) for column, _ in shown) for _, row in rows.iterrows())
    return Table(f"{label}. Gflops are multiply-adds.", tuple(title for _, title in shown), printed)


def _any(column: pd.Series[Any]) -> bool:
    return bool((column.notna() & (column.astype(str) != "")).any())


def _print(column: str, value: Any) -> str:
    if column == "block":
        return block_name(str(value))
    return value if isinstance(value, str) else number(value)


def samples(page: Page, table: pd.DataFrame) -> None:
    """The contact sheet of samples/*.png."""
    section = page.section("samples", "Samples")
    cells = table.drop_duplicates("cell")
    pictures = figures.find_samples(page.folder, cells)
    if not pictures:
        page.omit("The sample grid (Figure 7)", "there are no pictures of these cells in samples/")
        return
    for row in cells[~cells["cell"].isin(list(pictures))].itertuples():
        page.omit(f"Samples of {row.name}", "there is no picture of this cell in samples/")
    page.draw(
        section, "samples", f"Contact sheet of generated images of {len(pictures)} cells, by size and patch size.",
        "As the paper’s Figure 7.",
        lambda: figures.sample_sheet(pictures, cells, "Generated images; each panel shows one cell"),
    )  # fmt: skip


def costs(page: Page, table: pd.DataFrame) -> None:
    """Time and compute of every cell, and in all."""
    section = page.section("costs", "Costs")
    cells = []
    for _, rows in table.groupby("cell", sort=False):
        last = rows.sort_values("step").iloc[-1]
        train, sample = rows["train_seconds"].max(), rows["sample_seconds"].sum(min_count=1)
        cells.append((str(last["name"]), int(last["step"]), last["train_gmacs"], train, sample))
    printed: list[tuple[str, ...]] = [(n, *(number(value) for value in values)) for n, *values in cells]
    total = [pd.Series([c[i] for c in cells], dtype=float).sum(min_count=1) for i in (2, 3, 4)]
    printed.append(("in all", "", *(number(value) for value in total)))
    columns = ("Cell", "Steps", "Training Gflops", "Training, s", "Sampling and scoring, s")
    section.tables.append(
        Table(
            "Training Gflops: 3 × GMACs × batch × steps. Seconds are wall time, all attempts.", columns, tuple(printed)
        )
    )


_ATTEMPT_COLUMNS = (
    ("name", "Cell"), ("attempt", "Attempt"), ("outcome", "Outcome"), ("started", "Started, UTC"),
    ("seconds", "Seconds"), ("host", "Host"), ("message", "Reason"),
)  # fmt: skip


def attempts(page: Page, table: pd.DataFrame) -> None:
    """Every attempt, failures with their reasons, and what it ran on."""
    section = page.section("attempts", "Attempts")
    if table.empty:
        page.omit("The attempts and what they ran on", "there is no attempts.csv, or it has no rows")
        return
    counts = table["outcome"].value_counts()
    section.paragraphs.append(", ".join(f"{counts[outcome]} {outcome}" for outcome in sorted(counts.index)) + ".")
    rows = tuple(tuple(_print(c, row[c]) for c, _ in _ATTEMPT_COLUMNS) for _, row in table.iterrows())
    section.tables.append(Table("Every attempt at every cell.", tuple(t for _, t in _ATTEMPT_COLUMNS), rows))
    last = table.sort_values("attempt").groupby("cell").tail(1)
    failed = last[last["outcome"].isin(["failed", "lost"])]
    if not failed.empty:
        page.summary.append(f"{len(failed)} cell{'s' * (len(failed) != 1)} failed: {', '.join(sorted(failed['name']))}")


def provenance(page: Page, attempts_table: pd.DataFrame, command: str, sources: list[str]) -> None:
    """Where the numbers come from and how to make this page again."""
    section = page.section("provenance", "Provenance")
    rows: list[tuple[str, str]] = [("Made again with", command), ("From", ", ".join(sources))]
    for column, title in (
        ("torch", "torch"), ("commit", "Commit"), ("host", "Host"), ("device", "Device"), ("threads", "CPU threads"),
    ):  # fmt: skip
        if column in attempts_table:
            values = sorted({str(v) for v in attempts_table[column] if not pd.isna(v) and v != ""})
            if values:
                rows.append((title, ", ".join(values)))
    section.tables.append(Table("Origin of this page.", ("What", "Value"), tuple(rows)))


def _floats(column: pd.Series[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(column.to_numpy(dtype=float, na_value=np.nan))


def _flipped(pair: tuple[float, float]) -> tuple[float, float]:
    """An interval of a slope as one of the exponent."""
    return -pair[1], -pair[0]
