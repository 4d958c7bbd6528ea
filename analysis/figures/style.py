"""What all figures share: fonts, colours, markers, captions, and files with reproducible bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from analysis.names import SHAPE, patch_name, patch_order, size_order
from harness.files import write_bytes

WIDTH = 6.0  # inches: a text column, and 900 pixels at 150 dpi
DPI = 150
MAX_PNG_BYTES = 300_000
_MOST_NAMES = 10  # names of one kind in a legend

#: Okabe and Ito's palette, which suits any colour vision; without its yellow, which is too light for lines.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))

GREY = "#555555"  # for lines and markers that stand for all sizes

GFLOPS = "Gflops (GMACs, one forward pass)"
TRAINING_COMPUTE = "Training compute, Gflops (3 × GMACs × batch × steps)"
STEPS = "Training steps"

_STYLE = Path(__file__).parents[1] / "templates" / "figure.mplstyle"

P = ParamSpec("P")


class CannotDrawError(ValueError):
    """The table does not hold what the figure shows; the message is the reason, and can be printed."""


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the common style; matplotlib's global settings do not change."""

    @wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(fname=_STYLE):
            return draw(*args, **kwargs)

    return wrapped


def or_reason(draw: Callable[P, Figure], *args: P.args, **kwargs: P.kwargs) -> Figure | str:
    """The figure, or one line that says why it cannot be drawn: for notebooks that run on any study."""
    try:
        return draw(*args, **kwargs)
    except CannotDrawError as error:
        return f"not drawn: {error}"


def new_figure(
    height: float = 3.9, columns: int = 1, rows: int = 1, sharex: bool = False, sharey: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure of column width with a grid of axes, row by row; `sharex` within a column, `sharey` over all."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, sharex="col" if sharex else False, sharey=sharey, squeeze=False)
    return figure, list(axes.flat)


def log_scale(axes: Axes, *which: Literal["x", "y"], narrow: bool = False) -> None:
    """Logarithmic axes with plain numbers ("0.1", "200")."""
    axes.set(**{f"{name}scale": "log" for name in which})
    for name in which:
        _log_ticks(axes.xaxis if name == "x" else axes.yaxis, narrow)


def _log_ticks(axis: Any, narrow: bool = False) -> None:
    """Plain numbers on a log axis; ticks at 1, 2, 5 if its range is short, unless the axis is narrow."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low) if low > 0 else 10
    subs: tuple[float, ...] = (
        (1.0,) if decades > 2.5 else (1.0, 2.0, 5.0) if decades > 0.7 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    )
    subs = ((1.0,) if decades > 2 else (1.0, 3.0)) if narrow and decades > 1.2 else subs
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    minor = LogLocator(base=10, subs=(2.0, 5.0), numticks=12) if subs == (1.0,) and not narrow else NullLocator()
    axis.set_minor_locator(minor)  # ticks are most of what a figure costs to lay out and draw
    axis.set_minor_formatter(NullFormatter())


def plain(value: float) -> str:
    """A tick label without needless zeros; powers of ten from a million up."""
    if value >= 1e6 or 0 < value < 1e-4:
        exponent = int(np.floor(np.log10(value) + 1e-9))
        mantissa = value / 10.0**exponent
        power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return power if abs(mantissa - 1) < 1e-6 else f"{mantissa:.2g}·{power}"
    return f"{value:,.6g}"


def short(value: float) -> str:
    """A number of steps as a tick label: 800, 40k, 2.5M."""
    if value >= 1e6:
        return f"{value / 1e6:.4g}M"
    return f"{value / 1e3:.4g}k" if value >= 1e4 else f"{value:,.6g}"


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per name, in order: the palette, or beyond it an even scale from dark to light."""
    if len(names) <= len(PALETTE):
        return dict(zip(names, PALETTE, strict=False))
    scale = mpl.colormaps["viridis"](np.linspace(0.0, 0.9, len(names)))
    return {name: mpl.colors.to_hex(colour) for name, colour in zip(names, scale, strict=True)}


def in_legend(names: Sequence[str]) -> list[str]:
    """The names that a legend has room for: all, or some along the even scale if the palette has too few colours."""
    if len(names) <= _MOST_NAMES:
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, len(PALETTE)).round().astype(int)]


