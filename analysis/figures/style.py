"""What all figures share: fonts, colours, markers, and files with reproducible bytes, one column of a paper wide."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from analysis.names import BLOCK_NAMES, SHAPE, block_name, patch_name, patch_order, size_order
from harness.files import write_bytes

WIDTH = 3.25  # inches: one column of a two-column paper, and 975 pixels at 300 dpi
DPI = 300
MAX_PNG_BYTES = 900_000
SUFFIXES = (".png", ".svg", ".pdf")  # of the files of a figure
_MOST_NAMES = 10  # names of one kind in a legend
_SHADES = 24  # of the scale of colours
_SHORT_AXIS = 0.3  # decades below which a log axis has the ticks of a linear one
_LONGEST_NAME = 36  # characters of a name in a legend

#: Okabe and Ito's palette, which suits any colour vision; without its yellow, which is too light for lines.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_FILLS: tuple[Literal["full", "none", "left", "top", "right", "bottom"], ...] = (
    *("full", "none", "left", "top", "right", "bottom"),
)

GREY = "#555555"  # for lines and markers that stand for all sizes

GFLOPS = "Gflops (GMACs, one forward pass)"
TRAINING_COMPUTE = "Training Gflops (3 × GMACs × batch × steps)"
STEPS = "Training steps"

_STYLE = Path(__file__).parents[1] / "templates" / "figure.mplstyle"

P = ParamSpec("P")


class CannotDrawError(ValueError):
    """The table does not hold what the figure shows; the message is the reason, and can be printed."""


class Drawing(Figure):
    """A figure with its title and how its values were measured; both stand in its files and not in the picture."""

    heading: str = ""
    caption: str = ""


def styled(draw: Callable[P, Drawing]) -> Callable[P, Drawing]:
    """Draw in the common style; matplotlib's global settings do not change."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Drawing:
        with mpl.rc_context(fname=_STYLE):
            return draw(*args, **kwargs)

    return wrapped


def or_reason(draw: Callable[P, Drawing], *args: P.args, **kwargs: P.kwargs) -> Drawing | str:
    """The figure, or one line that says why it cannot be drawn: for notebooks that run on any study."""
    try:
        return draw(*args, **kwargs)
    except CannotDrawError as error:
        return f"not drawn: {error}"


def new_figure(
    height: float = 2.3, columns: int = 1, rows: int = 1, sharex: bool = False, sharey: bool = True
) -> tuple[Drawing, list[Axes]]:
    """A figure of column width with a grid of axes, row by row; `sharex` within a column, `sharey` over all."""
    figure = Drawing(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, sharex="col" if sharex else False, sharey=sharey, squeeze=False)
    return figure, list(axes.flat)


