"""Every figure of three studies, one column wide: nothing is clipped, no texts overlap, a model looks alike."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from analysis import report
from analysis.figures import style
from analysis.figures.scaling import guidance, metric_against_gflops
from analysis.figures.style import CannotDrawError, Drawing, ModelKey
from analysis.figures.training import smoothed
from analysis.fit.common import CannotFitError
from analysis.fit.lines import fit_line
from analysis.page import Page
from analysis.table import load_published, load_study
from harness.runs.columns import NESTED_COLUMNS

from .conftest import PAPER, SHAPES, result_row, write_csv, write_extras, write_results
from .test_evaluation import COUNTS, measured_row

BLOCKS = ("adaln-zero", "adaln", "cross-attention", "in-context")


def full_study(folder: Path) -> Page:
    """Everything that can be measured: blocks, seeds, steps, guidance, sampler steps, nested samples, memorisation."""
    rows = [
        measured_row(shape, block=block, seed=seed, step=step) | {"copies": 0.01, "loss_optimal_train": 0.01}
        for shape in SHAPES[1:5] for block in BLOCKS[: 4 if shape[2] == 2 else 1] for step in (400, 1000)
        for seed in (0, 1)[: 1 + (shape[2] == 2)]
    ]  # fmt: skip
    for index, row in enumerate(rows[:8:2]):
        rows += [{**row, "evaluation": f"g{index}{g}", "guidance": g, "guidance_channels": "all"} for g in (1.5, 4.0)]
        rows += [{**row, "evaluation": f"s{index}{n}", "sampling_steps": n} for n in (10, 250)]
    nested = [
        {**{k: row[k] for k in ("study", "cell", "name", "step", "evaluation", "frechet")}, "samples": n}
        for row in rows for n in COUNTS
    ]  # fmt: skip
    write_csv(folder / "nested.csv", list(NESTED_COLUMNS), nested)
    write_extras(write_results(folder, rows), rows)
    return report._study(folder)


def awkward_study(folder: Path) -> Page:
    """Long names, names that look like mathematics, networks without depth and patches, a logged loss at 200 steps."""
    rows = [result_row(*shape, extractor="a_rather_long-feature$space$of-my-own@01", step=s) for shape in SHAPES[:5]
            for s in (500, 1000)]  # fmt: skip
    for hidden in (4, 8, 16, 32):
        about = {"cell": f"{hidden:012x}", "name": f"my-mixer-of-many-words-hidden{hidden}", "block": "mixer$_of$words"}
        empty = dict.fromkeys(("depth", "width", "heads", "patch_size"), "")
        rows += [result_row(2, hidden, 2, step=s) | about | empty | {"extractor": rows[0]["extractor"]}
                 for s in (500, 1000)]  # fmt: skip
    write_extras(write_results(folder, rows), rows)
    curves = (folder / "curves.csv").read_text().splitlines()
    first = ",".join(curves[1].split(",")[:3])
    missing = "," * (curves[0].count(",") - 4)
    curves += [f"{first},{step},{1.3 * step**-0.25}{missing}" for step in range(1001, 1201)]
    (folder / "curves.csv").write_text("\n".join(curves) + "\n")
    return report._study(folder)


def published(folder: Path) -> Page:
    return report._published(PAPER)


def one_model(folder: Path) -> Page:
    """A model that was trained often: values that are equal up to rounding, on every axis of compute."""
    rows = [
        result_row(4, 64, 2, seed=seed, step=step, gmacs=0.003416064, train_gmacs=0.6558842880 * step,
                   **{metric: 1.6 + 0.05 * seed for metric in ("frechet", "kid", "precision", "recall")})
        for seed in range(12) for step in (1200,)
    ]  # fmt: skip
    write_extras(write_results(folder, rows), rows)
    return report._study(folder)


def drawn_texts(figure: Drawing, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Bbox]]:
    """The texts that are drawn, with their boxes in pixels."""
    found: list[tuple[str, Bbox]] = []
    draw: Any = Text.draw

    def noted(text: Text, renderer: Any, *args: Any, **kwargs: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            found.append((text.get_text(), text.get_window_extent(renderer)))
        draw(text, renderer, *args, **kwargs)

    style.lay_out(figure)
    with monkeypatch.context() as patched:
        patched.setattr(Text, "draw", noted)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
    return found


def clipped(figure: Drawing, texts: list[tuple[str, Bbox]]) -> list[str]:
    page = figure.bbox.padded(1)
    return [text for text, box in texts if not (page.contains(*box.min) and page.contains(*box.max))]


def overlapping(texts: list[tuple[str, Bbox]]) -> list[tuple[str, str]]:
    found = []
    for (one, a), (other, b) in combinations(texts, 2):
        shared = Bbox.intersection(a, b)
        if shared is not None and shared.width * shared.height > 0.1 * min(a.width * a.height, b.width * b.height):
            found.append((one, other))
    return found


@pytest.mark.parametrize("study", [published, full_study, awkward_study, one_model])
def test_no_text_is_clipped_or_covered(
    study: Callable[[Path], Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, faults, count = study(tmp_path), {}, 0
    for _, picture in page.sketches:
        try:
            figure = picture.figure()
        except (CannotDrawError, CannotFitError):
            continue
        texts = drawn_texts(figure, monkeypatch)
        count += 1
        assert figure.get_figwidth() == style.WIDTH
        if wrong := [*clipped(figure, texts), *overlapping(texts)]:
            faults[picture.name] = wrong
    assert not faults
    assert count >= (6 if study is one_model else 13)


def test_a_model_looks_alike_in_all_figures() -> None:
    table = load_published(PAPER)
    key = ModelKey.of(table)
    best = table[(table["size"] == "XL") & (table["block"] == "adaln-zero") & (table["resolution"] == 256)]
    shared = metric_against_gflops(
        best[(best["decoder"] == "ft-MSE") & (best["samples"] == 50_000)], "FID", "", key=key
    )
    alone = guidance(best[best["decoder"] == "ft-EMA"], "FID", "", key)
    colours = {line.get_color() for figure in (shared, alone) for line in figure.axes[0].lines}
    assert colours == {key.colours["XL"]} != {ModelKey.of(best).colours["XL"]}
    many = table.assign(block=[f"b{index % 6}" for index in range(len(table))])
    assert ModelKey.of(many).by == "block"  # more designs than sizes
    looks = {key.look(rows).fill for _, rows in table.groupby("block")}
    assert looks == {"full", "none", "left", "top"}


def test_the_other_blocks_stand_in_the_scaling_figure(tmp_path: Path) -> None:
    table = load_study(write_results(tmp_path, [result_row(*s, block=b) for s in SHAPES for b in BLOCKS[:2]]))
    own, others = (table[table["block"] == block] for block in BLOCKS[:2])
    law = fit_line(own["gmacs"].to_numpy(float), own["frechet"].to_numpy(float), "power law")
    figure = metric_against_gflops(own, "FD", "", law, others=others)
    drawn = np.concatenate(
        [np.asarray(line.get_ydata()) for line in figure.axes[0].lines if line.get_marker() != "None"]
    )
    assert set(drawn) == set(table["frechet"])
    note = figure.axes[0].title if figure.axes[0].get_title() else figure.axes[0].get_title(loc="left")
    assert f"G^{{{-law.exponent:.3f}}}$" in str(note)  # typeset


def test_guidance_needs_two_scales(tmp_path: Path) -> None:
    rows = [result_row(*shape, guidance=g, guidance_channels="all" * (g > 1), evaluation=str(g), frechet=10 / g)
            for shape in SHAPES[:2] for g in (1.0, 2.0, 4.0)]  # fmt: skip
    table = load_study(write_results(tmp_path, rows))
    lines = guidance(table, "FD", "").axes[0].lines
    assert [list(np.asarray(line.get_ydata())) for line in lines] == [[10, 5, 2.5]] * 2
    with pytest.raises(CannotDrawError, match="same guidance"):
        guidance(table[table["guidance"] == 1], "FD", "")


def test_smoothing_keeps_a_straight_line_and_calms_noise() -> None:
    steps = np.arange(1.0, 1001.0)
    assert smoothed(steps, np.full(1000, 3.0)) == pytest.approx(3)
    assert smoothed(steps, 2 * steps)[500] == pytest.approx(2 * steps[500])
    noise = np.random.default_rng(0).normal(0, 1, 1000)
    assert smoothed(steps, noise).std() < 0.3
    falling = steps**-0.5
    assert smoothed(steps, falling, log=True)[5] == pytest.approx(falling[5])  # early steps are not blurred


def test_numbers_have_three_digits() -> None:
    assert [style.plain(value) for value in (0.000123, 13.75, 1234.5, 2.5e8, -3.0488)] == [
        "0.000123", "13.8", "1,230", "2.5·10⁸", "−3.05"]  # fmt: skip
    assert style.short(1_234_567) == "1.23M"


def test_files_say_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # a real PDF
    table = load_published(PAPER)
    rows = table[table["source"] == "Table 4"].head(3)
    png, svg, pdf = style.save(metric_against_gflops(rows, "FID", "N = 50,000"), tmp_path, "f")
    with Image.open(png) as image:
        assert image.size[0] == round(style.WIDTH * 300)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert image.info["Description"] == "N = 50,000"
    assert "N = 50,000" in svg.read_text()
    assert b"/Subject (N = 50,000)" in pdf.read_bytes()
    assert b"/FontFile2" in pdf.read_bytes()  # TrueType; journals refuse Type 3 fonts
    again = style.save(metric_against_gflops(rows, "FID", "N = 50,000"), tmp_path, "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in (png, svg, pdf)]