@dataclass(frozen=True)
class ShapeKey:
    """What tells shapes apart: a colour per size, smallest first, and a marker per patch size, largest patch first."""

    sizes: dict[str, str]
    patches: dict[int, str]

    @classmethod
    def of(cls, table: pd.DataFrame) -> ShapeKey:
        """The key of the shapes in a table."""
        markers = {patch: MARKERS[index % len(MARKERS)] for index, patch in enumerate(patch_order(table))}
        return cls(colours(size_order(table)), markers)

    def look(self, rows: pd.DataFrame) -> tuple[str, str]:
        """Colour and marker of rows of one shape."""
        return self.sizes[str(rows["size"].iloc[0])], self.patches.get(rows["patch_size"].iloc[0], MARKERS[0])

    def runs(self, rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
        """Colour, marker and rows of every shape."""
        for _, run in rows.groupby(SHAPE, dropna=False):
            yield *self.look(run), run

    @property
    def handles(self) -> list[Line2D]:
        """Legend entries."""
        dots = [legend_entry(s, color=self.sizes[s], marker="o", linestyle="") for s in in_legend([*self.sizes])]
        open_grey: Any = {"color": GREY, "linestyle": "", "markerfacecolor": "none"}
        return dots + [legend_entry(patch_name(p), marker=marker, **open_grey) for p, marker in self.patches.items()]


def legend_entry(label: str, **look: Any) -> Line2D:
    """A legend entry: a line or marker that is not in the plot."""
    return Line2D([], [], label=label, **look)


def line_style(index: int) -> Any:
    """The line style with this index; after the last style the first one follows."""
    return LINES[index % len(LINES)]


def style_entries(names: Sequence[str]) -> list[Line2D]:
    """Legend entries of lines that differ in their style, in the order of `LINES`."""
    return [legend_entry(name, color=GREY, linestyle=line_style(i)) for i, name in enumerate(names)]


def finish(figure: Figure, heading: str, caption: str, handles: Sequence[Any] = ()) -> Figure:
    """Add the title above, the caption beneath the axes, and a legend to the right, where it covers no data.

    Args:
        figure: with its axes drawn.
        heading: its title.
        caption: how the values were measured (N, extractor, ...).
        handles: entries of the legend; without them there is no legend.
    """
    if handles:
        figure.legend(handles=list(handles), loc="outside right upper", borderaxespad=0.2, handletextpad=0.5)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=10, fontweight="bold")
    figure.supxlabel("\n".join(textwrap.wrap(caption, 110)), x=0.01, ha="left", fontsize=7, color="#444444")
    return figure


# --- saving --------------------------------------------------------------------------------------------------------


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `folder`/name.png (150 dpi, or less to stay below 300 kB) and name.svg; equal figures give equal bytes.

    Returns:
        The two paths.
    """
    paths = folder / f"{name}.png", folder / f"{name}.svg"
    with mpl.rc_context(fname=_STYLE):
        figure.set_dpi(DPI)
        FigureCanvasAgg(figure)  # a canvas that measures text without drawing everything first
        engine: Any = figure.get_layout_engine()
        engine.execute(figure)  # lays the figure out, once for both files
        figure.set_layout_engine("none")
        for dpi in (DPI, 120, 96, 72):
            figure.set_dpi(dpi)
            png = _png(figure)
            if len(png) <= MAX_PNG_BYTES:
                break
        svg = io.BytesIO()
        vector: Any = FigureCanvasSVG(figure)
        vector.print_svg(svg, metadata={"Date": None, "Creator": None})
    write_bytes(paths[0], png)
    write_bytes(paths[1], svg.getvalue())
    return paths


def _png(figure: Figure) -> bytes:
    """The figure as a PNG of 256 colours: no visible loss for flat figures, and half the bytes."""
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # savefig would draw everything twice
    picture, png = Image.fromarray(np.asarray(canvas.buffer_rgba())), io.BytesIO()
    reduced = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    reduced.save(png, "PNG", dpi=(figure.dpi, figure.dpi))
    return png.getvalue()