def new_panels(count: int, sharey: bool = True) -> tuple[Drawing, list[Axes]]:
    """A figure of `count` axes, two side by side."""
    columns, rows = min(count, 2), -(-count // 2)
    figure, axes = new_figure(0.6 + 1.7 * rows, columns, rows, sharey=sharey)
    for spare in axes[count:]:
        spare.remove()
    for above in axes[:count]:
        above.tick_params(labelleft=True)
    return figure, axes[:count]


def log_scale(axes: Axes, *which: Literal["x", "y"], narrow: bool = False) -> None:
    """Logarithmic axes with plain numbers ("0.1", "200")."""
    axes.set(**{f"{name}scale": "log" for name in which})
    for name in which:
        _log_ticks(axes.xaxis if name == "x" else axes.yaxis, narrow)


def _log_ticks(axis: Any, narrow: bool = False) -> None:
    """Plain numbers on a log axis; ticks at 1, 2, 5 if its range is short, unless the axis is narrow."""
    low, high = axis.get_view_interval()
    if 0 < low <= high < low * (1 + 1e-9):  # one value, up to rounding: matplotlib would make the axis that narrow
        low, high = low / 3, high * 3
        axis.axes.set(**{f"{axis.axis_name}lim": (low, high)})
    decades = np.log10(high / low) if low > 0 else 10
    subs: tuple[float, ...] = (
        (1.0,) if decades > 2.2 else (1.0, 2.0, 5.0) if decades > 0.7 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    )
    if narrow:
        few = (1.0, 2.0, 5.0) if decades > 0.3 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
        subs = (1.0,) if decades > 1.7 else (1.0, 3.0) if decades > 0.9 else few
    few_decades = decades < _SHORT_AXIS  # then the multiples above may leave a single tick
    linear = mpl.ticker.MaxNLocator(nbins=3 if narrow else 5, steps=[1, 2, 5, 10])
    axis.set_major_locator(linear if few_decades else LogLocator(base=10, subs=subs, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    minor = LogLocator(base=10, subs=(2.0, 5.0), numticks=12) if subs == (1.0,) and not narrow else NullLocator()
    axis.set_minor_locator(minor)  # ticks are most of what a figure costs to lay out and draw
    axis.set_minor_formatter(NullFormatter())


def linear_ticks(axis: Any, most: int = 6) -> None:
    """Plain numbers of three digits at most on a linear axis."""
    axis.set_major_locator(mpl.ticker.MaxNLocator(nbins=most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def plain(value: float) -> str:
    """A label of three digits at most, without needless zeros; powers of ten from a million up."""
    if abs(value) >= 1e6 or 0 < abs(value) < 1e-4:
        exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
        mantissa = value / 10.0**exponent
        power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return power if abs(mantissa - 1) < 1e-6 else f"{mantissa:.2g}·{power}"
    return f"{float(f'{value:.3g}'):,.10g}".replace("-", "−")


def short(value: float) -> str:
    """A number of steps as a tick label of three digits at most: 800, 1,200, 40k, 2.5M."""
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if value >= 1e4 else plain(value)


def power_law(metric: str, coefficient: float, exponent: float, variable: str) -> str:
    """A power law as typeset text, for `typeset`: coefficient times variable to the minus exponent."""
    base = "10^{%d}" % (power := int(np.floor(np.log10(coefficient)))) if coefficient >= 999.5 else ""  # noqa: UP031
    front = f"{coefficient / 10**power:.3g} \\times {base}" if base else f"{coefficient:.3g}"
    return f"{escaped(shortened(metric, 20))} = ${front}\\,{variable}^{{{-exponent:.3f}}}$"


def escaped(text: str) -> str:
    """A text without the signs that typesetting takes for mathematics."""
    return text.replace("$", r"\$")


def shortened(text: str, most: int = _LONGEST_NAME) -> str:
    """A text of `most` characters at most, with an ellipsis where something is left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def lower(metric: str, width: int = 34) -> str:
    """The label of a value axis, in lines of `width` characters."""
    return "\n".join(textwrap.wrap(f"{shortened(metric)} (lower is better)", width))


def typeset(axes: Axes, lines: Sequence[str]) -> None:
    """Notes above the axes, left; what stands between dollar signs is typeset as mathematics."""
    title = axes.set_title("\n".join(lines), loc="left", fontsize=6)
    title.set_parse_math(True)


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per name, in order: the palette, or beyond it an even scale from dark to light.

    Many names share shades with their neighbours: nobody could tell those apart.
    """
    if len(names) <= len(PALETTE):
        return dict(zip(names, PALETTE, strict=False))
    shades = min(len(names), _SHADES)
    scale = mpl.colormaps["viridis"](np.linspace(0.0, 0.9, shades))
    return {name: mpl.colors.to_hex(scale[index * shades // len(names)]) for index, name in enumerate(names)}


def in_legend(names: Sequence[str]) -> list[str]:
    """The names that a legend has room for: all, or some along the even scale if the palette has too few colours."""
    if len(names) <= _MOST_NAMES:
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, len(PALETTE)).round().astype(int)]


@dataclass(frozen=True)
class Look:
    """How a model is drawn."""

    colour: str
    marker: str
    fill: Literal["full", "none", "left", "top", "right", "bottom"]
    line: Any  #: matplotlib line style

    @property
    def points(self) -> dict[str, Any]:
        """Arguments of `Axes.plot` for markers alone."""
        edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}
        if self.fill != "full":
            edge = {"markeredgecolor": self.colour, "markeredgewidth": 0.7, "markerfacecoloralt": "white"}
        return {"color": self.colour, "marker": MarkerStyle(self.marker, self.fill), "linestyle": "", **edge}


@dataclass(frozen=True)
class ModelKey:
    """What tells the models of a study apart; made once from its whole table, a model looks alike in all figures.

    The marker shows the patch size, largest patch first. The colour shows the size, smallest first, and the filling and
    the line style show the block design; where there are more designs than sizes it is the other way round.
    """

    by: Literal["size", "block"]  #: the column that the colour shows
    colours: Mapping[str, str]
    styles: Mapping[str, int]  #: value of the other column to the index of its filling and line style
    patches: Mapping[int, str]

    @classmethod
    def of(cls, table: pd.DataFrame) -> ModelKey:
        """The key of the models in a table."""
        markers = {patch: MARKERS[index % len(MARKERS)] for index, patch in enumerate(patch_order(table))}
        sizes, (_, shown) = size_order(table), _blocks_of(table)
        if len(shown) > len(sizes):
            return cls.of_blocks(table)
        return cls("size", colours(sizes), {block: index for index, block in enumerate(shown)}, markers)

    @classmethod
    def of_blocks(cls, table: pd.DataFrame) -> ModelKey:
        """A key whose colours show the block designs, for figures that hold those against each other."""
        markers = {patch: MARKERS[index % len(MARKERS)] for index, patch in enumerate(patch_order(table))}
        styles = {size: index for index, size in enumerate(size_order(table))}
        return cls("block", colours(_blocks_of(table)[0]), styles, markers)

    def look(self, rows: pd.DataFrame) -> Look:
        """How rows of one model are drawn."""
        second = "block" if self.by == "size" else "size"
        other = self.styles.get(str(rows[second].iat[0]), 0) if second in rows else 0
        patch: Any = rows["patch_size"].iat[0]
        marker = self.patches.get(patch, MARKERS[0])
        return Look(self.colours[str(rows[self.by].iat[0])], marker, _FILLS[other % len(_FILLS)], line_style(other))

    def runs(self, rows: pd.DataFrame) -> Iterator[tuple[Look, pd.DataFrame]]:
        """Look and rows of every model."""
        for _, run in _models(rows):
            yield self.look(run), run

    def looks(self, rows: pd.DataFrame) -> Iterator[tuple[Look, npt.NDArray[np.intp]]]:
        """The places of the rows by how their models are drawn; several models of a large study look alike."""
        model = _models(rows).ngroup().to_numpy()
        found: dict[Look, list[int]] = {}
        for number, first in enumerate(np.unique(model, return_index=True)[1]):
            found.setdefault(self.look(rows.iloc[first : first + 1]), []).append(number)
        for look, numbers in found.items():
            yield look, np.flatnonzero(np.isin(model, numbers))

    def handles(self, rows: pd.DataFrame, markers: bool = True) -> list[Line2D]:
        """Legend entries of what the rows hold: colours, then patch sizes (with `markers`), then the other column."""
        sizes, blocks = size_order(rows), set(rows["block"]) if "block" in rows else set()
        present = set(sizes) if self.by == "size" else blocks
        names = [name for name in self.colours if name in present]
        dot: Any = {"marker": "o", "linestyle": ""} if markers else {}
        entries = [legend_entry(self._name(name), color=self.colours[name], **dot) for name in in_legend(names)]
        if markers:
            grey: Any = {"color": "#999999", "linestyle": ""}
            entries += [legend_entry(patch_name(p), marker=self.patches[p], **grey) for p in patch_order(rows)]
        others = [name for name in self.styles if name in (blocks if self.by == "size" else set(sizes))]
        if len(others) > 1:
            entries += [self._style_entry(name) for name in others]
        return entries

    def _style_entry(self, name: str) -> Line2D:
        index = self.styles[name]
        look = Look(GREY, "o", _FILLS[index % len(_FILLS)], line_style(index))
        text = block_name(name) if self.by == "size" else name
        return legend_entry(text, **{**look.points, "linestyle": look.line, "linewidth": 0.8})

    def _name(self, name: str) -> str:
        return block_name(name) if self.by == "block" else name


def _models(rows: pd.DataFrame) -> Any:
    """The rows grouped by model."""
    return rows.groupby([*SHAPE, "block"] if "block" in rows else SHAPE, dropna=False)


def _blocks_of(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """The known block designs with those of a table, whose order gives colours; and those of the table alone."""
    found = set(table["block"]) if "block" in table else set()
    blocks = [*BLOCK_NAMES, *sorted(found - set(BLOCK_NAMES))]
    return blocks, [block for block in blocks if block in found]


def legend_entry(label: str, **look: Any) -> Line2D:
    """A legend entry: a line or marker that is not in the plot; a long label is shortened."""
    return Line2D([], [], label=shortened(label), **look)


def line_style(index: int) -> Any:
    """The line style with this index; after the last style the first one follows."""
    return LINES[index % len(LINES)]


def style_entries(names: Sequence[str]) -> list[Line2D]:
    """Legend entries of lines that differ in their style, in the order of `LINES`."""
    return [legend_entry(name, color=GREY, linestyle=line_style(i)) for i, name in enumerate(names)]


def finish(figure: Drawing, heading: str, caption: str, handles: Sequence[Any] = (), title: str = "") -> Drawing:
    """Add a legend above the axes, in as many columns as fit, and what the figure's files say of it.

    Args:
        figure: with its axes drawn.
        heading: its title; it stands in the files, not in the picture.
        caption: how the values were measured (N, extractor, ...); likewise.
        handles: entries of the legend; without them there is no legend.
        title: of the legend.
    """
    if handles:
        columns = _legend_columns([str(handle.get_label()) for handle in handles])
        rows = -(-len(handles) // columns)
        figure.set_figheight(figure.get_figheight() + 0.12 * max(0, rows - 2))
        figure.legend(
            handles=list(handles), loc="outside upper left", ncols=columns, title=title or None, alignment="left",
            borderaxespad=0.4, handletextpad=0.4, columnspacing=0.9, handlelength=1.8, labelspacing=0.3, borderpad=0.1,
        )  # fmt: skip
    figure.heading, figure.caption = heading, caption
    return figure


def _legend_columns(labels: Sequence[str]) -> int:
    """The most columns that fit the width of a figure; a column is as wide as its longest label."""
    for count in range(min(6, len(labels)), 1, -1):
        parts = np.array_split(np.array(labels, dtype=object), count)
        if sum(0.29 + 0.056 * max(map(len, part)) for part in parts) <= WIDTH - 0.1:
            rows = -(-len(labels) // count)
            return -(-len(labels) // rows)  # no more than these rows need
    return 1


# --- saving --------------------------------------------------------------------------------------------------------


def lay_out(figure: Figure) -> None:
    """Give everything its final place, once for all files."""
    with mpl.rc_context(fname=_STYLE):
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure)  # a canvas that measures text without drawing everything first
        engine: Any = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)
        figure.set_layout_engine("none")


def save(figure: Drawing, folder: Path, name: str) -> tuple[Path, ...]:
    """Write `folder`/name.png (300 dpi, or less to stay below 900 kB), .svg and .pdf; equal figures give equal bytes.

    Returns:
        The paths, in the order of `SUFFIXES`.
    """
    lay_out(figure)
    svg = io.BytesIO()
    with mpl.rc_context(fname=_STYLE):
        for dpi in (DPI, 200, 150, 100):
            figure.set_dpi(dpi)
            png = _png(figure)
            if len(png) <= MAX_PNG_BYTES:
                break
        about = {"Title": figure.heading, "Description": figure.caption, "Creator": None, "Date": None}
        vector: Any = FigureCanvasSVG(figure)
        vector.print_svg(svg, metadata=about)
        pdf = _pdf(figure)
    paths = tuple(folder / f"{name}{suffix}" for suffix in SUFFIXES)
    for path, data in zip(paths, (png, svg.getvalue(), pdf), strict=True):
        write_bytes(path, data)
    return paths


def _png(figure: Drawing) -> bytes:
    """The figure as a PNG of 256 colours: no visible loss for flat figures, and half the bytes."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # savefig would draw everything twice
    picture, png, about = Image.fromarray(np.asarray(canvas.buffer_rgba())), io.BytesIO(), PngInfo()
    about.add_itxt("Title", figure.heading)
    about.add_itxt("Description", figure.caption)
    reduced = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    reduced.save(png, "PNG", dpi=(figure.dpi, figure.dpi), pnginfo=about)
    return png.getvalue()


def _pdf(figure: Drawing) -> bytes:
    """The figure as a PDF whose text is text, in TrueType fonts as journals ask for."""
    canvas: Any = FigureCanvasPdf(figure)
    pdf = io.BytesIO()
    about = {"Title": figure.heading, "Subject": figure.caption}
    canvas.print_pdf(pdf, metadata={**about, "Creator": None, "Producer": None, "CreationDate": None})
    return pdf.getvalue()
